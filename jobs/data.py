"""Training crops as a Ray Data stream whose order and augmentation are pure functions of (seed, epoch, sample).

Position p of the endless training sequence belongs to epoch p // N and shows sample permutation(seed, epoch)[p % N],
augmented by a generator seeded with (seed, epoch, sample). Step s of a run takes positions s * G .. s * G + G - 1 (G =
global batch); rank r of W takes every W-th of them. So any number of workers sees the same global batches, and a
resumed run starts at its step without replaying anything.

Each train worker builds its own stream from tasks of the whole cluster. A batch is a dict of numpy arrays:
x (B, S, S, 3) uint8 RGB; label (B, S, S) uint8, 0 void; weight (B, S, S) uint8 1 or 3; sample, position (B,) int64.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback  # DataContext takes no other
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from egic.images import CropConfig, Sample, apply_plan, plan_center_crop, plan_training_crop
from jobs.shards import Manifest, read_index, read_samples

Batch = dict[str, np.ndarray]
CROPS_PER_TASK = 32
"""About 10 MB of 256x256 crops: enough to make a task's overhead small, few enough for a 150 MB object store."""
TASKS_PER_SEGMENT = 512
"""A Ray Dataset is planned as a whole, so an endless run is a chain of datasets."""
PAUSE_S = 0.01
TASKS_AHEAD = 12
"""The next dataset starts when this many tasks of the current one are unread: its start takes about a second."""


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
            raise ValueError(f"{self.manifest.folder} holds no samples; prepare a data set with pictures")
        if self.global_batch < 1 or self.global_batch % self.world_size:
            raise ValueError(
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
    def crops_per_task(self) -> int:
        """A multiple of the local batch, so that batches are views of what one task returned."""
        return self.local_batch * max(1, CROPS_PER_TASK // self.local_batch)

    @property
    def num_tasks(self) -> int:
        return -(-self.num_crops // self.crops_per_task)

    def task_positions(self, task: int) -> np.ndarray:
        """Positions of one task's crops, int64. The rank's i-th crop stands at first_step * G + rank + i * W."""
        first = task * self.crops_per_task
        local = np.arange(first, min(first + self.crops_per_task, self.num_crops), dtype=np.int64)
        return self.first_step * self.global_batch + self.rank + local * self.world_size


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Order of the samples in one epoch. The two last words keep it apart from every augmentation's seed."""
    return np.random.default_rng([seed, epoch, num_samples, 1]).permutation(num_samples)


def make_crops(sequence: TrainingSequence, positions: np.ndarray) -> Batch:
    """Read, decode and augment the samples at some positions of the sequence. Raises ValueError naming a bad sample."""
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


def _empty_batch(num: int, size: int) -> Batch:
    shapes = {"x": (num, size, size, 3), "label": (num, size, size), "weight": (num, size, size)}
    return {name: np.empty(shape, np.uint8) for name, shape in shapes.items()}


def _put(batch: Batch, row: int, manifest: Manifest, stored: Sample, plan, crop: CropConfig) -> None:
    try:
        batch["x"][row], batch["label"][row], batch["weight"][row] = apply_plan(stored, plan, crop)
    except (ValueError, IndexError) as error:
        sample = int(batch["sample"][row])
        name, shard = read_index(manifest).name_and_shard(manifest, sample)
        raise ValueError(f"shard {shard}, sample {sample} ({name}): {error}; run jobs.prepare again") from error


def local_stream(sequence: TrainingSequence) -> Iterator[Batch]:
    """The same batches as `training_stream`, made here, one after the other, without Ray."""
    for task in range(sequence.num_tasks):
        yield from _split(make_crops(sequence, sequence.task_positions(task)), sequence.local_batch)


def _split(crops: Batch, size: int) -> Iterator[Batch]:
    for first in range(0, len(crops["x"]), size):
        yield {name: array[first : first + size] for name, array in crops.items()}


def validation_batches(
    manifest: Manifest, crop: CropConfig, num: int, batch: int, *, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Centre crops of the first `num` samples (or all there are), without Ray; ranks take every world_size-th."""
    samples = np.arange(min(num, manifest.num_samples), dtype=np.int64)[rank::world_size]
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
) -> Iterator[Batch]:
    """Batches of steps first_step .. last_step - 1 for one rank, made by Ray Data tasks ahead of their use.

    `num_cpus` is what each task reserves, `num_tasks_at_once` how many run for this rank: keep the sum over all ranks
    near the cores that training leaves, more processes than cores are slower. Closing the iterator stops all tasks.
    Raises ValueError naming the shard if data is damaged.
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
    return _chained(sequence, num_cpus, num_tasks_at_once)


def _chained(sequence: TrainingSequence, num_cpus: float, num_tasks_at_once: int) -> Iterator[Batch]:
    """One segment after the other; a thread starts the next while the current one still has tasks unread."""
    firsts = range(0, sequence.num_tasks, TASKS_PER_SEGMENT)
    batches_per_task = sequence.crops_per_task // sequence.local_batch

    def start(first: int) -> _Started:
        return _Started(_segment(sequence, first, num_cpus, num_tasks_at_once))

    with ThreadPoolExecutor(1) as starter:
        upcoming: Future | None = starter.submit(start, firsts[0]) if firsts else None
        current: _Started | None = None
        try:
            for first in firsts:
                assert upcoming is not None  # asked for while the one before was read
                current, upcoming = upcoming.result(), None
                num_tasks = min(TASKS_PER_SEGMENT, sequence.num_tasks - first)
                start_at = max(0, num_tasks - TASKS_AHEAD) * batches_per_task
                for number, batch in enumerate(current):
                    if number == start_at and first + TASKS_PER_SEGMENT in firsts:
                        upcoming = starter.submit(start, first + TASKS_PER_SEGMENT)
                    yield batch
        finally:
            for open_segment in (current, upcoming.result() if upcoming else None):
                if open_segment is not None:
                    open_segment.close()


class _Started:
    """An iterator whose first batch was already asked for, so that its tasks run."""

    def __init__(self, batches: Generator[Batch, None, None]) -> None:
        self._batches = batches
        self._first = next(batches)

    def __iter__(self) -> Iterator[Batch]:
        yield self._first
        yield from self._batches

    def close(self) -> None:
        self._batches.close()


class _Paced(ExecutionCallback):
    """A pause in each turn of Ray Data's scheduling loop, which else takes a core while training is the slower part."""

    def on_execution_step(self, executor) -> None:
        time.sleep(PAUSE_S)


class _CropTasks(Datasource):
    """Some tasks of a sequence as a Ray datasource: reading a block IS decoding and cropping, one operator in all."""

    def __init__(self, sequence: TrainingSequence, tasks: range) -> None:
        super().__init__()
        self._sequence, self._tasks = sequence, tasks

    def estimate_inmemory_data_size(self) -> int:
        return sum(self._num_bytes(len(self._sequence.task_positions(task))) for task in self._tasks)

    def get_read_tasks(self, parallelism, per_task_row_limit=None, data_context=None) -> list[ReadTask]:
        sequence = ray.put(self._sequence)  # once, instead of inside every task

        def read(positions: np.ndarray) -> list:
            return [BlockAccessor.batch_to_block(make_crops(ray.get(sequence), positions))]

        chunks = [self._sequence.task_positions(task) for task in self._tasks]
        return [ReadTask(partial(read, positions), self._metadata(len(positions))) for positions in chunks]

    def _metadata(self, num: int) -> BlockMetadata:
        return BlockMetadata(num_rows=num, size_bytes=self._num_bytes(num), input_files=None, exec_stats=None)

    def _num_bytes(self, num: int) -> int:
        return num * (5 * self._sequence.crop.size**2 + 16)


def _segment(
    sequence: TrainingSequence, first: int, num_cpus: float, num_tasks_at_once: int
) -> Generator[Batch, None, None]:
    """One Ray Dataset of at most TASKS_PER_SEGMENT tasks, each a block of finished crops, in order."""
    tasks = range(first, min(first + TASKS_PER_SEGMENT, sequence.num_tasks))
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [_Paced]
    with ray.data.DataContext.current(context):
        dataset = ray.data.read_datasource(
            _CropTasks(sequence, tasks),
            num_cpus=num_cpus,
            compute=ray.data.TaskPoolStrategy(size=min(num_tasks_at_once, len(tasks))),
            override_num_blocks=len(tasks),
        )
    batches = iter(dataset.iter_batches(batch_size=sequence.local_batch, batch_format="numpy", prefetch_batches=2))
    try:
        yield from batches
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, ValueError):
            raise
        raise ValueError(str(error.cause).splitlines()[0]) from error  # Ray appends lines of its own advice
    finally:
        batches.close()
