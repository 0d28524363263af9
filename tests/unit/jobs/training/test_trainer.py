"""What a worker's session asks of the loop."""

from types import SimpleNamespace

import pytest

from jobs.cluster import start
from jobs.config.schema import ComputeConfig
from jobs.storage.files import Folder
from jobs.training import checkpoints
from jobs.training.trainer import RaySession


@pytest.fixture
def session(tmp_path) -> RaySession:
    """Rank 0 of a group of one that may have three workers."""
    made = RaySession.__new__(RaySession)  # without Ray
    made.job = SimpleNamespace(config=SimpleNamespace(compute=ComputeConfig(workers="1:3")))
    made.rank, made.num_workers, made.preemptible, made.elastic, made.room = 0, 1, False, True, 1
    made.place = Folder(str(tmp_path))
    return made


def test_a_group_that_will_grow_writes_a_checkpoint_first(session, monkeypatch):
    """Once for each node that comes, and not for those that it has no use for."""
    rooms = {10: 1, 20: 2, 30: 2, 40: 1, 50: 3, 60: 5}
    step = 0
    monkeypatch.setattr(start, "places", lambda compute: rooms[step])
    wishes = {}
    for step in rooms:
        wishes[step], next_look = session.look(step, step + 10)
        assert next_look == step + 10
    assert [step for step, wish in wishes.items() if wish == "checkpoint"] == [20, 50]
    assert set(wishes.values()) == {"", "checkpoint"}


def test_the_end_comes_before_growing(session, monkeypatch):
    monkeypatch.setattr(start, "places", lambda compute: 2)
    checkpoints.ask_to_stop(session.place)
    assert session.look(10, 20) == ("stop", 20)
