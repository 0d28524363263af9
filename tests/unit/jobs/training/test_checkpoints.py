"""The folder of a stage: which checkpoint to resume from, which ones to remove, and requests to stop."""

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


def test_an_empty_folder_has_no_checkpoint(place):
    assert checkpoints.candidates(place, None) == []
    assert place.read("x") is None and not place.exists("x")
    place.remove("x")
    assert checkpoints.rollbacks(place) == []


def test_checkpoints_are_ordered_by_step_and_not_by_name(place):
    """Names are times: if rank 0 moves to a node whose clock is an hour behind, newer checkpoints have older names."""
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


def test_a_committed_checkpoint_without_a_step_is_tried_first(place):
    put(place, "checkpoint_a", 10)
    put(place, "checkpoint_b", None)
    assert checkpoints.candidates(place, "checkpoint_b") == ["checkpoint_b", "checkpoint_a"]


def test_only_uncommitted_checkpoints_are_removed(place):
    for name, step in {"checkpoint_a": 10, "checkpoint_b": 20, "checkpoint_c": 30, "checkpoint_d": None}.items():
        put(place, name, step)
    checkpoints.remove_orphans(place, "checkpoint_b", ["checkpoint_a", "checkpoint_b"], 3)
    assert place.names(pyarrow.fs.FileType.Directory) == ["checkpoint_a", "checkpoint_b"]


def test_an_uncommitted_checkpoint_that_was_resumed_from_is_removed_later(place):
    """A worker that is killed before its first checkpoint is committed leaves it, and the next one resumes from it."""
    for step in (10, 20, 30, 40):
        put(place, f"checkpoint_{step}", step)
        if step > 10:
            known = [f"checkpoint_{s}" for s in range(20, step + 1, 10)]
            checkpoints.remove_orphans(place, f"checkpoint_{step}", known, 3)
        assert ("checkpoint_10" in place.names(pyarrow.fs.FileType.Directory)) == (step < 40)
    assert len(place.names(pyarrow.fs.FileType.Directory)) == 3


def test_rollbacks_are_counted_once_for_all_workers(place):
    checkpoints.note_rollback(place, 1, 17, "nan")
    checkpoints.note_rollback(place, 1, 17, "nan")
    checkpoints.note_rollback(place, 2, 18, "inf")
    assert [r["step"] for r in checkpoints.rollbacks(place)] == [17, 18]


def test_a_request_to_stop_is_a_file(place):
    checkpoints.ask_to_stop(place)
    assert place.exists(checkpoints.STOP)
    place.remove(checkpoints.STOP)
    assert not place.exists(checkpoints.STOP)
