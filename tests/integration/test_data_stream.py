"""The Ray Data stream equals the plain loop bit for bit, whatever the workers, the segment, or where it resumes."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from jobs import data
from jobs.data import TrainingSequence, local_stream, training_stream
from jobs.prepare import PrepareConfig, prepare
from jobs.scenes import SceneConfig, write_scenes
from jobs.shards import Manifest, load_manifest
from tests.unit.test_data import CROP, assert_equal, joined

pytestmark = pytest.mark.ray
STEPS = {"seed": 3, "global_batch": 4, "first_step": 0, "last_step": 40}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    root = tmp_path_factory.mktemp("data")
    write_scenes(root / "coco", SceneConfig(num_train=10, num_val=1, min_side=64, max_side=96))
    return load_manifest(prepare(PrepareConfig(folder=root / "coco", out=str(root / "out"), split="train"))["train"])


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    temp_dir = tmp_path_factory.mktemp("ray")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=150_000_000, _temp_dir=str(temp_dir))
    yield
    ray.shutdown()


def stream(manifest: Manifest, **changes):
    return training_stream(manifest, CROP, **(STEPS | changes))


def local(manifest: Manifest, **changes) -> dict[str, np.ndarray]:
    return joined(local_stream(TrainingSequence(manifest=manifest, crop=CROP, **(STEPS | changes))))


def test_equals_the_plain_loop_over_several_segments(manifest, monkeypatch):
    """160 crops = 5 tasks of 32, in segments of 2 tasks; epochs of 10 end in the middle of everything."""
    monkeypatch.setattr(data, "TASKS_PER_SEGMENT", 2)
    monkeypatch.setattr(data, "TASKS_AHEAD", 1)
    batches = list(stream(manifest))
    assert [len(batch["x"]) for batch in batches] == [4] * 40
    assert_equal(joined(batches), local(manifest))


def test_two_ranks_share_the_batches_of_one(manifest):
    ranks = [joined(stream(manifest, rank=rank, world_size=2)) for rank in range(2)]
    union = {name: np.concatenate([rank[name] for rank in ranks]) for name in ranks[0]}
    order = np.argsort(union["position"])
    assert_equal({name: array[order] for name, array in union.items()}, local(manifest))


def test_resuming_equals_the_tail(manifest):
    tail = joined(stream(manifest, first_step=17))
    assert_equal(tail, {name: array[17 * 4 :] for name, array in local(manifest).items()})


def test_stopping_early_leaves_no_thread_and_no_task(manifest):
    def executors() -> list[str]:
        return [thread.name for thread in threading.enumerate() if "StreamingExecutor" in thread.name]

    batches = stream(manifest, last_step=4000)
    next(batches)
    assert executors()
    batches.close()
    deadline = time.monotonic() + 20
    while executors() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not executors()
    assert ray.cluster_resources()["CPU"] == 2
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


def test_no_steps_left(manifest):
    assert list(stream(manifest, first_step=40)) == []


def test_a_damaged_shard_is_one_clear_error(manifest):
    shard = Path(manifest.folder) / manifest.shards[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 4])
    try:
        with pytest.raises(ValueError, match="shard-00000.parquet is damaged at sample") as error:
            list(stream(manifest))
        assert "\n" not in str(error.value)
    finally:
        shard.write_bytes(whole)
