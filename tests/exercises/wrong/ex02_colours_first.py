"""Fault: inside a patch the colours come first, as in the picture; the inverse still works.

Loses: test_product_is_the_convolution
"""

def patchify(images, P):
    B, C, H, W = images.shape
    if H % P or W % P:
        raise ValueError(f"patches of {P} do not fit into {H} x {W}")
    cut = images.reshape(B, C, H // P, P, W // P, P)             # (B, C, down, row, right, column)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, P * P * C)   # (B, down * right, C * row * column)


def unpatchify(patches, P, H, W):
    B, N, size = patches.shape
    if N != (H // P) * (W // P):
        raise ValueError(f"{N} patches of {P} do not make {H} x {W}")
    cut = patches.reshape(B, H // P, W // P, size // (P * P), P, P)  # (B, down, right, C, row, column)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(B, -1, H, W)
