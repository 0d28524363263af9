"""Training crops as a Ray Data stream whose order and augmentation are pure functions of (seed, epoch, sample).

Position p of the endless training sequence belongs to epoch p // N and shows sample permutation(seed, epoch)[p % N],
augmented by a generator seeded with (seed, epoch, sample). Step s of a run takes positions s * G .. s * G + G - 1 (G =
global batch); rank r of W takes every W-th of them. So any number of workers sees the same global batches, and a
resumed run starts at its step without replaying anything.

Each train worker builds its own stream from tasks of the whole cluster. A batch is a dict of numpy arrays:
x (B, S, S, 3) uint8 RGB; label (B, S, S) uint8, 0 void; weight (B, S, S) uint8 1 or 3; sample, position (B,) int64.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import cycle
from threading import Lock

import numpy as np
import ray.data
from ray.data import ExecutionResources
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from egic.errors import UserError
from egic.training.crops import CropConfig, Sample, apply_plan, plan_center_crop, plan_training_crop
from jobs.cluster.task_errors import raised_as_in_the_task
from jobs.data.shards import Manifest, read_index, read_samples

Crops = dict[str, np.ndarray]
"""Several crops with their labels, as described above; `egic.training.steps.Batch` has the same as tensors."""
CROPS_PER_BLOCK = 32
"""About 10 MB of 256x256 crops: the unit that passes through the object store."""
BLOCKS_PER_TASK = 4
"""A core idles for some 20 ms between two tasks, so a task makes several blocks. It ends without waiting until they are
read."""
BLOCKS_PER_SEGMENT = 512
"""Ray plans a dataset as a whole before it starts, so a long run is a chain of datasets of this length."""
BLOCKS_AHEAD = 12
"""The next dataset, which takes about a second to start, is started when this many blocks are still unread."""
BLOCKS_UNREAD = 6
"""Limit of unread blocks of each dataset: about 60 MB of the object store."""
_context_lock = Lock()
"""Ray Data has one current context per process, and lanes start their datasets in threads."""


@dataclass(frozen=True, kw_only=True)
class TrainingSequence:
    """The part of the training sequence that one rank reads, and how it is cropped."""

    manifest: Manifest
    crop: CropConfig
    seed: int
    global_batch: int
    first_step: int
    last_step: int
    """Exclusive."""
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.manifest.num_samples < 1:
            raise UserError(f"{self.manifest.folder} holds no samples; prepare a data set with pictures")
        if self.global_batch < 1 or self.global_batch % self.world_size:
            raise UserError(
                f"batch is {self.global_batch} for {self.world_size} workers; give a positive multiple of the workers"
            )
        if not 0 <= self.first_step <= self.last_step:
            raise ValueError(f"steps {self.first_step}..{self.last_step} are not a range")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not below the number of workers {self.world_size}")

    @property
    def local_batch(self) -> int:
        return self.global_batch // self.world_size

    @property
    def num_crops(self) -> int:
        return (self.last_step - self.first_step) * self.local_batch

    @property
    def crops_per_block(self) -> int:
        """A multiple of the local batch, so that batches are views of a block."""
        return self.local_batch * max(1, CROPS_PER_BLOCK // self.local_batch)

    @property
    def crop_bytes(self) -> int:
        """Size of one crop in a block."""
        return 5 * self.crop.size**2 + 16

    @property
    def num_blocks(self) -> int:
        return -(-self.num_crops // self.crops_per_block)

    def positions(self, block: int) -> np.ndarray:
        """Positions of one block's crops, int64. The rank's i-th crop is at first_step * G + rank + i * W."""
        first = block * self.crops_per_block
        local = np.arange(first, min(first + self.crops_per_block, self.num_crops), dtype=np.int64)
        return self.first_step * self.global_batch + self.rank + local * self.world_size


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Order of the samples in one epoch. The last two seed words make it differ from every augmentation's seed."""
    return np.random.default_rng([seed, epoch, num_samples, 1]).permutation(num_samples)


def make_crops(sequence: TrainingSequence, positions: np.ndarray) -> Crops:
    """Read, decode and augment the samples at some positions of the sequence. Raises UserError naming a bad sample."""
    manifest, seed, num_samples = sequence.manifest, sequence.seed, sequence.manifest.num_samples
    epochs = positions // num_samples
    orders = [permutation(seed, int(epoch), num_samples) for epoch in epochs]
    samples = np.array([order[p % num_samples] for order, p in zip(orders, positions, strict=True)], np.int64)
    batch = _empty_batch(len(positions), sequence.crop.size)
    batch |= {"sample": samples, "position": positions}
    for row, stored in enumerate(read_samples(manifest, samples)):
        rng = np.random.default_rng([seed, int(epochs[row]), int(samples[row])])
        height, width = stored.segments.shape
        plan = plan_training_crop(height, width, sequence.crop, rng)
        _put(batch, row, manifest, stored, plan, sequence.crop)
    return batch


def _empty_batch(num: int, size: int) -> Crops:
    shapes = {"x": (num, size, size, 3), "label": (num, size, size), "weight": (num, size, size)}
    return {name: np.empty(shape, np.uint8) for name, shape in shapes.items()}


def _put(batch: Crops, row: int, manifest: Manifest, stored: Sample, plan, crop: CropConfig) -> None:
    try:
        batch["x"][row], batch["label"][row], batch["weight"][row] = apply_plan(stored, plan, crop)
    except (ValueError, IndexError) as error:
        sample = int(batch["sample"][row])
        name, shard = read_index(manifest).name_and_shard(manifest, sample)
        raise UserError(f"shard {shard}, sample {sample} ({name}): {error}; run jobs.prepare again") from error


def local_stream(sequence: TrainingSequence) -> Iterator[Crops]:
    """The same batches as `training_stream`, made in this process, one after the other, without Ray."""
    for block in range(sequence.num_blocks):
        yield from _split(make_crops(sequence, sequence.positions(block)), sequence.local_batch)


def _split(crops: Crops, size: int) -> Iterator[Crops]:
    for first in range(0, len(crops["x"]), size):
        yield {name: array[first : first + size] for name, array in crops.items()}


def validation_batches(
    manifest: Manifest, crop: CropConfig, num: int, batch: int, *, rank: int = 0, world_size: int = 1
) -> Iterator[Crops]:
    """Centre crops of the first `num` samples (at most all), without Ray; each rank takes every world_size-th.

    If there are fewer samples than ranks, each rank takes all: their means stay the same.
    """
    samples = np.arange(min(num, manifest.num_samples), dtype=np.int64)
    samples = samples[rank::world_size] if len(samples) >= world_size else samples
    for first in range(0, len(samples), batch):
        chosen = samples[first : first + batch]
        crops = _empty_batch(len(chosen), crop.size) | {"sample": chosen, "position": chosen.copy()}
        for row, stored in enumerate(read_samples(manifest, chosen)):
            height, width = stored.segments.shape
            _put(crops, row, manifest, stored, plan_center_crop(height, width, crop), crop)
        yield crops


def training_stream(
    manifest: Manifest,
    crop: CropConfig,
    *,
    seed: int,
    global_batch: int,
    first_step: int,
    last_step: int,
    rank: int = 0,
    world_size: int = 1,
    num_cpus: float = 1.0,
    num_tasks_at_once: int = 2,
) -> Iterator[Crops]:
    """Batches of steps first_step .. last_step - 1 for one rank, made by Ray Data tasks ahead of their use.

    Each task reserves `num_cpus`, and `num_tasks_at_once` tasks run for this rank. Keep the sum over all ranks near the
    number of cores that the training does not use; more processes are slower. Closing the iterator stops all tasks.
    Raises UserError naming the shard if data is damaged.
    """
    sequence = TrainingSequence(
        manifest=manifest,
        crop=crop,
        seed=seed,
        global_batch=global_batch,
        first_step=first_step,
        last_step=last_step,
        rank=rank,
        world_size=world_size,
    )
    return _in_turn(sequence, num_cpus, num_tasks_at_once)


def _in_turn(sequence: TrainingSequence, num_cpus: float, num_lanes: int) -> Iterator[Crops]:
    """Batches of the sequence's blocks, which lanes make in turn: lane i makes blocks i, i + num_lanes, and so on.

    Each lane is a dataset with one task at a time. With several tasks, Ray's scheduling loop wakes up only when all of
    them have news, or ten times a second, and its tasks start together and wait for the slowest: cores idle.
    """
    num_lanes = min(num_lanes, sequence.num_blocks)
    if not num_lanes:
        return
    blocks = [range(lane, sequence.num_blocks, num_lanes) for lane in range(num_lanes)]
    with ThreadPoolExecutor(num_lanes) as starter, ExitStack() as open_lanes:
        lanes = [_Started(_lane(sequence, mine, num_cpus), starter) for mine in blocks]
        for lane in lanes:
            open_lanes.callback(lane.close)
        turns = cycle([iter(lane) for lane in lanes])
        for _ in range(sequence.num_blocks):
            yield from _split(next(next(turns)), sequence.local_batch)


def _lane(sequence: TrainingSequence, blocks: range, num_cpus: float) -> Generator[Crops, None, None]:
    """Whole blocks, one segment after the other; the next starts while the current one still has blocks unread."""
    segments = [blocks[first : first + BLOCKS_PER_SEGMENT] for first in range(0, len(blocks), BLOCKS_PER_SEGMENT)]

    with ThreadPoolExecutor(1) as starter:
        started = [_Started(_segment(sequence, segments[0], num_cpus), starter)]
        try:
            for segment, following in zip(segments, [*segments[1:], None], strict=True):
                start_at = max(0, len(segment) - BLOCKS_AHEAD)
                for number, block in enumerate(started[0]):
                    if number == start_at and following:
                        started.append(_Started(_segment(sequence, following, num_cpus), starter))
                    yield block
                started.pop(0).close()
        finally:
            for each in started:
                each.close()


class _Started:
    """An iterator whose first item is requested in a thread at once, so that its tasks start."""

    def __init__(self, items: Generator[Crops, None, None], starter: ThreadPoolExecutor) -> None:
        self._items = items
        self._first = starter.submit(next, items)

    def __iter__(self) -> Iterator[Crops]:
        yield self._first.result()
        yield from self._items

    def close(self) -> None:
        wait([self._first])
        self._items.close()


class _CropTasks(Datasource):
    """Blocks of a sequence as a Ray datasource that decodes and crops as it reads, so the dataset has one operator."""

    def __init__(self, sequence: TrainingSequence, blocks: range) -> None:
        super().__init__()
        positions = [sequence.positions(block) for block in blocks]
        self._sequence = sequence
        self.tasks = [positions[first : first + BLOCKS_PER_TASK] for first in range(0, len(blocks), BLOCKS_PER_TASK)]

    def estimate_inmemory_data_size(self) -> int:
        return self._sequence.crop_bytes * sum(len(positions) for task in self.tasks for positions in task)

    def get_read_tasks(self, parallelism, per_task_row_limit=None, data_context=None) -> list[ReadTask]:
        sequence = ray.put(self._sequence)  # once, instead of inside every task

        def read(task: list[np.ndarray]) -> Iterator:
            for positions in task:
                yield BlockAccessor.batch_to_block(make_crops(ray.get(sequence), positions))

        return [ReadTask(partial(read, task), self._metadata(task)) for task in self.tasks]

    def _metadata(self, task: list[np.ndarray]) -> BlockMetadata:
        num = sum(map(len, task))
        num_bytes = num * self._sequence.crop_bytes
        return BlockMetadata(num_rows=num, size_bytes=num_bytes, input_files=None, exec_stats=None)


def _segment(sequence: TrainingSequence, blocks: range, num_cpus: float) -> Generator[Crops, None, None]:
    """One Ray Dataset: blocks of finished crops, in order."""
    from jobs.cluster import ray_internals  # which the tasks do not need

    source, block_bytes = _CropTasks(sequence, blocks), sequence.crops_per_block * sequence.crop_bytes
    block_taken = ray_internals.BlockTaken()
    with _context_lock:
        context = ray.data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=BLOCKS_UNREAD * block_bytes
        )
        context.target_max_block_size = block_bytes * 3 // 4  # else Ray joins blocks up to 128 MB; it splits at 1.5 x
        context.enable_progress_bars = False
        ray_internals.pace_dataset(context, BLOCKS_PER_TASK, block_taken)
        with ray.data.DataContext.current(context):
            dataset = ray.data.read_datasource(
                source,
                num_cpus=num_cpus,
                compute=ray.data.TaskPoolStrategy(size=1),
                override_num_blocks=len(source.tasks),
            )
    found = iter(dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1))
    try:
        with raised_as_in_the_task():
            for block in found:
                block_taken.set()
                yield block
    finally:
        found.close()
