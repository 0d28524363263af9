"""The train worker of a stage: its input `TrainJob`, its main function, and its `Session` for the training loop."""

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import CheckpointUploadMode

from egic import artifact
from egic.errors import NonFiniteError
from egic.metrics.perceptual import LPIPS
from jobs.cluster import resources
from jobs.cluster.start import quiet_ray
from jobs.config.schema import Config, Training
from jobs.data.shards import Manifest
from jobs.data.stream import training_stream, validation_batches
from jobs.storage.files import Folder
from jobs.training import checkpoints, loop
from jobs.training.stage import Components, load_stage

KEPT_CHECKPOINTS = 3
MAX_ROLLBACKS = 3
SWITCH_INTERVAL_S = 2e-4
"""How long another thread of the worker (Ray Data's scheduling loop) may keep the interpreter's lock while the training
waits for it. A step on a CPU takes the lock thousands of times, and Python's default is 5 ms."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h


@dataclass(frozen=True)
class TrainJob:
    """The input of every worker of a stage. Weights (parents, LPIPS, encoder) are in Ray's object store."""

    stage: str
    config: Config
    name: str
    """Name of the run in Ray Train's storage."""
    place: Folder
    """The folder of its checkpoints."""
    train: Manifest
    val: Manifest
    components: Mapping[str, ray.ObjectRef]
    """Name of a component -> files of the artifact that holds it."""
    lpips: ray.ObjectRef | None
    encoder: ray.ObjectRef | None
    """Weights of the discriminator's frozen encoder."""
    provenance: dict
    threads: int


class RaySession:
    """The `Session` of a Ray Train worker."""

    def __init__(self, job: TrainJob):
        context = ray.train.get_context()
        self.job, self.rank, self.num_workers = job, context.get_world_rank(), context.get_world_size()
        self.world_size = sharing(job.config, job.stage, self.num_workers)
        self.idle = self.rank >= self.world_size
        self.group: Any = None
        if self.world_size < self.num_workers:
            self.group = dist.new_group(range(self.world_size))  # GroupMember.NON_GROUP_MEMBER on idle workers
        self.device = ray.train.torch.get_device()
        self.place = job.place
        self.rollbacks = checkpoints.rollbacks(self.place)
        self.preemptible = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"
        self.announced = None
        self.elastic = job.config.compute.is_elastic
        self.room = self.places() if self.elastic else 0
        self.scratch = Path.cwd() / "uploads"  # below Ray's own working folder of the run
        if self.rank == 0:
            shutil.rmtree(self.scratch, ignore_errors=True)  # files of a killed worker
            if self.elastic:
                print(f"{job.stage}: {self.world_size} workers share the batch", flush=True)

    def stream(self, config: Config, first_step: int, settings: Training) -> Iterator[dict[str, np.ndarray]]:
        return training_stream(
            self.job.train, config.crop_of(settings), seed=config.seed, global_batch=settings.batch,
            first_step=first_step, last_step=settings.steps,
            rank=self.rank, world_size=self.world_size, num_cpus=resources.of_data_task(config.compute),
        )  # fmt: skip

    def val_batches(self, config: Config, settings: Training) -> Iterator[dict[str, np.ndarray]]:
        return validation_batches(
            self.job.val, config.crop_of(settings), settings.val_samples, max(1, settings.batch // self.world_size),
            rank=self.rank, world_size=self.world_size,
        )  # fmt: skip

    def checkpoints(self) -> Iterator[Path]:
        found = ray.train.get_checkpoint()
        committed = Path(found.path).name if found else None
        if committed and self.rank == 0:
            checkpoints.remove_orphans(self.place, committed, listed(self.place), KEPT_CHECKPOINTS)
        for name in checkpoints.candidates(self.place, committed):
            stored = ray.train.Checkpoint(f"{self.place.path}/{name}", self.place.filesystem)
            with stored.as_directory() as folder:
                yield Path(folder)

    def places(self) -> int:
        """Number of workers that a new group would have now."""
        return min(resources.places(self.job.config.compute), self.job.config.compute.max_workers)

    def look(self, step: int, next_step: int) -> tuple[str, int]:
        wish = ""
        if self.preemptible:
            going = ray.train.get_preemption_info()
            if going is not None and going.preempted_node_ids != self.announced:
                self.announced, wish = going.preempted_node_ids, "checkpoint"
        if self.elastic and self.rank == 0:
            before, self.room = self.room, self.places()
            if self.room > before:  # the group will restart with more workers, from its last checkpoint
                wish = "checkpoint"
        if self.rank == 0 and self.place.exists(checkpoints.STOP):
            wish = "stop"
        if self.num_workers == 1:
            return wish, next_step
        return ray.train.collective.broadcast_from_rank_zero((wish, next_step))

    def report(self, metrics: dict, write) -> None:
        if self.rank:
            ray.train.report({}, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return
        self.scratch.mkdir(mode=0o700, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        write(folder)
        ray.train.report(
            metrics, ray.train.Checkpoint.from_directory(folder), checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )  # fmt: skip

    def went_wrong(self, step: int, error: NonFiniteError) -> None:
        if self.job.config.on_nan == "rollback" and len(self.rollbacks) < MAX_ROLLBACKS:
            checkpoints.note_rollback(self.place, len(self.rollbacks) + 1, step, str(error))
            raise GoingBack(f"{error}; resuming from the last checkpoint, with half the learning rate") from None


def listed(place: Folder) -> list[str]:
    """Names of the committed checkpoints that Ray Train keeps; empty while it writes its list."""
    try:
        result = ray.train.Result.from_path(place.path, storage_filesystem=place.filesystem)
    except Exception:  # of any type, if the list is incomplete
        return []
    return [Path(checkpoint.path).name for checkpoint, _ in result.best_checkpoints]


class GoingBack(RuntimeError):
    """Ends the workers, so that Ray Train starts them again from the last checkpoint."""


def sharing(config: Config, stage: str, num_workers: int) -> int:
    """Number of workers that share the batch: the largest number that divides it evenly."""
    settings = load_stage(stage).settings(config)
    part = settings.batch // settings.batch_parts
    return max(n for n in range(1, num_workers + 1) if part % n == 0)


def train_worker(job: TrainJob) -> None:
    """The function that every train worker runs."""
    keep_freed_memory()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    torch.set_num_threads(job.threads)
    quiet_ray()
    components: Components = {}
    encoder = None
    if job.encoder is not None:
        components["encoder"] = encoder = ray.get(job.encoder)
    for name, ref in job.components.items():
        with tempfile.TemporaryDirectory() as folder:
            for file, content in ray.get(ref).items():
                Path(folder, file).write_bytes(content)
            components.update(artifact.load(Path(folder), name, encoder=encoder))
    if job.lpips is not None:
        components["lpips"] = LPIPS(ray.get(job.lpips), job.config.lpips_net)
    loop.train(job.stage, job.config, components, RaySession(job), job.provenance)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for later tensors instead of returning it to the system, which zeroes it again.

    Training steps allocate the same tensors every time, and take a sixth to a quarter less time on a CPU with this. The
    process never returns memory, so this is for training only. Returns False with another C library than glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])
