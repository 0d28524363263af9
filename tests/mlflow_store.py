"""Functions for tests of the tracking: publish an artifact, read a curve, find a port, wait for a condition."""

import socket
import time
from pathlib import Path

from egic.artifact import digest
from jobs.tracking import model_registry, runs, store

PNG = b"\x89PNG\r\n\x1a\n and the rest"


def published(folder: Path, experiment: str, key: str = "key1", name: str = "gan") -> model_registry.Artifact:
    """Publish `folder` as the artifact of a finished run of the stage `name`."""
    run_id = runs.start_stage(None, name, key, {}, {}, experiment=experiment)
    artifact = model_registry.publish(run_id, folder, name, digest(folder), {"lam": 2}, {"commit": "abc"})
    runs.finish(run_id)
    return artifact


def history(run_id: str, name: str) -> list[tuple[int, float]]:
    """(step, value) pairs of a metric, in the order of the store."""
    return [(metric.step, metric.value) for metric in store.client().get_metric_history(run_id, name)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s} s"
        time.sleep(0.05)
