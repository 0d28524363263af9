"""Estimates of a dry run, compared with real runs: sizes with written files, memory with the allocator."""

import copy
import sys
from dataclasses import replace

import pytest
import ray
import torch
from torch.profiler import ProfilerActivity, profile

from egic import artifact
from jobs.commands import dry_run
from jobs.config.presets import tiny
from jobs.training import fake_step, train_state
from jobs.training.loop import to_batch
from jobs.training.num_categories import with_categories
from jobs.training.stage import MODULES, load_stage
from tests.local_session import NEEDS, collate, components


def coco_tiny():
    return with_categories(tiny(), 133)


def trained(name: str, config, parents: dict) -> train_state.TrainState:
    """The stage after the first step of each phase."""
    stage = load_stage(name)
    nets = stage.build(config, copy.deepcopy(parents))
    state = train_state.TrainState(nets, train_state.make_optimizers(stage, nets, stage.settings(config)))
    nets.trained |= {part: train_state.parts_of(nets)[part] for part in stage.trains}
    for step in dry_run.first_steps(stage, config):
        batch = to_batch(collate(list(range(stage.settings(config).batch)), config.crop.size), torch.device("cpu"))
        stage.step(nets, state.optimizers, batch, config, step)
    return state


def allocated(name: str, config) -> int:
    """Peak of the bytes that torch's CPU allocator had allocated while the stage trained."""
    parents = components(config, *NEEDS[name])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        trained(name, config, parents)
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


STAGES = [pytest.param(name, marks=pytest.mark.slow) if name == "gan" else name for name in MODULES]


@pytest.mark.parametrize("name", STAGES)
def test_memory_equals_the_allocators_peak(name):
    """Within 10 %: operations on fake tensors sometimes select other kernels, with other temporary results."""
    config = coco_tiny()
    assert dry_run.cost_of(name, config).memory == pytest.approx(allocated(name, config), rel=0.1)


def every_rate():
    """A codec for every rate, trained with Muon, which keeps one moment of a matrix where Adam keeps two."""
    config = coco_tiny()
    mse_codec = replace(config.mse_codec, optimizer="muon")
    return replace(config, codec=replace(config.codec, rates=6), mse_codec=mse_codec)


@pytest.mark.parametrize(
    "name, make",
    [
        ("segmentation", coco_tiny),
        ("mse-codec", coco_tiny),
        ("mse-codec", every_rate),
        pytest.param("gan", coco_tiny, marks=pytest.mark.slow),
        ("orp", coco_tiny),
    ],
)
def test_files_have_the_estimated_size(name, make, tmp_path):
    """A file has 300 bytes for each tensor's name and shape, which matters only for tiny networks."""
    config, stage = make(), load_stage(name)
    cost, state = dry_run.cost_of(name, config), trained(name, config, components(config, *NEEDS[name]))
    train_state.save(tmp_path, stage, state, [])
    num = len(train_state.trained_weights(stage, state.nets))
    assert 0 <= (tmp_path / "resume.pt").stat().st_size - cost.checkpoint < 1500 * num
    artifact.save(tmp_path / "artifact", {part: getattr(state.nets, part) for part in stage.publishes}, {})
    size = sum(p.stat().st_size for p in (tmp_path / "artifact").glob("*.safetensors"))
    assert 0 <= size - cost.artifact < 100_000


def test_parameters_are_the_published_numbers():
    from jobs.config.presets import paper

    for name, expected in (("segmentation", 22_450_247), ("mse-codec", 32_556_240)):
        nets = fake_step.networks(load_stage(name), with_categories(paper(), 133))
        assert sum(p.numel() for _, p in train_state.named_parameters(nets)) == expected


@pytest.mark.slow
def test_more_workers_share_the_batch_and_the_average_is_stored():
    one = dry_run.cost_of("orp", tiny())
    two = dry_run.cost_of("orp", tiny(), world_size=2)
    assert 0.4 * one.memory < two.memory < 0.7 * one.memory
    config = coco_tiny()
    averaged = replace(config, gan=replace(config.gan, ema=0.9))
    g_s = dry_run.cost_of("gan", averaged).checkpoint - dry_run.cost_of("gan", config).checkpoint
    assert g_s == sum(p.numel() * 4 for p in components(config, "codec")["codec"].g_s.parameters())


@pytest.mark.parametrize(
    "name, settings, steps",
    [
        ("orp", {}, [0, 1]),
        ("gan", {}, [0, 1, 120, 121]),
        ("orp", {"steps": 1, "last_steps": 0}, [0]),
        ("gan", {"steps": 5, "warmup_steps": 5, "last_steps": 0}, [0, 1]),
        ("gan", {"warmup_steps": 0, "last_steps": 0}, [0, 1]),
    ],
)
def test_every_phase_is_estimated(name, settings, steps):
    config = replace(tiny(), **{name: replace(getattr(tiny(), name), **settings)})
    assert dry_run.first_steps(load_stage(name), config) == steps


def test_the_table_has_parameters_workers_and_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mlflow_before = "mlflow" in sys.modules
    found = dry_run.text(tiny(), ("mse-codec", "evaluate"))
    assert not ray.is_initialized() and list(tmp_path.iterdir()) == []
    assert mlflow_before or "mlflow" not in sys.modules
    lines = {line.split()[0]: line for line in found.splitlines() if line}
    assert lines["stage"].split()[1:] == ["mse-codec", "evaluate"] and lines["steps"].split()[1:] == ["450", "-"]
    assert lines["images"].split()[2:] == ["1,800", "16", "at", "most"]
    assert lines["trained"].split()[1:] == ["704,740", "-"] and "0.75 CPU in all" in lines["workers"]
    assert f"{tmp_path}/outputs/scenes does not exist yet; scenes will be drawn there" in lines["data"]


def test_pictures_of_a_coco_tree_are_counted(tmp_path):
    for split, num in (("train", 3), ("val", 2)):
        (tmp_path / f"{split}2017").mkdir()
        for i in range(num):
            (tmp_path / f"{split}2017" / f"{i}.jpg").touch()
    line = dry_run.data_line(replace(tiny(), data=str(tmp_path)))
    assert line == f"{tmp_path}, a COCO tree, to be prepared: 3 pictures in train, 2 pictures in val"
    assert dry_run.data_line(replace(tiny(), data="/nowhere")) == "/nowhere does not exist"


@pytest.mark.parametrize("size, text", [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (2_280_000_000, "2.28 GB")])
def test_sizes_are_printed_with_units(size, text):
    assert dry_run.shown(size) == text
