def patchify(images, side):
    B, C, H, W = images.shape
    if H % side or W % side:
        raise ValueError(f"patches of {side} do not fit into {H} x {W}")
    cut = images.reshape(B, C, H // side, side, W // side, side)             # (B, C, down, row, right, column)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(B, -1, side * side * C)   # (B, down * right, row * column * C)


def unpatchify(patches, side, H, W):
    B, P, size = patches.shape
    if P != (H // side) * (W // side):
        raise ValueError(f"{P} patches of {side} do not make {H} x {W}")
    cut = patches.reshape(B, H // side, W // side, side, side, size // (side * side))  # (B, down, right, row, column, C)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, H, W)
