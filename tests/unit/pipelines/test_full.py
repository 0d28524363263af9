"""The pipeline: order of stages, and parallel stages when one of them fails."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from jobs.config.presets import extended, tiny
from jobs.training import reuse_or_train
from pipelines import full


def pipeline(**changes) -> full.Pipeline:
    return replace(extended(tiny, full.Pipeline)(), **changes)


def test_every_stage_runs_after_its_parents():
    assert pipeline().wanted == ("segmentation", "mse-codec", "gan", "orp", "evaluate")
    assert pipeline(until="mse-codec").wanted == ("mse-codec",)


def test_a_stage_before_the_first_one_must_be_finished():
    full.check_may_train(["gan", "orp"], "gan")
    with pytest.raises(full.UserError, match="segmentation is not finished .*start --from segmentation or earlier"):
        full.check_may_train(["segmentation", "gan"], "gan")


@pytest.fixture
def room(monkeypatch):
    """A fake cluster with resources for as many stages as the test sets; `left` is set when Ray is shut down."""
    found = SimpleNamespace(stages=2, left=threading.Event())
    monkeypatch.setattr(reuse_or_train, "start_ray", lambda: None)
    monkeypatch.setattr(reuse_or_train, "check_resources", lambda compute: None)
    monkeypatch.setattr(reuse_or_train, "stages_side_by_side", lambda compute: found.stages)
    monkeypatch.setattr(reuse_or_train, "leave", found.left.set)
    reuse_or_train.stopping.clear()
    return found


def inputs(*names):
    return [SimpleNamespace(stage=SimpleNamespace(name=name), config=tiny()) for name in names]


def test_stages_run_in_parallel_if_resources_suffice(room, monkeypatch):
    met = threading.Barrier(2)

    def train(each, run_id, num):
        met.wait(30)  # returns only if both run at the same time
        return (each.stage.name, num)

    monkeypatch.setattr(reuse_or_train, "train_stage", train)
    assert reuse_or_train.train_side_by_side(inputs("a", "b"), "run") == [("a", 2), ("b", 2)]


def test_stages_run_in_sequence_if_resources_do_not_suffice(room, monkeypatch):
    room.stages, running = 1, []

    def train(each, run_id, num):
        running.append(each.stage.name)
        time.sleep(0.05)
        return running.pop(), num, len(running)

    monkeypatch.setattr(reuse_or_train, "train_stage", train)
    assert reuse_or_train.train_side_by_side(inputs("a", "b"), "run") == [("a", 1, 0), ("b", 1, 0)]


def test_a_failing_stage_stops_the_one_in_parallel(room, monkeypatch):
    def train(each, run_id, num):
        if each.stage.name == "a":
            raise ValueError("a is broken")
        assert room.left.wait(30), "this stage was not stopped"

    monkeypatch.setattr(reuse_or_train, "train_stage", train)
    with pytest.raises(ValueError, match="a is broken"):
        reuse_or_train.train_side_by_side(inputs("a", "b"), "run")
    assert room.left.is_set()


def test_after_a_failing_stage_the_next_one_does_not_start(room, monkeypatch):
    room.stages, started = 1, []

    def train(each, run_id, num):
        started.append(each.stage.name)
        time.sleep(0.2)
        raise ValueError("broken")

    monkeypatch.setattr(reuse_or_train, "train_stage", train)
    with pytest.raises(ValueError, match="broken"):
        reuse_or_train.train_side_by_side(inputs("a", "b", "c"), "run")
    assert "c" not in started
