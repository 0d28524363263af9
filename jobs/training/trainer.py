"""The driver's side of a stage on Ray Train: the trainer, restarts, and an early stop."""

import logging
from pathlib import Path

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from egic.errors import UserError
from jobs.cluster import ray_internals, shutdown
from jobs.cluster.ray_internals import put_broken_list_aside, release_reserved
from jobs.cluster.resources import of_worker
from jobs.training import checkpoints
from jobs.training.reports import Reports
from jobs.training.stage import load_stage
from jobs.training.worker import KEPT_CHECKPOINTS, MAX_ROLLBACKS, TrainJob, train_worker

log = logging.getLogger(__name__)

RESIZE_EVERY_S = 30.0
"""Interval at which an elastic group of workers checks for new nodes. It grows by restarting from a checkpoint."""


def fit(job: TrainJob, reports: Reports) -> ray.train.Result:
    """Run the trainer; a run with the same name resumes from its last checkpoint.

    Raises UserError for errors that a restart cannot solve, KeyboardInterrupt when the run was asked to stop.
    """
    compute, place = job.config.compute, job.place
    put_broken_list_aside(place)
    place.remove(checkpoints.STOP)
    allowed_rollbacks = MAX_ROLLBACKS if job.config.on_nan == "rollback" else 0
    settings = load_stage(job.stage).settings(job.config)
    trainer = ray_internals.trainer(
        train_worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=(compute.min_workers, compute.max_workers) if compute.is_elastic else compute.max_workers,
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
            use_gpu=compute.use_gpu,
            resources_per_worker=of_worker(compute),
            # GPUs on one node communicate faster; CPU workers are spread, since on one node they would share its cores.
            placement_strategy="PACK" if compute.use_gpu else "SPREAD",
        ),
        run_config=RunConfig(
            name=job.name,
            storage_path=place.path.rpartition("/")[0],
            storage_filesystem=place.filesystem,
            failure_config=FailureConfig(max_failures=compute.max_failures + allowed_rollbacks),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            callbacks=[reports],
            # On a busy machine, Ray Train logs warnings with a traceback for slow requests, which it repeats anyway.
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        with shutdown.stoppable(lambda: checkpoints.ask_to_stop(place)):
            result = fit_again(trainer, compute.max_failures)
    except ray.train.TrainingFailedError as e:
        cause = e
        while isinstance(cause, ray.train.ControllerError):
            cause = cause.controller_failure
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from e
        raise
    if result.metrics["step"] < settings.steps:  # stopped on request
        raise KeyboardInterrupt
    known = [Path(checkpoint.path).name for checkpoint, _ in result.best_checkpoints]
    checkpoints.remove_orphans(place, Path(result.checkpoint.path).name, known, KEPT_CHECKPOINTS)
    return result


def fit_again(trainer: TorchTrainer, max_failures: int) -> ray.train.Result:
    """`trainer.fit()`, repeated when Ray Train's controller dies, since Ray restarts workers but not the controller."""
    for failure in range(max_failures + 1):
        try:
            return shutdown.run_until_left(trainer.fit)
        except ray.exceptions.ActorDiedError as e:
            if shutdown.stopping.is_set():
                raise KeyboardInterrupt from e
            if failure == max_failures:
                raise
            log.warning("Ray Train's controller died (%s): resuming from the last checkpoint", str(e).splitlines()[0])
            release_reserved(e.actor_id)
    raise AssertionError  # the last failure is raised above
