"""A stage on Ray Train: what its workers get and do, and how their reports reach MLflow."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from torch import nn

from egic import checkpoint
from egic.memory import keep_freed_memory
from egic.perceptual import LPIPS
from jobs import data, loop
from jobs.cluster import quiet_ray
from jobs.config import Config, Training
from jobs.reports import Reports
from jobs.shards import Manifest

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 3


@dataclass(frozen=True)
class Job:
    """What every worker of a stage gets. Parents and LPIPS travel through Ray's object store, not through files."""

    stage: str
    config: Config
    train: Manifest
    val: Manifest
    components: Mapping[str, ray.ObjectRef]
    """Name -> files of the artifact that holds it."""
    lpips: ray.ObjectRef | None
    provenance: dict
    threads: int


class RaySession:
    """`loop.Session` inside a Ray Train worker."""

    def __init__(self, job: Job):
        context = ray.train.get_context()
        self.job, self.rank, self.world_size = job, context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()

    def stream(self, config: Config, first_step: int, settings: Training) -> Iterator[dict[str, np.ndarray]]:
        return data.training_stream(
            self.job.train, config.crop, seed=config.seed, global_batch=settings.batch, first_step=first_step,
            last_step=settings.steps, rank=self.rank, world_size=self.world_size, num_cpus=config.compute.data_cpus,
        )  # fmt: skip

    def val_batches(self, config: Config, settings: Training) -> Iterator[dict[str, np.ndarray]]:
        return data.validation_batches(
            self.job.val, config.crop, settings.val_samples, max(1, settings.batch // self.world_size),
            rank=self.rank, world_size=self.world_size,
        )  # fmt: skip

    def restore(self) -> Path | None:
        found = ray.train.get_checkpoint()
        return Path(found.to_directory()) if found else None

    def report(self, metrics: dict, write) -> None:
        if self.rank:
            ray.train.report({})
            return
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def train_worker(job: Job) -> None:
    """The function that every train worker runs."""
    keep_freed_memory()
    torch.set_num_threads(job.threads)
    quiet_ray()
    components: dict[str, nn.Module] = {}
    for name, ref in job.components.items():
        with tempfile.TemporaryDirectory() as folder:
            for file, content in ray.get(ref).items():
                Path(folder, file).write_bytes(content)
            components |= checkpoint.load(Path(folder), name)
    if job.lpips is not None:
        components["lpips"] = LPIPS(ray.get(job.lpips))
    loop.train(job.stage, job.config, components, RaySession(job), job.provenance)


def fit(job: Job, name: str, reports: Reports) -> ray.train.Result:
    """Run the trainer; the same name goes on from the last checkpoint in the same storage."""
    compute = job.config.compute
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=compute.workers,
            use_gpu=compute.use_gpu,
            resources_per_worker={"CPU": compute.cpus_per_worker} | ({"GPU": 1} if compute.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(Path(job.config.output).absolute() / "checkpoints"),
            failure_config=FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            callbacks=[reports],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as e:
        failures = getattr(e, "worker_failures", {}) or {0: e}
        causes = [getattr(f, "cause", None) or f for f in failures.values()]
        known = [c for c in causes if isinstance(c, (ValueError, loop.NonFiniteError))]
        if known:
            raise ValueError(str(known[0])) from e
        raise
