"""The cost table: phases, hours and price computed by hand, and FLOP counted independently."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from egic.networks.codec import Codec
from egic.networks.swin import WindowAttention
from jobs.config.presets import extended, tiny
from pipelines import cost


@pytest.fixture
def config() -> cost.Priced:
    return extended(tiny, cost.Priced)()


def test_hours_and_price_follow_from_flop(config, monkeypatch):
    monkeypatch.setattr(cost, "flop_per_picture", lambda stage, config, step: 9e12)
    config = replace(
        config, tflops=10.0, price=3.0, segmentation=replace(config.segmentation, steps=1000, batch=4)
    )  # 36 TFLOP per step, 36 PFLOP in all: an hour at 10 TFLOP/s
    rows = [line.split() for line in cost.text(config).splitlines()]
    assert rows[1] == ["segmentation", "1,000", "4", "36", "0.036", "1", "3"]
    steps = 1000 + 450 + 120 + 50 + 250
    assert rows[-1] == ["all", f"{steps * 36e12 / 1e18:.3g}", f"{steps / 1000:.3g}", f"{steps / 1000 * 3:.3g}"]


def test_the_gan_stage_has_a_row_for_each_phase(config):
    assert [(p.name, p.first, p.steps) for stage, p in cost.phases(config) if stage == "gan"] == [
        ("warm-up", 0, 120), ("adversarial", 120, 50),
    ]  # fmt: skip
    alone = replace(config, gan=replace(config.gan, warmup_steps=0, last_steps=0))
    assert [(p.first, p.steps) for stage, p in cost.phases(alone) if stage == "gan"] == [(0, 170)]


def forward_flop(codec: Codec, x: torch.Tensor) -> float:
    """FLOP of a forward pass, two per multiply-add of layers and attention, computed from each layer's input shape."""
    total = []

    def count(module, given, made):
        if isinstance(module, WindowAttention):
            n, area, channels = given[0].shape
            total.append(2 * 2 * n * area**2 * channels)  # q k and its product with v
        else:
            places = made.numel() / module.weight.shape[0]  # each needs a product with the whole weight
            total.append(2 * places * module.weight.numel())

    for module in codec.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | WindowAttention):
            module.register_forward_hook(count)
    codec(x)
    return sum(total)


def test_a_step_counts_as_three_forward_passes(config):
    forward = forward_flop(Codec(config.codec), torch.zeros(1, 3, config.crop.size, config.crop.size))
    step = cost.flop_per_picture("mse-codec", config, 0)
    assert 2.9 * forward < step <= 3.1 * forward  # the picture needs no gradient; attention recomputes its scores


def test_a_speed_of_zero_is_refused(config):
    with pytest.raises(ValueError, match="tflops is 0"):
        replace(config, tflops=0)
