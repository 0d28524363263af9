"""Curves of an evaluation, and Bjontegaard's averages for cases with a known result."""

import pytest

from egic.report.curves import METRICS, Curve, bd_metric, bd_rate, curves


def made(label="a", metric="psnr_db", bpp=(0.1, 0.2, 0.4, 0.8), values=(28.0, 30.0, 32.0, 34.0)) -> Curve:
    return Curve(label=label, metric=METRICS[metric], bpp=bpp, values=values)


LOWER = {"metric": "lpips_alex", "values": (0.4, 0.3, 0.22, 0.15)}


@pytest.mark.parametrize("kind", [{}, LOWER])
def test_a_curve_against_itself_is_zero(kind):
    assert bd_rate(made(**kind), made(**kind)) == pytest.approx(0, abs=1e-9)
    assert bd_metric(made(**kind), made(**kind)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", [{}, LOWER])
@pytest.mark.parametrize("percent", [10, -20])
def test_equal_quality_at_another_rate_is_that_difference_in_percent(kind, percent):
    more = made(**kind, bpp=tuple(b * (1 + percent / 100) for b in made().bpp))
    assert bd_rate(made(**kind), more) == pytest.approx(percent, rel=1e-6)


def test_bd_metric_is_test_minus_reference_in_the_metrics_unit():
    assert bd_metric(made(), made(values=(29.0, 31.0, 33.0, 35.0))) == pytest.approx(1)
    lower = made(**LOWER)
    better = made(metric="lpips_alex", values=tuple(v - 0.05 for v in lower.values))
    assert bd_metric(lower, better) == pytest.approx(-0.05)
    assert bd_rate(lower, better) < 0


def test_the_numbers_of_points_may_differ():
    fewer = made(bpp=(0.1, 0.2, 0.4), values=(28.0, 30.0, 32.0))
    assert bd_rate(made(), fewer) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "test, message",
    [
        (made("b", bpp=(0.1, 0.2), values=(28.0, 30.0)), "b has 2 points of PSNR"),
        (made("b", values=(40.0, 41.0, 42.0, 43.0)), "a and b have no PSNR in common"),
        (made("b", values=(28.0, 31.0, 30.0, 34.0)), "b: PSNR does not improve"),
        (made("b", **LOWER), "PSNR and LPIPS"),
    ],
)
def test_curves_without_a_bd_rate_are_errors_with_the_reason(test, message):
    with pytest.raises(ValueError, match=message):
        bd_rate(made("a"), test)


def test_curves_without_common_rates_have_no_bd_metric():
    with pytest.raises(ValueError, match="no bpp in common"):
        bd_metric(made("a"), made("b", bpp=(1.0, 2.0, 4.0, 8.0)))


def test_curves_are_grouped_by_label_and_alpha_and_sorted_by_rate():
    def entry(bpp, psnr_db, alpha=None, **more):
        label = "EGIC" if alpha is not None else "JPEG"
        return {"label": label, "codec": "x", "point": "p", "alpha": alpha, "bpp": bpp, "psnr_db": psnr_db, **more}

    sets = [entry(0.2, 31.0, 1.0), entry(0.1, 30.0, 1.0), entry(0.1, 32.0, 0.0), entry(0.5, None), entry(0.4, 29)]
    found = {c.label: (c.bpp, c.values) for c in curves(sets, "psnr_db")}
    assert found == {
        "EGIC, alpha 1": ((0.1, 0.2), (30.0, 31.0)),
        "EGIC, alpha 0": ((0.1,), (32.0,)),
        "JPEG": ((0.4,), (29.0,)),
    }
    with pytest.raises(ValueError, match="unknown metric 'vmaf'"):
        curves(sets, "vmaf")


def test_unreliable_distances_and_nan_are_not_in_curves():
    sets = [
        {"label": "a", "alpha": None, "bpp": 0.1, "fid256": 9.0, "psnr_db": 30.0, "reliable": False},
        {"label": "a", "alpha": None, "bpp": 0.2, "fid256": float("nan"), "psnr_db": 31.0, "reliable": True},
    ]
    assert curves(sets, "fid256") == []
    assert len(curves(sets, "psnr_db")[0].bpp) == 2
