"""Promises of training: resuming equals never having stopped, workers equal batch size, what rests stays as it is."""

import dataclasses
import json

import pytest
import torch

from egic.steps import NonFiniteError
from jobs import loop
from jobs.stage import MODULES, load_stage
from tests.local_session import LocalSession, components, run, run_group, small, weights

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = list(MODULES)


@pytest.mark.parametrize("stage", STAGES)
def test_resuming_is_bit_identical(tmp_path, stage):
    changes = {"ema": 0.9} if stage == "gan" else {}
    config = small(stage, **changes)
    run(stage, config, LocalSession(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(stage, config, LocalSession(tmp_path / "halves", stop_after=1))
    second = LocalSession(tmp_path / "halves")
    run(stage, config, second)
    whole, halves = (weights(tmp_path / name, stage, config) for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[k], halves[k]) for k in whole)
    assert [r["step"] for r in second.reports[0]["rows"]] == [1, 2, 3, 4]  # what the killed run may not have said, too


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_run_trains_nothing(tmp_path, stage):
    config = small(stage)
    run(stage, config, LocalSession(tmp_path))
    before = weights(tmp_path, stage, config)
    again = LocalSession(tmp_path)
    again.stream = None  # asking for data would fail
    run(stage, config, again)
    after = weights(tmp_path, stage, config)
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_not_declared_stays_bit_identical(tmp_path, stage):
    config = small(stage)
    session = LocalSession(tmp_path)
    parts = components(config, "codec", "discriminator", "lpips")
    nets = load_stage(stage).build(config, parts)
    before = {name: p.detach().clone() for name, p in loop.named_parameters(nets)}
    torch.manual_seed(config.seed)
    loop.train(stage, config, parts, session, {"stage": stage})
    prefixes = tuple(p for group in load_stage(stage).trains.values() for p in group)
    resting = {n: v for n, v in before.items() if not n.startswith(prefixes)}
    after = dict(loop.named_parameters(load_stage(stage).build(config, parts)))
    for name, value in resting.items():
        if name in after and not name.startswith("orp."):
            assert torch.equal(value, after[name]), name
    moved = [n for n in before if n.startswith(prefixes) and not n.startswith("orp.")]
    assert stage == "orp" or all(not torch.equal(before[n], after[n]) for n in moved), "every declared parameter trains"


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """Every stage for two steps, on one worker and on two with gloo (one group for all: processes start slowly)."""
    folder = tmp_path_factory.mktemp("workers")
    configs = {s: small(s, steps=2, **({"warmup_steps": 1} if s == "gan" else {})) for s in STAGES}
    rows = {}
    for stage, config in configs.items():
        run(stage, config, session := LocalSession(folder / "one" / stage))
        rows[stage] = session.reports[0]["rows"]
    run_group(configs, folder / "two", 2)
    return folder, configs, rows


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_train_the_model_of_one(two_workers, stage):
    """Float sums differ in order, and Adam's first steps turn such differences of tiny gradients into lr-sized ones:
    the learning rate bounds what may differ, while losses and the mean of all weights must be the same."""
    folder, configs, rows = two_workers
    config = configs[stage]
    one, two = (weights(folder / name / stage, stage, config) for name in ("one", "two"))
    lr = load_stage(stage).settings(config).lr
    gaps = torch.cat([(one[k] - two[k]).abs().flatten() for k in one])
    assert gaps.max() <= 4 * lr
    assert gaps.mean() <= 0.02 * lr
    theirs = json.loads((folder / "two" / stage / "step_000002" / "meta.json").read_text())["rows"]
    for mine, other in zip(rows[stage], theirs, strict=True):
        for name in mine:
            if name.startswith(("train/", "val/")):
                assert other[name] == pytest.approx(mine[name], rel=2e-3, abs=1e-6), name


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_updated_when_a_loss_is_not_finite(tmp_path, stage, monkeypatch):
    config = small(stage)
    session = LocalSession(tmp_path)
    good = session.stream(config, 0, load_stage(stage).settings(config))
    batch = loop.to_batch(next(good), session.device)
    batch.x[0, 0, 0, 0] = float("nan")
    stage_ = load_stage(stage)
    nets = stage_.build(config, components(config, "codec", "discriminator", "lpips"))
    state = loop.prepare_training(stage_, nets, session, stage_.settings(config))
    before = {name: p.detach().clone() for name, p in loop.named_parameters(nets)}
    with pytest.raises(NonFiniteError, match="non-finite"):
        stage_.step(nets, state.optimizers, batch, config, 3)
    assert all(torch.equal(before[name], p) for name, p in loop.named_parameters(nets))


def test_a_non_finite_loss_names_stage_step_and_rank(tmp_path, monkeypatch):
    config = small("orp")
    stage = load_stage("orp")

    def broken(*args):
        raise NonFiniteError("non-finite mse255")

    monkeypatch.setattr("jobs.loop.load_stage", lambda name: dataclasses.replace(stage, step=broken))
    with pytest.raises(NonFiniteError, match=r"orp step 1, rank 0: non-finite mse255"):
        run("orp", config, LocalSession(tmp_path))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    config = small("orp")
    with pytest.raises(KeyboardInterrupt):
        run("orp", config, LocalSession(tmp_path, stop_after=1))
    file = next(tmp_path.glob("step_*/resume.pt"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        run("orp", config, LocalSession(tmp_path))
