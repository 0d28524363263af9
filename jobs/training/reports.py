"""Sends the workers' reports to MLflow. A module without torch, since Ray Train's controller imports it."""

import errno
import json
import logging
import os

from ray.train import Checkpoint, UserCallback

from egic.errors import NonFiniteError, UserError
from jobs.storage.files import Folder
from jobs.tracking import runs, store
from jobs.tracking.metric_log import MetricLog, Value

log = logging.getLogger(__name__)

UNDELIVERED = "undelivered-metrics.json"


class Reports(UserCallback):
    """Sends the workers' reports to MLflow, from Ray Train's controller, so that workers need no access to the server.

    While the server is not reachable, unsent values are also stored in the stage's folder, in case the controller is
    killed.
    """

    def __init__(self, run_id: str, last_step: int, place: Folder):
        self.run_id, self.last_step, self.place = run_id, last_step, place
        self.uri = store.tracking_uri()
        self.metric_log: MetricLog | None = None

    def after_report(self, run_context, metrics: list[dict], checkpoint) -> None:
        report = metrics[0]
        os.environ["MLFLOW_TRACKING_URI"] = self.uri
        try:
            if self.metric_log is None:
                self.metric_log = resumed_log(self.run_id, self.place)
            self.metric_log.log(report["rows"])
            pictures = {name: read_file(checkpoint, f"{name}.png") for name in report["pictures"]}
            runs.log_pictures(self.run_id, report["step"], pictures)
            if waiting := self.metric_log.waiting():
                keep(waiting, self.place)  # the next checkpoint will not have these rows
        except Exception:  # an unreachable tracking server must not stop the training
            log.warning("MLflow did not accept the report of step %s", report["step"], exc_info=True)
        if report["step"] == self.last_step:
            self.close(30)

    def after_exception(self, run_context, worker_exceptions) -> None:
        self.close(2)  # the restart of the workers waits for this
        for error in worker_exceptions.values():
            if isinstance(error, (UserError, NonFiniteError)):  # a restart would fail with the same error
                logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # no traceback, just one line
                raise UserError(str(error))
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                logging.getLogger("ray.train").setLevel(logging.CRITICAL)
                kept = "the last checkpoint is kept: free some space, and repeat the command"
                raise UserError(f"no space left for a checkpoint ({error}); {kept}")
        if worker_exceptions:
            rank, error = next(iter(worker_exceptions.items()))  # errors of the others follow from it
            why = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            log.warning("worker %s failed: %s. It restarts from the last checkpoint while restarts remain", rank, why)

    def close(self, timeout_s: float) -> None:
        if self.metric_log is not None:
            finish_log(self.metric_log, self.place, timeout_s)
            self.metric_log = None


def resumed_log(run_id: str, place: Folder) -> MetricLog:
    """A log for the run that first sends the values that an earlier one could not deliver."""
    metric_log = MetricLog(run_id)
    metric_log.resend(tuple(value) for value in json.loads(place.read(UNDELIVERED) or b"[]"))
    return metric_log


def finish_log(metric_log: MetricLog, place: Folder, timeout_s: float) -> None:
    """Close the log; values that it could not deliver within `timeout_s` are stored in the stage's folder."""
    metric_log.close(timeout_s)
    if metric_log.undelivered:
        keep(metric_log.undelivered, place)
    else:
        place.remove(UNDELIVERED)


def keep(values: list[Value], place: Folder) -> None:
    """Store values for `resumed_log`. MLflow stores a value once, even if it is sent again."""
    place.write(UNDELIVERED, json.dumps(values).encode())


def deliver_rest(run_id: str, place: Folder, timeout_s: float = 30) -> None:
    """Send the values in the stage's folder. Raises ConnectionError when MLflow does not accept them in time."""
    if place.exists(UNDELIVERED):
        finish_log(resumed_log(run_id, place), place, timeout_s)
        if place.exists(UNDELIVERED):
            raise ConnectionError("MLflow does not accept the metrics")


def read_file(stored: Checkpoint, name: str) -> bytes:
    """The content of one file of a checkpoint, on any storage."""
    with stored.filesystem.open_input_file(f"{stored.path}/{name}") as f:
        return f.read()
