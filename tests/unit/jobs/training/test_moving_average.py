"""The moving average that is published in place of the trained weights."""

from types import SimpleNamespace

import torch
from torch import nn

from jobs.training import train_state


def test_the_moving_average_of_a_short_run_is_independent_of_its_first_weights(monkeypatch):
    """With a constant decay of 0.999, 90 % of the first weights would remain after 100 steps."""
    weight = nn.Parameter(torch.ones(1))
    monkeypatch.setattr(train_state, "named_parameters", lambda nets: [("orp.weight", weight)])
    state = SimpleNamespace(nets=None, ema={}, step=0)
    stage = SimpleNamespace(averages=("orp.",))
    for state.step in range(100):
        weight.data.fill_(1.0 if state.step == 0 else 0.0)
        train_state.update_ema(stage, state, 0.999)
    assert 0 <= state.ema["orp.weight"].item() < 1e-6
    weight.data.fill_(1.0)
    state.step = 10**6
    train_state.update_ema(stage, state, 0.999)
    torch.testing.assert_close(state.ema["orp.weight"], torch.tensor([0.001]), rtol=1e-3, atol=1e-5)
