"""Captured and replayed steps train the same weights as normal steps, and stop at a non-finite step.

Without a GPU, the captured step is called again in place of replaying a graph: with the same memory, and with a guard
in place of exceptions.
"""

from dataclasses import replace

import pytest
import torch

from egic.errors import NonFiniteError
from jobs.training import cuda_graphs, loop, train_state
from jobs.training.stage import MODULES, load_stage
from tests.local_session import LocalSession, run, small, weights

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


class Graphed(LocalSession):
    """Pretend that the device has graphs. spoil: the step whose weights become NaN."""

    def __init__(self, *args, spoil=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.spoil = spoil

    def stream(self, config, first_step, settings):
        for step, batch in enumerate(super().stream(config, first_step, settings), first_step):
            yield batch | {"weight": batch["weight"] * float("nan")} if step + 1 == self.spoil else batch


@pytest.fixture
def with_graphs(monkeypatch):
    """Let training capture its steps; returns the list of captures."""
    captured = []

    def capture(function):
        captured.append(function)
        return cuda_graphs.uncaptured(function)

    def queued(context):
        return cuda_graphs.QueuedSteps(context.stage, context.state, context.config, context.session.device, capture)

    monkeypatch.setattr(cuda_graphs, "WARM_UP", 1)
    monkeypatch.setattr(loop, "queued_steps", queued)
    return captured


def same(a: dict, b: dict) -> None:
    gaps = torch.cat([(a[k] - b[k]).abs().flatten() for k in a])
    assert gaps.max() < 5e-4 and gaps.mean() < 2e-7


LENGTH = {name: {"steps": 8, "log_every": 4, "last_steps": 2, "checkpoint_every": 8} for name in MODULES}
LENGTH["gan"] |= {"warmup_steps": 4, "ema": 0.9}


@pytest.mark.parametrize("stage", MODULES)
def test_replayed_steps_train_the_same(tmp_path, stage, request):
    config = small(stage, **LENGTH[stage])
    run(stage, config, plain := LocalSession(tmp_path / "plain"))
    captured = request.getfixturevalue("with_graphs")
    run(stage, config, graphed := Graphed(tmp_path / "graphed"))
    assert len(captured) == (2 if stage == "gan" else 1)
    before, after = (weights(tmp_path / name, stage, config) for name in ("plain", "graphed"))
    same(before, after)
    for mine, other in zip(plain.reports[0]["rows"], graphed.reports[0]["rows"], strict=True):
        losses = {k: v for k, v in mine.items() if k.startswith("train/")}
        assert losses == pytest.approx({k: other[k] for k in losses}, rel=1e-3)


def test_a_run_with_graphs_can_be_resumed_without_and_the_reverse(tmp_path, request):
    config = small("mse-codec", **LENGTH["mse-codec"] | {"checkpoint_every": 4})
    run("mse-codec", config, LocalSession(tmp_path / "plain"))
    with pytest.raises(KeyboardInterrupt):
        run("mse-codec", config, LocalSession(tmp_path / "first", stop_after=1))
    request.getfixturevalue("with_graphs")
    run("mse-codec", config, Graphed(tmp_path / "first"))
    with pytest.raises(KeyboardInterrupt):
        run("mse-codec", config, Graphed(tmp_path / "second", stop_after=1))
    request.getfixturevalue("monkeypatch").undo()
    run("mse-codec", config, LocalSession(tmp_path / "second"))
    plain, first, second = (weights(tmp_path / name, "mse-codec", config) for name in ("plain", "first", "second"))
    same(plain, first)
    same(plain, second)


@pytest.mark.parametrize("stage, spoil, term", [("segmentation", 3, "seg"), ("gan", 7, "d_seg_real")])
def test_no_update_is_made_after_a_non_finite_loss(tmp_path, stage, spoil, term, with_graphs, monkeypatch):
    """Weights are those before that step, and the message names it, although it is detected some steps later."""
    states, prepare = [], train_state.prepare_training
    monkeypatch.setattr(loop, "prepare_training", lambda *args: states.append(prepare(*args)) or states[-1])
    config, steps_done = small(stage, **LENGTH[stage]), []

    def noted(*args):
        steps_done.append({k: v.clone() for k, v in train_state.trained_weights(load_stage(stage), args[0]).items()})
        return load_stage(stage).step(*args)

    monkeypatch.setattr(loop, "load_stage", lambda name: replace(load_stage(name), step=noted))
    session = Graphed(tmp_path, spoil=spoil)
    with pytest.raises(NonFiniteError, match=f"{stage} step {spoil}, rank 0: non-finite .*{term}"):
        run(stage, config, session)
    assert session.rollbacks == [{"step": spoil, "why": session.rollbacks[0]["why"]}]
    assert len(steps_done) > spoil, "it is detected later"
    now = train_state.trained_weights(load_stage(stage), states[0].nets)
    assert all(torch.equal(steps_done[spoil - 1][k], now[k]) for k in now)
