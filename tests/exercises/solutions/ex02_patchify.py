def patchify(images, P):
    B, C, H, W = images.shape
    if H % P or W % P:
        raise ValueError(f"patches of {P} do not fit into {H} x {W}")
    cut = images.reshape(B, C, H // P, P, W // P, P)             # (B, C, down, row, right, column)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(B, -1, P * P * C)   # (B, down * right, row * column * C)


def unpatchify(patches, P, H, W):
    B, N, size = patches.shape
    if N != (H // P) * (W // P):
        raise ValueError(f"{N} patches of {P} do not make {H} x {W}")
    cut = patches.reshape(B, H // P, W // P, P, P, size // (P * P))  # (B, down, right, row, column, C)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, H, W)
