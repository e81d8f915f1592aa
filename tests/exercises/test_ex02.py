import pytest
import torch
from compare import same

pytestmark = pytest.mark.ex02


@pytest.mark.points(1)
def test_expected_number(student):
    same(tuple(student.patchify(torch.zeros(1, 3, 336, 336), 14).shape), (1, 576, 588), "shape for LLaVA-1.5's picture")


@pytest.mark.points(2)
def test_patches_are_in_reading_order(student):
    images = torch.arange(6.0).reshape(2, 3).repeat_interleave(2, 0).repeat_interleave(2, 1).expand(1, 1, 4, 6)
    same(student.patchify(images, 2)[0, :, 0], torch.arange(6.0), "the patches of a picture that shows their numbers")


@pytest.mark.points(3)
def test_product_is_the_convolution(student, randn):
    images, weight, side = randn(2, 3, 8, 12), randn(5, 3, 4, 4), 4
    expected = torch.nn.functional.conv2d(images, weight, stride=side).flatten(2).transpose(1, 2)        # (B,P,5)
    same(student.patchify(images, side) @ weight.permute(0, 2, 3, 1).flatten(1).T, expected, "patches times weights")


@pytest.mark.points(2)
def test_inverse(student, randn):
    for C, side, H, W in ((3, 2, 4, 6), (1, 3, 9, 3), (4, 1, 2, 3)):
        images = randn(2, C, H, W)
        back = student.unpatchify(student.patchify(images, side), side, H, W)
        same(back, images, f"there and back, C={C} side={side} {H} x {W}")


@pytest.mark.points(1)
def test_bad_sizes_are_refused(student):
    with pytest.raises(ValueError):
        student.patchify(torch.zeros(1, 3, 8, 9), 4)
    with pytest.raises(ValueError):
        student.unpatchify(torch.zeros(1, 5, 12), 2, 4, 4)
