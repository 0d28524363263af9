"""The worker's session: requests to the loop, and the allocator that keeps freed memory."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from jobs.cluster import resources
from jobs.config.schema import ComputeConfig
from jobs.storage.files import Folder
from jobs.training import checkpoints
from jobs.training.worker import RaySession


@pytest.fixture
def session(tmp_path) -> RaySession:
    """Rank 0 of a group of one that may have three workers."""
    made = RaySession.__new__(RaySession)  # without Ray
    made.job = SimpleNamespace(config=SimpleNamespace(compute=ComputeConfig(workers="1:3")))
    made.rank, made.num_workers, made.preemptible, made.elastic, made.room = 0, 1, False, True, 1
    made.place = Folder(str(tmp_path))
    return made


def test_a_checkpoint_is_requested_before_the_group_grows(session, monkeypatch):
    """Once for each new node, and not for nodes that the group cannot use."""
    rooms = {10: 1, 20: 2, 30: 2, 40: 1, 50: 3, 60: 5}
    step = 0
    monkeypatch.setattr(resources, "places", lambda compute: rooms[step])
    wishes = {}
    for step in rooms:
        wishes[step], next_look = session.look(step, step + 10)
        assert next_look == step + 10
    assert [step for step, wish in wishes.items() if wish == "checkpoint"] == [20, 50]
    assert set(wishes.values()) == {"", "checkpoint"}


def test_stopping_has_priority_over_growing(session, monkeypatch):
    monkeypatch.setattr(resources, "places", lambda compute: 2)
    checkpoints.ask_to_stop(session.place)
    assert session.look(10, 20) == ("stop", 20)


FAULTS = """
import resource, sys
import torch
from jobs.training.worker import keep_freed_memory
torch.set_num_threads(1)
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def work():
    for _ in range(20):
        torch.ones(10 * 2**20).sum()  # 40 MB: above what glibc ever keeps by itself
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
@pytest.mark.slow
def test_freed_memory_is_reused():
    def faults(how: str) -> tuple[str, int]:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        kept, number = done.stdout.split()
        return kept, int(number)

    kept, few = faults("keep")
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert few < 100 < faults("leave")[1]
