"""A stage on Ray Train: what its workers get and do, and how their reports reach MLflow."""

import logging
import os
import shutil
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
from ray.train import CheckpointConfig, CheckpointUploadMode, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from egic import artifact
from egic.errors import NonFiniteError, UserError
from egic.metrics.perceptual import LPIPS
from jobs.cluster import start
from jobs.cluster.start import quiet_ray
from jobs.config.schema import Config, Training
from jobs.data.shards import Manifest
from jobs.data.stream import training_stream, validation_batches
from jobs.storage.files import Folder
from jobs.tracking import store
from jobs.training import checkpoints, loop
from jobs.training.reports import Reports
from jobs.training.stage import Components, load_stage
from jobs.training.worker import keep_freed_memory

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 3
MAX_ROLLBACKS = 3
RESIZE_EVERY_S = 30.0
"""How often a group whose size may change looks for new nodes; to grow it starts again from the last checkpoint."""


@dataclass(frozen=True)
class Job:
    """What every worker of a stage gets. Parents, LPIPS and encoder travel through Ray's object store, not as files."""

    stage: str
    config: Config
    name: str
    """Of the run, in Ray Train's storage."""
    place: Folder
    """Where its checkpoints are."""
    train: Manifest
    val: Manifest
    components: Mapping[str, ray.ObjectRef]
    """Name -> files of the artifact that holds it."""
    lpips: ray.ObjectRef | None
    encoder: ray.ObjectRef | None
    """Weights of the discriminator's frozen encoder."""
    provenance: dict
    threads: int


class RaySession:
    """`loop.Session` inside a Ray Train worker."""

    def __init__(self, job: Job):
        context = ray.train.get_context()
        self.job, self.rank, self.num_workers = job, context.get_world_rank(), context.get_world_size()
        self.world_size = sharing(job.config, job.stage, self.num_workers)
        self.idle = self.rank >= self.world_size
        self.group: Any = None
        if self.world_size < self.num_workers:
            self.group = dist.new_group(range(self.world_size))  # -100 to the idle ones, who use it for nothing
        self.device = ray.train.torch.get_device()
        self.place = job.place
        self.rollbacks = checkpoints.rollbacks(self.place)
        self.preemptible = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"
        self.announced = None
        self.elastic = job.config.compute.min_workers < job.config.compute.max_workers
        self.room = self.places() if self.elastic else 0
        self.scratch = Path.cwd() / "uploads"  # Ray gives each run a folder of its own, and removes it with the session
        if self.rank == 0:
            shutil.rmtree(self.scratch, ignore_errors=True)  # what a killed worker left
            if self.elastic:
                print(f"{job.stage}: {self.world_size} workers share the batch", flush=True)

    def stream(self, config: Config, first_step: int, settings: Training) -> Iterator[dict[str, np.ndarray]]:
        return training_stream(
            self.job.train, config.crop_of(settings), seed=config.seed, global_batch=settings.batch,
            first_step=first_step, last_step=settings.steps,
            rank=self.rank, world_size=self.world_size, num_cpus=config.compute.data_cpus,
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
            checkpoints.remove_orphans(self.place, committed, KEPT_CHECKPOINTS)
        for name in checkpoints.candidates(self.place, committed):
            stored = ray.train.Checkpoint(f"{self.place.path}/{name}", self.place.filesystem)
            with stored.as_directory() as folder:
                yield Path(folder)

    def places(self) -> int:
        """How many workers the group would have now."""
        return min(start.places(self.job.config.compute), self.job.config.compute.max_workers)

    def look(self, step: int, next_step: int) -> tuple[str, int]:
        wish = ""
        if self.preemptible:
            going = ray.train.get_preemption_info()
            if going is not None and going.preempted_node_ids != self.announced:
                self.announced, wish = going.preempted_node_ids, "checkpoint"
        if self.elastic and self.rank == 0:
            before, self.room = self.room, self.places()
            if self.room > before:  # the group will grow, and start again from its last checkpoint for that
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
            raise GoingBack(f"{error}; going back to the last checkpoint, and on with half the learning rate") from None


class Trainer(ray.train.torch.TorchTrainer):
    """Without the actor that frees what a dead controller had reserved: it asks the dashboard, which a Ray started here
    does not have; `fit_again` does the same. And without an answer to Ctrl-C, which ends the program with status 1 and
    no word: `cluster.interruptible` has one."""

    def _create_default_callbacks(self) -> list:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]

    def _register_sigint_handler(self, controller: object) -> None:
        pass


class GoingBack(RuntimeError):
    """Ends the workers, so that Ray Train starts them again from the last checkpoint."""


def sharing(config: Config, stage: str, num_workers: int) -> int:
    """How many of the workers share the batch: as many as it can be divided among evenly."""
    batch = load_stage(stage).settings(config).batch
    unit = batch // 2 if stage == "gan" else batch  # half a batch for D, half for g_s
    return max(n for n in range(1, num_workers + 1) if unit % n == 0)


def train_worker(job: Job) -> None:
    """The function that every train worker runs."""
    keep_freed_memory()
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
        components["lpips"] = LPIPS(ray.get(job.lpips))
    loop.train(job.stage, job.config, components, RaySession(job), job.provenance)


def fit(job: Job, reports: Reports) -> ray.train.Result:
    """Run the trainer; the same name goes on from the last checkpoint in the same storage.

    Raises UserError for what would come again at every try, KeyboardInterrupt when the run was told to stop.
    """
    compute, place = job.config.compute, job.place
    checkpoints.repair(place)
    place.remove(checkpoints.STOP)
    allowed_rollbacks = MAX_ROLLBACKS if job.config.on_nan == "rollback" else 0
    settings = load_stage(job.stage).settings(job.config)
    elastic = compute.min_workers < compute.max_workers
    trainer = Trainer(
        train_worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=(compute.min_workers, compute.max_workers) if elastic else compute.max_workers,
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
            use_gpu=compute.use_gpu,
            resources_per_worker=start.of_worker(compute),
            # GPUs of one node talk faster than those of two; CPU workers of one node share its cores while others idle.
            placement_strategy="PACK" if compute.use_gpu else "SPREAD",
        ),
        run_config=RunConfig(
            name=job.name,
            storage_path=place.path.rpartition("/")[0],
            storage_filesystem=place.filesystem,
            failure_config=FailureConfig(max_failures=compute.max_failures + allowed_rollbacks),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            callbacks=[reports],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        with start.stoppable(lambda: checkpoints.ask_to_stop(place)):
            result = fit_again(trainer, compute.max_failures)
    except ray.train.TrainingFailedError as e:
        cause = e
        while isinstance(cause, ray.train.ControllerError):
            cause = cause.controller_failure
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from e
        raise
    if result.metrics["step"] < settings.steps:  # as it was told
        raise KeyboardInterrupt
    checkpoints.remove_orphans(place, Path(result.checkpoint.path).name, KEPT_CHECKPOINTS)
    return result


def fit_again(trainer: Trainer, max_failures: int) -> ray.train.Result:
    """`trainer.fit()`, started again when Ray Train's controller dies: Ray restarts workers, but not that."""
    for failure in range(max_failures + 1):
        try:
            return trainer.fit()
        except ray.exceptions.ActorDiedError as e:
            if start.stopping.is_set() or store.interrupted.is_set():
                raise KeyboardInterrupt from e
            if failure == max_failures:
                raise
            log.warning("Ray Train's controller died (%s): going on from the last checkpoint", str(e).splitlines()[0])
            start.release_reserved(e.actor_id)
    raise AssertionError  # the last failure is raised above
