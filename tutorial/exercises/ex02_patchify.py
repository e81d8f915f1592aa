"""ex02 (chapter 2): cut a picture into patches, and put it together again

Goal          The first layer of a vision tower is called a convolution and is really a cut and a matrix product. Write
              the cut so that the product equals the convolution, and its inverse.
Deliverable   patchify() and unpatchify(), below
Points        9
Time          40 minutes
Hardware      any CPU, under a second
Expected      a picture of 336 x 336 with side = 14 becomes 576 patches of 588 numbers: LLaVA-1.5's 576 image tokens
Check         pytest tests/exercises -m ex02 --student my

Hints, each says more than the one before
1. One reshape, one permute, one reshape. Write down the six names of the dimensions in between.
2. The first reshape splits H into (rows of patches, rows in a patch) and W likewise; nothing moves in memory.
3. If the inverse works and the convolution does not, the numbers inside a patch are in another order.
"""


def patchify(images, side):
    """Cut into squares. images (B,C,H,W) -> (B,P,side*side*C) with P = (H/side) * (W/side) patches.

    Patches are in reading order: left to right, then down. Inside a patch come its rows from the top, in a row its
    pixels from the left, and of one pixel its C colors side by side (colors last, unlike in `images`).
    Keeps dtype and gradient. Raises ValueError when side does not divide H and W.
    """
    raise NotImplementedError


def unpatchify(patches, side, H, W):
    """The inverse: (B,P,side*side*C) -> (B,C,H,W). Raises ValueError when P is not (H/side) * (W/side)."""
    raise NotImplementedError
