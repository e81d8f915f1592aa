"""Fault: patches are numbered down first.

Loses: test_patches_are_in_reading_order test_product_is_the_convolution
"""

def patchify(images, P):
    B, C, H, W = images.shape
    if H % P or W % P:
        raise ValueError(f"patches of {P} do not fit into {H} x {W}")
    cut = images.reshape(B, C, H // P, P, W // P, P)             # (B, C, down, row, right, column)
    return cut.permute(0, 4, 2, 3, 5, 1).reshape(B, -1, P * P * C)   # (B, right * down, row * column * C)


def unpatchify(patches, P, H, W):
    B, N, size = patches.shape
    if N != (H // P) * (W // P):
        raise ValueError(f"{N} patches of {P} do not make {H} x {W}")
    cut = patches.reshape(B, W // P, H // P, P, P, size // (P * P))  # (B, right, down, row, column, C)
    return cut.permute(0, 5, 2, 3, 1, 4).reshape(B, -1, H, W)
