"""What a stage's folder says: which checkpoint to go on from, which ones to remove, and what was asked."""

import json

import pyarrow.fs
import pytest

from jobs.storage.files import Folder
from jobs.training import checkpoints


@pytest.fixture
def place(tmp_path) -> Folder:
    return Folder(str(tmp_path / "stage"))


def put(place: Folder, name: str, step: int | None) -> None:
    content = b"{" if step is None else json.dumps({"step": step}).encode()
    place.write(f"{name}/meta.json", content)


def test_an_empty_place(place):
    assert checkpoints.candidates(place, None) == []
    assert place.read("x") is None and not place.exists("x")
    place.remove("x")
    assert checkpoints.rollbacks(place) == []


def test_steps_decide_and_not_the_names_which_hold_a_clock(place):
    """Rank 0 moved to a node whose clock is an hour behind: its newer checkpoints have older names."""
    for name, step in {
        "checkpoint_13h": 10,
        "checkpoint_14h": 20,
        "checkpoint_12h": 30,
        "checkpoint_12h30": 40,
    }.items():
        put(place, name, step)
    order = ["checkpoint_12h", "checkpoint_14h", "checkpoint_13h"]
    assert checkpoints.candidates(place, "checkpoint_12h") == order
    assert checkpoints.candidates(place, None) == ["checkpoint_12h30", *order]


def test_a_committed_one_without_a_step_comes_first_and_hides_nothing(place):
    put(place, "checkpoint_a", 10)
    put(place, "checkpoint_b", None)
    assert checkpoints.candidates(place, "checkpoint_b") == ["checkpoint_b", "checkpoint_a"]


def test_only_uncommitted_ones_are_removed(place):
    for name, step in {"checkpoint_a": 10, "checkpoint_b": 20, "checkpoint_c": 30, "checkpoint_d": None}.items():
        put(place, name, step)
    checkpoints.remove_orphans(place, "checkpoint_b", ["checkpoint_a", "checkpoint_b"], 3)
    assert place.names(pyarrow.fs.FileType.Directory) == ["checkpoint_a", "checkpoint_b"]


def test_what_training_went_on_from_uncommitted_is_removed_when_newer_ones_are_there(place):
    """A worker that is killed before its first checkpoint is committed leaves it, and the next one goes on from it."""
    for step in (10, 20, 30, 40):
        put(place, f"checkpoint_{step}", step)
        if step > 10:
            known = [f"checkpoint_{s}" for s in range(20, step + 1, 10)]
            checkpoints.remove_orphans(place, f"checkpoint_{step}", known, 3)
        assert ("checkpoint_10" in place.names(pyarrow.fs.FileType.Directory)) == (step < 40)
    assert len(place.names(pyarrow.fs.FileType.Directory)) == 3


def test_rollbacks_are_counted_once_however_many_workers_note_them(place):
    checkpoints.note_rollback(place, 1, 17, "nan")
    checkpoints.note_rollback(place, 1, 17, "nan")
    checkpoints.note_rollback(place, 2, 18, "inf")
    assert [r["step"] for r in checkpoints.rollbacks(place)] == [17, 18]


def test_a_request_to_stop(place):
    checkpoints.ask_to_stop(place)
    assert place.exists(checkpoints.STOP)
    place.remove(checkpoints.STOP)
    assert not place.exists(checkpoints.STOP)
