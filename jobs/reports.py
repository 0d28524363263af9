"""What the workers report, carried to MLflow. Its own module, since Ray Train's controller imports it: no torch."""

import errno
import logging
import os

from ray.train import Checkpoint, UserCallback

from egic.errors import NonFiniteError
from jobs import tracking
from jobs.metric_log import MetricLog

log = logging.getLogger(__name__)


class Reports(UserCallback):
    """Carries what the workers report to MLflow, from Ray Train's controller: workers need no way to the server."""

    def __init__(self, run_id: str, last_step: int):
        self.run_id, self.last_step, self.uri, self.metric_log = run_id, last_step, tracking.tracking_uri(), None

    def after_report(self, run_context, metrics: list[dict], checkpoint) -> None:
        report = metrics[0]
        os.environ["MLFLOW_TRACKING_URI"] = self.uri
        try:
            if self.metric_log is None:
                self.metric_log = MetricLog(self.run_id)
            self.metric_log.log(report["rows"])
            pictures = {name: read_file(checkpoint, f"{name}.png") for name in report["pictures"]}
            tracking.log_pictures(self.run_id, report["step"], pictures)
        except Exception:  # a tracking server that is away must not stop the training
            log.warning("MLflow did not take the report of step %s", report["step"], exc_info=True)
        if report["step"] == self.last_step:
            self.close()

    def after_exception(self, run_context, worker_exceptions) -> None:
        self.close()
        for error in worker_exceptions.values():
            if isinstance(error, (ValueError, NonFiniteError)):  # it would come again: no restart
                logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # who made the mistake gets one line
                raise ValueError(str(error))
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                logging.getLogger("ray.train").setLevel(logging.CRITICAL)
                kept = "the last checkpoint is kept: make room, and give the same command again"
                raise ValueError(f"no space left for a checkpoint ({error}); {kept}")

    def close(self) -> None:
        if self.metric_log is not None:
            self.metric_log.close()
            self.metric_log = None


def read_file(stored: Checkpoint, name: str) -> bytes:
    """One file of a checkpoint, wherever it is stored."""
    with stored.filesystem.open_input_file(f"{stored.path}/{name}") as f:
        return f.read()
