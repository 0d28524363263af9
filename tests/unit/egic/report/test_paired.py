"""Paired differences: which points are compared, and which intervals exclude zero."""

import numpy as np
import pytest

from egic.report.evaluation_folder import interval, mean, sets_of
from egic.report.paired import differences


def row(label, point, name, psnr_db, lpips_vgg=None, **more):
    values = {"label": label, "codec": "egic", "point": point, "name": name, "bpp": 0.1, "psnr_db": psnr_db}
    return values | {"lpips_vgg": lpips_vgg, "quality": None, "alpha": None} | more


def test_points_are_compared_at_equal_size_on_the_same_picture():
    rng, rows = np.random.default_rng(0), []
    for i in range(24):
        level = rng.normal(30, 5)  # pictures vary much more than codecs
        at = {"name": f"{i}.png"}
        rows.append(row("m", "quality 10, alpha 0", psnr_db=level, lpips_vgg=0.5, quality=10, alpha=0.0, **at))
        rows.append(row("m", "quality 10, alpha 1", psnr_db=level - 1, lpips_vgg=0.3, quality=10, alpha=1.0, **at))
        worse = level - 0.3 + rng.normal(0, 0.1)
        rows.append(row("JPEG", "rate of m, quality 10", psnr_db=worse, lpips_vgg=0.4, codec="jpeg", **at))
        rows.append(row("JPEG", "rate of m, quality 50", psnr_db=level + 9, codec="jpeg", **at))  # another size
    found = {(d.point, d.other, d.metric.name): d for d in differences(rows)}
    assert len(found) == 2 * 2 + 2
    psnr = found["quality 10, alpha 0", "JPEG", "psnr_db"]
    assert psnr.mean == pytest.approx(0.3, abs=0.06) and 0.2 < psnr.interval[0] < psnr.mean < psnr.interval[1] < 0.4
    assert (psnr.wins, psnr.num_pictures) == (24, 24)
    lpips = found["quality 10, alpha 1", "JPEG", "lpips_vgg"]
    assert lpips.mean == pytest.approx(-0.1) and lpips.wins == 24  # lower is better
    alpha = found["quality 10, alpha 1", "quality 10, alpha 0", "psnr_db"]
    assert alpha.mean == pytest.approx(-1) and alpha.wins == 0


def test_intervals_match_the_standard_error_of_the_mean():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = interval(values)
    assert low < mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)  # +-1.96 standard errors
    assert interval([1.0]) is None and interval([None, 2.0]) is None and interval([]) is None
    assert interval(list(values)) == interval(list(values))


def test_means_are_over_the_pictures_that_have_a_value():
    rows = [row("m", "decoded", "a", 30.0, 0.2), row("m", "decoded", "b", 40.0, None)]
    (entry,) = sets_of(rows)
    assert entry["psnr_db"] == 35 and entry["lpips_vgg"] == 0.2 and entry["dists"] is None
    assert set(entry["intervals"]) == {"bpp", "psnr_db"}
