"""Published results: each row names its source, and quality rises with the rate."""

import re

import pytest

from egic.report.published import POINTS, SAVINGS


@pytest.mark.parametrize("row", [*POINTS, *SAVINGS], ids=lambda row: f"{row.codec}")
def test_every_row_has_a_source(row):
    assert re.search(r"arXiv \d{4}\.\d{5}|ICLR", row.source)
    assert row.codec.startswith(row.source.split(",")[0])


def test_quality_rises_with_the_rate_along_each_curve():
    curves: dict = {}
    for p in POINTS:
        curves.setdefault((p.codec, p.data_set), []).append(p)
    assert {"MS-ILLM", "CRDR, beta 3.84", "CRDR, beta 0", "StableCodec", "AEIC-ME", "AEIC-SE"} <= {c for c, _ in curves}
    for (codec, _), points in curves.items():
        assert len({(p.bpp, p.point) for p in points}) == len(points)
        for before, after in zip(points, points[1:], strict=False):
            if codec != "EGIC":
                assert before.bpp < after.bpp and before.psnr_db < after.psnr_db
                assert before.lpips_alex > after.lpips_alex and before.dists > after.dists
