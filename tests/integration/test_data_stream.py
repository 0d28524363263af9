"""The Ray Data stream equals the plain loop bit for bit, for any workers, segments and resumed steps."""

import io
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from PIL import Image

from egic.training.crops import CropConfig, Sample
from jobs.data import stream as data
from jobs.data.preparation import PrepareConfig, prepare
from jobs.data.shards import Manifest, StoredSample, load_manifest, read_samples, write_index, write_shard
from jobs.data.sources.scenes.scenes import SceneConfig, write_scenes
from jobs.data.stream import TrainingSequence, local_stream, training_stream
from tests.unit.jobs.data.test_stream import CROP, assert_equal, joined

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STEPS = {"seed": 3, "global_batch": 4, "first_step": 0, "last_step": 40}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    root = tmp_path_factory.mktemp("data")
    write_scenes(root / "coco", SceneConfig(num_train=10, num_val=1, min_side=64, max_side=96))
    return load_manifest(prepare((root / "coco",), str(root / "out"), PrepareConfig(split="train"))["train"])


@pytest.fixture(scope="module", autouse=True)
def cluster(short_folder):
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=150_000_000, _temp_dir=str(short_folder))
    yield
    ray.shutdown()


def stream(manifest: Manifest, **changes):
    return training_stream(manifest, CROP, **(STEPS | changes))


def local(manifest: Manifest, **changes) -> dict[str, np.ndarray]:
    return joined(local_stream(TrainingSequence(manifest=manifest, crop=CROP, **(STEPS | changes))))


def test_the_stream_equals_the_plain_loop_over_several_segments(manifest, monkeypatch):
    """160 crops = 20 blocks, made in 2 lanes, in segments of 4 blocks and tasks of 3; epochs of 10 end anywhere."""
    monkeypatch.setattr(data, "CROPS_PER_BLOCK", 8)
    monkeypatch.setattr(data, "BLOCKS_PER_SEGMENT", 4)
    monkeypatch.setattr(data, "BLOCKS_PER_TASK", 3)
    monkeypatch.setattr(data, "BLOCKS_AHEAD", 1)
    batches = list(stream(manifest))
    assert [len(batch["x"]) for batch in batches] == [4] * 40
    assert_equal(joined(batches), local(manifest))


def test_two_ranks_batches_together_equal_those_of_one(manifest):
    ranks = [joined(stream(manifest, rank=rank, world_size=2)) for rank in range(2)]
    union = {name: np.concatenate([rank[name] for rank in ranks]) for name in ranks[0]}
    order = np.argsort(union["position"])
    assert_equal({name: array[order] for name, array in union.items()}, local(manifest))


def test_resuming_equals_the_rest_of_the_stream(manifest):
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


@pytest.fixture
def large(tmp_path, manifest, request) -> Manifest:
    """Shards with `request.param` bytes of large pictures of noise, with segments of the first sample of `manifest`."""
    noise = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=95, subsampling=0)
    (stored,) = read_samples(manifest, [0])
    sample = Sample(
        jpeg=buffer.getvalue(), segments=np.ones((640, 640), np.uint8), segment_class=stored.segment_class[:2],
        segment_thing=stored.segment_thing[:2],
    )  # fmt: skip
    row = StoredSample(image_id=0, file_name="noise.jpg", sample=sample)
    entries, parts, num = [], [], 0
    while sum(entry["bytes"] for entry in entries) < request.param:
        rows = [replace(row, image_id=num + i) for i in range(128)]
        entry, part = write_shard(tmp_path, len(entries), rows)
        entries, parts, num = [*entries, entry], [*parts, part], num + len(rows)
    write_index(tmp_path, parts)
    return replace(manifest, folder=str(tmp_path), num_samples=num, shards=tuple(e["file"] for e in entries))


def own_memory() -> dict[int, int]:
    """Private memory in bytes of this process and of each Ray worker, without the shared object store."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    infos = {p.pid: p.memory_info() for p in processes if p == processes[0] or p.name().startswith("ray::")}
    return {pid: info.rss - info.shared for pid, info in infos.items()}


@pytest.mark.slow
@pytest.mark.faults  # measures memory, which a busy machine disturbs
@pytest.mark.parametrize("large", [100_000_000, 2_000_000_000], ids=["0.1 GB", "2 GB"], indirect=True)
def test_memory_is_bounded_for_any_size_of_data(large, short_folder):
    """Crops of 256x256, more than twice the object store, read by a consumer that is slow at first.

    Ray would spill what does not fit to its folder."""
    crop, num = CropConfig(), max(1024, large.num_samples)
    batches = training_stream(large, crop, seed=0, global_batch=16, first_step=0, last_step=num // 16)
    memory = []
    for step, _ in enumerate(batches):
        if step % 8 == 0:
            time.sleep(2 if step == 0 else 0.05)  # tasks run ahead up to their limit
            memory.append(own_memory())
    assert 256 * 256 * 5 * num > 2 * 150_000_000
    assert not list(short_folder.rglob("ray_spilled_objects*/*"))
    before, after = memory[len(memory) // 2], memory[-1]  # half of the crops are 170 MB and more
    assert sum(after[pid] - before[pid] for pid in before.keys() & after.keys()) < 60_000_000, memory


def test_a_stream_without_steps_is_empty(manifest):
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
