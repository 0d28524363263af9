"""FID and KID: the choice of patches, and values for known cases."""

import io

import numpy as np
import pytest
from PIL import Image

from egic.metrics import fid_kid
from egic.metrics.pretrained import NETWORKS


@pytest.mark.parametrize(
    "height, width, grid, shifted",
    [(512, 768, 6, 2), (480, 640, 2, 2), (1365, 2048, 40, 28), (256, 256, 1, 0), (383, 384, 1, 0), (384, 384, 1, 1)]
    + [(255, 4000, 0, 0)],
)
def test_patches_are_a_grid_and_the_grid_shifted_by_half_a_patch(height, width, grid, shifted):
    corners = fid_kid.corners(height, width, 256)
    assert len([c for c in corners if c[0] % 256 == 0 and c[1] % 256 == 0]) == grid
    assert len([c for c in corners if c[0] % 256 == 128 and c[1] % 256 == 128]) == shifted
    assert len(corners) == len(set(corners)) == grid + shifted
    assert all(top + 256 <= height and left + 256 <= width for top, left in corners)


def test_24_kodak_pictures_have_4152_patches_of_64():
    assert 24 * len(fid_kid.corners(512, 768, 64)) == 24 * len(fid_kid.corners(768, 512, 64)) == 4152
    assert len(fid_kid.corners(63, 640, 64)) == 0 and fid_kid.corners(96, 96, 64) == [(0, 0), (32, 32)]


def jpeg(x: np.ndarray, strength: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(x).save(file, "JPEG", quality=strength)
    return np.asarray(Image.open(file))


@pytest.mark.slow
def test_distances_are_zero_for_equal_sets_and_grow_with_the_damage(kodak, weights):
    from egic.metrics.pretrained import find

    crops = [np.asarray(Image.open(p).convert("RGB"))[:256, :256] for p in sorted(kodak.glob("*.png"))[:6]]
    features = fid_kid.Features(find("inception", str(weights))[1])
    original, mild, strong = (
        np.concatenate([features(np.ascontiguousarray(x), 256) for x in pictures])
        for pictures in (crops, [jpeg(x, 40) for x in crops], [jpeg(x, 5) for x in crops])
    )
    assert original.shape == (6, 2048) and original.dtype == np.float32
    assert fid_kid.fid(original, original) == pytest.approx(0, abs=1e-3)
    part = slice(0, 512)  # an eigenvalue problem of 2048 takes 10 s
    fid = [fid_kid.fid(f[:, part], original[:, part]) for f in (original, mild, strong)]
    kid = [fid_kid.kid(f, original) for f in (original, mild, strong)]
    assert fid[0] < fid[1] / 10 and fid[1] < fid[2] / 2
    assert kid[0] <= 0 and kid[0] < kid[1] < kid[2]


def test_fewer_than_two_patches_have_no_distance():
    one = np.zeros((1, 2048), np.float32)
    assert fid_kid.fid(one, one) is None and fid_kid.kid(one, one) is None


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="not the weights of FID"):
        fid_kid.Features({"0.weight": np.zeros(3)})


def test_fid_is_the_formula_of_two_gaussians():
    """Independent dimensions: sum of (m1 - m2)^2 + (s1 - s2)^2, up to sampling noise of 20,000 draws."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (20_000, 4)), rng.normal(1, 3, (20_000, 4))
    assert fid_kid.fid(a, b) == pytest.approx(4 * (1 + 4), rel=0.05)
    assert NETWORKS[fid_kid.NETWORK].whole
