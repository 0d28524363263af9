"""Training: resuming equals an unbroken run, two workers equal one with their batch, frozen parts do not change."""

import dataclasses
import json

import pytest
import torch

from egic.errors import NonFiniteError
from jobs.training import loop, train_state
from jobs.training.stage import MODULES, load_stage
from tests.local_session import LocalSession, components, run, run_group, small, weights

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = list(MODULES)


@pytest.mark.parametrize(
    "stage, rates, optimizer",
    [(stage, 0, "adam") for stage in STAGES]
    + [("mse-codec", 6, "muon")]
    + [pytest.param(stage, 6, "adamw", marks=pytest.mark.slow) for stage in STAGES]
    + [pytest.param(stage, 6, "muon", marks=pytest.mark.slow) for stage in STAGES if stage != "mse-codec"],
)
def test_resuming_is_bit_identical(tmp_path, stage, rates, optimizer):
    """With moving average, schedule, and random qualities per sample."""
    changes = {"rates": 6, "ema": 0.9, "schedule": "linear", "optimizer": optimizer} if rates else {}
    config = small(stage, **changes)
    run(stage, config, LocalSession(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(stage, config, LocalSession(tmp_path / "halves", stop_after=1))
    second = LocalSession(tmp_path / "halves")
    run(stage, config, second)
    whole, halves = (weights(tmp_path / name, stage, config) for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[k], halves[k]) for k in whole)
    assert [r["step"] for r in second.reports[0]["rows"]] == [1, 2, 3, 4]  # also those that may be lost


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_run_trains_nothing(tmp_path, stage):
    config = small(stage)
    run(stage, config, LocalSession(tmp_path))
    before = weights(tmp_path, stage, config)
    again = LocalSession(tmp_path)
    again.stream = None  # reading data would fail
    run(stage, config, again)
    after = weights(tmp_path, stage, config)
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_that_a_stage_does_not_train_stay_bit_identical(tmp_path, stage):
    config = small(stage)
    session = LocalSession(tmp_path)
    parts = components(config, "codec", "discriminator", "lpips")
    nets = load_stage(stage).build(config, parts)
    before = {name: p.detach().clone() for name, p in train_state.named_parameters(nets)}
    torch.manual_seed(config.seed)
    loop.train(stage, config, parts, session, {"stage": stage})
    prefixes = tuple(p for group in load_stage(stage).trains.values() for p in group)
    resting = {n: v for n, v in before.items() if not n.startswith(prefixes)}
    after = dict(train_state.named_parameters(load_stage(stage).build(config, parts)))
    after |= weights(tmp_path, stage, config)
    for name, value in resting.items():
        if name in after:
            assert torch.equal(value, after[name]), name
    moved = [n for n in before if n.startswith(prefixes)]
    assert all(not torch.equal(before[n], after[n]) for n in moved), "every declared parameter trains"


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """Every stage for two steps, on one worker and on two with gloo (one group for all: processes start slowly)."""
    folder = tmp_path_factory.mktemp("workers")
    configs = {s: small(s, steps=2, rates=6, **({"warmup_steps": 1} if s == "gan" else {})) for s in STAGES}
    rows = {}
    for stage, config in configs.items():
        run(stage, config, session := LocalSession(folder / "one" / stage))
        rows[stage] = session.reports[0]["rows"]
    run_group(configs, folder / "two", 2)
    return folder, configs, rows


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_train_the_same_model_as_one(two_workers, stage):
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
    state = train_state.prepare_training(stage_, nets, session, stage_.settings(config))
    before = {name: p.detach().clone() for name, p in train_state.named_parameters(nets)}
    with pytest.raises(NonFiniteError, match="non-finite"):
        stage_.step(nets, state.optimizers, batch, config, 3)
    assert all(torch.equal(before[name], p) for name, p in train_state.named_parameters(nets))


def test_a_non_finite_loss_names_stage_step_and_rank(tmp_path, monkeypatch):
    config = small("orp")
    stage = load_stage("orp")

    def broken(*args):
        raise NonFiniteError("non-finite mse255")

    monkeypatch.setattr("jobs.training.loop.load_stage", lambda name: dataclasses.replace(stage, step=broken))
    with pytest.raises(NonFiniteError, match=r"orp step 1, rank 0: non-finite mse255"):
        run("orp", config, LocalSession(tmp_path))


def damage(folder, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


def test_a_damaged_only_checkpoint_is_an_error(tmp_path):
    config = small("orp")
    with pytest.raises(KeyboardInterrupt):
        run("orp", config, LocalSession(tmp_path, stop_after=1))
    damage(tmp_path / "step_000002", "resume.pt")
    with pytest.raises(ValueError, match="damaged: resume.pt has another digest, and no earlier one is intact"):
        run("orp", config, LocalSession(tmp_path))


@pytest.mark.parametrize(
    "name, harm", [("resume.pt", damage), ("meta.json", damage), ("meta.json", lambda f, n: (f / n).unlink())]
)
def test_a_damaged_checkpoint_is_skipped(tmp_path, capsys, name, harm):
    """Training resumes from the one before, logs that, and ends with the weights of an unbroken run."""
    config = small("orp", steps=6)
    run("orp", config, LocalSession(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run("orp", config, LocalSession(tmp_path / "halves", stop_after=2))
    harm(tmp_path / "halves" / "step_000004", name)
    again = LocalSession(tmp_path / "halves")
    run("orp", config, again)
    assert "damaged" in (said := capsys.readouterr().out) and "going on from step 2" in said
    whole, halves = (weights(tmp_path / part, "orp", config) for part in ("whole", "halves"))
    assert all(torch.equal(whole[k], halves[k]) for k in whole)


@pytest.mark.parametrize("stage", ["mse-codec", pytest.param("gan", marks=pytest.mark.slow)])
def test_a_run_that_is_asked_to_stop_loses_no_step(tmp_path, stage):
    """It writes a checkpoint and ends; the resumed run equals an unbroken one, with every step logged once."""
    config = small(stage, steps=6, checkpoint_every=4, log_every=2)
    run(stage, config, LocalSession(tmp_path / "whole"))
    first = LocalSession(tmp_path / "halves")
    first.wishes = {3: "stop"}
    run(stage, config, first)
    assert [r["step"] for r in first.reports] == [3]
    assert not any(name.startswith("val/") for name in first.reports[0]["rows"][-1]), "no validation, to save time"
    second = LocalSession(tmp_path / "halves")
    run(stage, config, second)
    whole, halves = (weights(tmp_path / part, stage, config) for part in ("whole", "halves"))
    assert all(torch.equal(whole[k], halves[k]) for k in whole)
    told = [row["step"] for report in [*first.reports, *second.reports] for row in report["rows"]]
    assert told == [2, 3, 2, 3, 4, 6], "rows since the last checkpoint are reported again, in case they were lost"


def test_an_extra_checkpoint_does_not_change_the_result(tmp_path):
    config = small("segmentation", checkpoint_every=4)
    run("segmentation", config, LocalSession(tmp_path / "plain"))
    warned = LocalSession(tmp_path / "warned")
    warned.wishes = {1: "checkpoint", 3: "checkpoint"}
    run("segmentation", config, warned)
    assert [r["step"] for r in warned.reports] == [1, 3, 4]
    plain, other = (weights(tmp_path / part, "segmentation", config) for part in ("plain", "warned"))
    assert all(torch.equal(plain[k], other[k]) for k in plain)


def test_each_rollback_halves_the_learning_rate_and_is_recorded(tmp_path):
    config = small("orp")
    session = LocalSession(tmp_path)
    session.rollbacks = [{"step": 2, "why": "nan"}, {"step": 3, "why": "nan"}]
    run("orp", config, session)
    assert [r["train/lr"] for r in session.reports[0]["rows"]] == [config.orp.lr / 4] * 2
    provenance = json.loads((tmp_path / "step_000004" / "artifact" / "provenance.json").read_text())
    assert provenance["rollbacks"] == session.rollbacks


def test_an_idle_worker_only_takes_part_in_reports(tmp_path):
    config = small("orp")
    session = LocalSession(tmp_path, rank=1)
    session.idle, session.stream = True, None  # reading data would fail
    run("orp", config, session)
    assert session.reports == [{}, {}]


@pytest.mark.slow
def test_compiled_blocks_train_the_same_weights(tmp_path, monkeypatch):
    """Traced and differentiated as for a GPU, but run by torch's own kernels, without compiled C++."""
    from torch._dynamo.utils import counters  # the import takes seconds

    monkeypatch.setattr(loop, "COMPILER", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    config = small("segmentation", steps=2)
    compiled = dataclasses.replace(config, compute=dataclasses.replace(config.compute, compile=True))
    losses = []
    for name, chosen in (("eager", config), ("compiled", compiled)):
        session = LocalSession(tmp_path / name)
        run("segmentation", chosen, session)
        losses.append([row["train/seg"] for row in session.reports[0]["rows"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert counters["stats"]["unique_graphs"] >= len(config.discriminator.down)
    assert not counters["graph_break"]
    assert (
        weights(tmp_path / "eager", "segmentation", config).keys()
        == weights(tmp_path / "compiled", "segmentation", compiled).keys()
    )
