"""Measures against their formulas."""

import math

import pytest
import torch

from egic.metrics import distortion


def test_pictures_are_rounded_and_clipped_to_8_bits():
    assert distortion.to_uint8(torch.tensor([-5.0, 0.4, 0.6, 254.5, 300.0])).tolist() == [0, 0, 1, 254, 255]


def test_psnr_is_computed_per_picture():
    g = torch.Generator().manual_seed(0)
    x, x_hat = torch.randint(0, 256, (2, 3, 3, 8, 8), generator=g, dtype=torch.uint8)
    x_hat[2] = x[2]
    found = distortion.psnr_db(x_hat, x).tolist()
    for i in range(2):
        errors = [(int(a) - int(b)) ** 2 for a, b in zip(x_hat[i].flatten(), x[i].flatten(), strict=True)]
        assert found[i] == pytest.approx(10 * math.log10(255**2 * len(errors) / sum(errors)), abs=1e-4)
    assert found[2] == 100


def test_miou_of_a_small_example():
    label = torch.tensor([[1, 1, 2], [2, 0, 3]])
    predicted = torch.tensor([[1, 2, 2], [1, 3, 3]])
    hit, union = distortion.overlap(predicted, label, 5)
    assert hit.tolist() == [0, 1, 1, 1, 0]
    assert union.tolist() == [0, 3, 3, 1, 0]  # the void pixel is not counted
    assert distortion.mean_iou(hit, union) == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)


def test_miou_without_a_labelled_pixel_is_zero():
    hit, union = distortion.overlap(torch.ones(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64), 3)
    assert distortion.mean_iou(hit, union) == 0.0
