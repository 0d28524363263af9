"""The cost page's table: phases, and hours and price by hand; FLOP grow with the crop's area as convolutions do."""

from dataclasses import replace

import pytest

from jobs.presets import extended, tiny
from pipelines import cost


@pytest.fixture
def config() -> cost.Priced:
    return extended(tiny, cost.Priced)()


def test_hours_and_price_are_those_of_the_formula(config, monkeypatch):
    monkeypatch.setattr(cost, "flop_per_picture", lambda stage, config, step: 9e12)
    config = replace(
        config, tflops=10.0, price=3.0, segmentation=replace(config.segmentation, steps=1000, batch=4)
    )  # 36 TFLOP per step, 36 PFLOP in all: an hour at 10 TFLOP/s
    rows = [line.split() for line in cost.text(config).splitlines()]
    assert rows[1] == ["segmentation", "1,000", "4", "36", "0.036", "1", "3"]
    steps = 1000 + 450 + 120 + 50 + 250
    assert rows[-1] == ["all", f"{steps * 36e12 / 1e18:.3g}", f"{steps / 1000:.3g}", f"{steps / 1000 * 3:.3g}"]


def test_the_gan_stage_has_two_phases_where_there_are_two(config):
    assert [(p.name, p.first, p.steps) for stage, p in cost.phases(config) if stage == "gan"] == [
        ("gan, warm-up", 0, 120), ("gan, adversarial", 120, 50),
    ]  # fmt: skip
    alone = replace(config, gan=replace(config.gan, warmup_steps=0, last_steps=0))
    assert [(p.name, p.first, p.steps) for stage, p in cost.phases(alone) if stage == "gan"] == [("gan", 0, 170)]


def test_work_is_proportional_to_the_area_of_the_crop(config):
    once = cost.flop_per_picture("mse-codec", config, 0)
    four = cost.flop_per_picture("mse-codec", replace(config, crop=replace(config.crop, size=256)), 0)
    assert four == pytest.approx(4 * once) and once > 1e8


def test_a_speed_of_nothing_is_refused(config):
    with pytest.raises(ValueError, match="tflops is 0"):
        replace(config, tflops=0)
