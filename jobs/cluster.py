"""The Ray cluster: joining or starting it, what stages need of it, and leaving it when told to stop."""

import logging
import os
import signal
from pathlib import Path

import ray
import ray.train
import ray.train.torch

from jobs import tracking
from jobs.config import ComputeConfig


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS or a submitted job names, else start Ray on this machine."""
    if ray.is_initialized():
        return
    root = str(Path(__file__).resolve().parents[1])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *(p for p in paths if p and p != root)])
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # reports are heard this often; Ray's 2 s wait
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # progress lines differ only in numbers, and are all wanted
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it shows every printed line twice
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody preempts this machine
    ray.init(logging_level=logging.WARNING)
    quiet_ray()


def quiet_ray() -> None:
    """Leave out what Ray's libraries tell of every dataset and report; warnings stay."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that bars are off, as we asked
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train's workers have it at INFO, and tell of every report


def needed(compute: ComputeConfig) -> dict[str, float]:
    """Resources that one stage reserves: its workers, and one data task for each."""
    cpus = compute.workers * (compute.cpus_per_worker + compute.data_cpus)
    return {"CPU": cpus} | ({"GPU": float(compute.workers)} if compute.use_gpu else {})


def check_resources(compute: ComputeConfig) -> None:
    """Raise ValueError when the cluster can never place a stage: Ray itself would wait without a word."""
    there = ray.cluster_resources()
    for name, count in needed(compute).items():
        if there.get(name, 0.0) < count:
            raise ValueError(
                f"{compute.workers} workers and their data tasks need {count:g} {name}, the cluster has "
                f"{there.get(name, 0.0):g}; lower compute.workers, compute.cpus_per_worker or compute.data_cpus"
                + (", or compute.use_gpu" if name == "GPU" else "")
            )


def stages_side_by_side(compute: ComputeConfig) -> int:
    """How many stages the cluster can run at once."""
    there = ray.cluster_resources()
    return max(1, min(int(there.get(name, 0.0) // count) for name, count in needed(compute).items()))


def threads(compute: ComputeConfig, side_by_side: int) -> int:
    """A node's cores divided among the workers that share it."""
    cores = os.cpu_count() or 1
    nodes = max(1, sum(n["Alive"] for n in ray.nodes()))
    return max(1, cores // max(1, -(-compute.workers * side_by_side // nodes)))


class interruptible:
    """Ctrl-C and SIGTERM (`ray job stop`) end a run: Ray stops, and MLflow's runs end as KILLED."""

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGTERM, self._stop)

    @staticmethod
    def _stop(*_) -> None:
        raise KeyboardInterrupt

    def __exit__(self, kind, *_) -> None:
        signal.signal(signal.SIGTERM, self.before)
        if kind is not None:
            if issubclass(kind, KeyboardInterrupt):
                tracking.interrupted.set()
            ray.shutdown()  # ends what runs beside the failed stage, too
