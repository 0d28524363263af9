"""Each use of Ray's private interface still works. The docstring of a failing test says what is broken."""

import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest
import ray
import ray.data
import ray.train
from ray.train.torch import TorchTrainer
from ray.util.placement_group import placement_group, placement_group_table

from jobs.cluster import ray_internals
from jobs.cluster.ray_internals import SNAPSHOT, put_broken_list_aside, release_reserved, trainer
from jobs.storage.files import Folder
from jobs.training.worker import listed

ROOT = Path(__file__).resolve().parents[4]

USE_TOKEN = """
import os, ray
os.environ.pop("RAY_AUTH_MODE", None)
from jobs.cluster.ray_internals import use_token
use_token()
try:
    ray.init("127.0.0.1:1")
except ray.exceptions.AuthenticationError:
    print("asked for a token")
"""


def test_use_token_authenticates_a_local_ray(tmp_path):
    """Broken: clusters with a token (all that `ray start` makes) cannot be joined, and local starts log a warning."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", USE_TOKEN], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "asked for a token", done.stderr


def test_the_trainer_leaves_out_one_callback_of_ray():
    """Broken: each stage starts another process, which logs a warning every second if no dashboard runs."""

    def kinds(trainer) -> set[str]:
        return {type(callback).__name__ for callback in trainer._create_default_callbacks()}

    assert kinds(TorchTrainer(print)) - kinds(trainer(print)) == {"PlacementGroupCleanerCallback"}


@ray.remote(num_cpus=0)
class Controller:
    def reserve(self) -> tuple[str, str]:
        group = placement_group([{"CPU": 0.5}])
        ray.get(group.ready())
        return group.id.hex(), ray.get_runtime_context().get_actor_id()


@pytest.mark.ray
@pytest.mark.slow
def test_release_reserved_frees_the_resources_of_a_dead_controller(short_folder):
    """Broken: when a controller has died, its workers' CPUs stay reserved, and the next workers wait forever."""
    ray.init("local", num_cpus=2, include_dashboard=False, _temp_dir=str(short_folder))
    try:
        dead, other = Controller.remote(), Controller.remote()
        (group, actor), (kept, _) = ray.get([dead.reserve.remote(), other.reserve.remote()])
        ray.kill(dead)
        deadline = time.monotonic() + 30
        while placement_group_table()[group]["state"] != "REMOVED" and time.monotonic() < deadline:
            release_reserved(actor)
            time.sleep(0.1)
        states = {name: each["state"] for name, each in placement_group_table().items()}
        assert states == {group: "REMOVED", kept: "CREATED"}
    finally:
        ray.shutdown()


def one_report(config: dict) -> None:
    Path(config["folder"], "meta.json").write_text("{}")
    ray.train.report({"step": 1}, checkpoint=ray.train.Checkpoint.from_directory(config["folder"]))


@pytest.mark.ray
@pytest.mark.slow
def test_a_damaged_list_of_checkpoints_is_moved_aside(short_folder, tmp_path):
    """Broken: a stage with a damaged list of checkpoints, or without one after a full disk, cannot be continued."""
    place = Folder(str(tmp_path / "stage"))
    (tmp_path / "report").mkdir()
    run = ray.train.RunConfig(name="stage", storage_path=str(tmp_path))
    ray.init("local", num_cpus=2, include_dashboard=False, _temp_dir=str(short_folder))
    try:
        trainer(one_report, train_loop_config={"folder": str(tmp_path / "report")}, run_config=run).fit()
    finally:
        ray.shutdown()
    (name,) = listed(place)
    put_broken_list_aside(place)
    assert SNAPSHOT in place.names()
    whole = place.read(SNAPSHOT)
    for content in (b"", b"{}", b"[1]", whole[:-9], whole.replace(name.encode(), b"checkpoint_gone")):
        place.write(SNAPSHOT, content)
        assert listed(place) == []
        put_broken_list_aside(place)
        assert SNAPSHOT not in place.names() and f"{SNAPSHOT}.damaged" in place.names(), content


@pytest.mark.ray
@pytest.mark.slow
def test_pace_dataset_limits_the_scheduling_loop(short_folder, monkeypatch):
    """Broken: the scheduling loop of a dataset keeps a core busy, or its tasks wait until their blocks are read."""
    taken, pauses = ray_internals.BlockTaken(), []
    monkeypatch.setattr(taken, "wait", lambda time_s: pauses.append(time_s) or Event.wait(taken, time_s))
    ray.init("local", num_cpus=2, include_dashboard=False, _temp_dir=str(short_folder))
    try:
        context = ray.data.DataContext.get_current().copy()
        assert isinstance(context._max_num_blocks_in_streaming_gen_buffer, int)
        ray_internals.pace_dataset(context, 7, taken)
        with ray.data.DataContext.current(context):
            assert ray.data.range(5).count() == 5
            taken.set()
            assert sum(len(batch["id"]) for batch in ray.data.range(5).map_batches(lambda x: x).iter_batches()) == 5
    finally:
        ray.shutdown()
    assert not taken.is_set()
    assert pauses[0] == 0.01 and max(pauses) > 0.01 and pauses[-1] <= ray_internals.LONGEST_PAUSE_S
