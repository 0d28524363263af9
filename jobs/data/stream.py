"""Training crops as a stream whose order and augmentation are pure functions of (seed, epoch, sample).

Position p of the endless training sequence belongs to epoch p // N and shows sample permutation(seed, epoch)[p % N],
augmented by a generator seeded with (seed, epoch, sample). Step s of a run takes positions s * G .. s * G + G - 1 (G =
global batch); rank r of W takes every W-th of them. So any number of workers sees the same global batches, and a
resumed run starts at its step without replaying anything.

Each train worker reads its own stream, made ahead of its use by Ray tasks anywhere on the cluster. A batch is a dict of
numpy arrays: x (B, S, S, 3) uint8 RGB; label (B, S, S) uint8, 0 void; weight (B, S, S) uint8 1 or 3; sample, position
(B,) int64.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import ray

from egic.errors import UserError
from egic.training.crops import CropConfig, Sample, apply_plan, plan_center_crop, plan_training_crop
from jobs.data.shards import Manifest, read_index, read_samples

Crops = dict[str, np.ndarray]
"""Several crops with their labels, as described above; `egic.training.steps.Batch` has the same as tensors."""
CROPS_PER_BLOCK = 32
"""About 10 MB of 256x256 crops: what a task makes, and what crosses the object store at once."""
BLOCKS_AHEAD = 6
"""Blocks that are made before they are needed, at most: 60 MB of the object store."""


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
    def num_blocks(self) -> int:
        return -(-self.num_crops // self.crops_per_block)

    def positions(self, block: int) -> np.ndarray:
        """Positions of one block's crops, int64. The rank's i-th crop stands at first_step * G + rank + i * W."""
        first = block * self.crops_per_block
        local = np.arange(first, min(first + self.crops_per_block, self.num_crops), dtype=np.int64)
        return self.first_step * self.global_batch + self.rank + local * self.world_size


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Order of the samples in one epoch. The two last words keep it apart from every augmentation's seed."""
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
    """The same batches as `training_stream`, made here, one after the other, without Ray."""
    for block in range(sequence.num_blocks):
        yield from _split(make_crops(sequence, sequence.positions(block)), sequence.local_batch)


def _split(crops: Crops, size: int) -> Iterator[Crops]:
    for first in range(0, len(crops["x"]), size):
        yield {name: array[first : first + size] for name, array in crops.items()}


def validation_batches(
    manifest: Manifest, crop: CropConfig, num: int, batch: int, *, rank: int = 0, world_size: int = 1
) -> Iterator[Crops]:
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
) -> Iterator[Crops]:
    """Batches of steps first_step .. last_step - 1 for one rank, made by Ray tasks ahead of their use.

    `num_cpus` is what each task reserves, `num_tasks_at_once` how many run for this rank: keep the sum over all ranks
    near the cores that training leaves, more processes than cores are slower. Closing the iterator stops all tasks.
    Raises UserError naming the shard if data is damaged.
    """
    sequence = TrainingSequence(
        manifest=manifest, crop=crop, seed=seed, global_batch=global_batch, first_step=first_step, last_step=last_step,
        rank=rank, world_size=world_size,
    )  # fmt: skip
    return _made_ahead(sequence, num_cpus, num_tasks_at_once)


def _made_ahead(sequence: TrainingSequence, num_cpus: float, num_tasks: int) -> Iterator[Crops]:
    """Batches of the sequence's blocks in order, with up to `num_tasks` of the blocks ahead being made at any time."""
    # An error that a retry may mend, such as that of a network disk, is retried.
    make = ray.remote(num_cpus=num_cpus, max_retries=3, retry_exceptions=True, scheduling_strategy="SPREAD")(_block)
    stored = ray.put(sequence)  # once, instead of in every task
    todo = iter(range(sequence.num_blocks))
    ahead: deque[ray.ObjectRef] = deque()
    unfinished: list[ray.ObjectRef] = []

    def start_tasks(wait: bool) -> None:
        nonlocal unfinished
        if unfinished:
            _, unfinished = ray.wait(
                unfinished, num_returns=1 if wait else len(unfinished), timeout=None if wait else 0, fetch_local=False
            )
        while len(unfinished) < num_tasks and len(ahead) < BLOCKS_AHEAD and (block := next(todo, None)) is not None:
            ahead.append(make.remote(stored, block))
            unfinished.append(ahead[-1])

    try:
        start_tasks(wait=False)
        while ahead:
            while ahead[0] in unfinished:
                start_tasks(wait=True)
            crops = ray.get(ahead.popleft())
            if isinstance(crops, UserError):
                raise crops
            for batch in _split(crops, sequence.local_batch):
                start_tasks(wait=False)
                yield batch
    finally:
        for block in ahead:
            ray.cancel(block)


def _block(sequence: TrainingSequence, block: int) -> Crops | UserError:
    """One block of crops, in a task. What a user can mend is returned, so that Ray does not try again."""
    try:
        return make_crops(sequence, sequence.positions(block))
    except UserError as error:
        return error
