"""Functions of the worker loop that need no session."""

from types import SimpleNamespace

import torch
from torch import nn

from jobs.training import loop


def test_the_moving_average_of_a_short_run_is_independent_of_its_first_weights(monkeypatch):
    """With a constant decay of 0.999, 90 % of the first weights would remain after 100 steps."""
    weight = nn.Parameter(torch.ones(1))
    monkeypatch.setattr(loop, "named_parameters", lambda nets: [("orp.weight", weight)])
    state = SimpleNamespace(nets=None, ema={}, step=0)
    stage = SimpleNamespace(averages=("orp.",))
    for state.step in range(100):
        weight.data.fill_(1.0 if state.step == 0 else 0.0)
        loop.update_ema(stage, state, 0.999)
    assert 0 <= state.ema["orp.weight"].item() < 1e-6
    weight.data.fill_(1.0)
    state.step = 10**6
    loop.update_ema(stage, state, 0.999)
    torch.testing.assert_close(state.ema["orp.weight"], torch.tensor([0.001]), rtol=1e-3, atol=1e-5)
