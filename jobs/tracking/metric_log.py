"""Metrics to MLflow without delaying the training: a bounded buffer, and a thread that sends its content."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from jobs.tracking import store

log = logging.getLogger(__name__)

BATCH_LIMIT = 1000  # values per request, MLflow's limit
CAPACITY = 200_000  # values kept while the server is not reachable, about 40 MB; then the oldest are dropped
PERMANENT = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "PERMISSION_DENIED", "INVALID_STATE"}

Value = tuple[str, float, int, int]  # metric, value, time in ms since 1970, step


class MetricLog:
    """Delivers rows like {"step": 100, "train/loss": 3.2} to one run.

    `log` returns at once; a thread sends the buffered values in batches, and retries at growing intervals while the
    server does not answer. Each value keeps the time at which it was logged, so a batch that arrives twice is stored
    once. Values of a metric that the run already has at the same or a later step are dropped, so steps that a resumed
    stage repeats appear once. Infinite and NaN values are dropped with a warning (MLflow would store 1.8e308 for
    infinity).
    """

    def __init__(self, run_id: str, *, capacity: int = CAPACITY) -> None:
        self.run_id = run_id
        self.num_lost = 0
        self.undelivered: list[Value] = []
        """After `close`: values that the server did not accept in time, for `resend`."""
        self._uri = store.tracking_uri()
        self._waiting: deque[Value] = deque()
        self._sending: list[Value] = []
        self._capacity = capacity
        self._last_step: dict[str, int] | None = None  # of each metric in MLflow at the start; read by the thread
        self._nonfinite: set[str] = set()
        self._wake = threading.Condition()
        self._closing = False
        self._deadline = math.inf
        self._thread = threading.Thread(target=self._deliver, name="mlflow-metrics", daemon=True)
        self._thread.start()

    def log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows to the buffer: an int `step`, and numbers (floats, 0-d arrays or tensors) by metric name."""
        now_ms = int(time.time() * 1000)
        values = []
        for row in rows:
            step = int(row["step"])
            for name, number in row.items():
                if name == "step":
                    continue
                value = float(number)
                if math.isfinite(value):
                    values.append((name, value, now_ms, step))
                elif name not in self._nonfinite:
                    self._nonfinite.add(name)
                    log.warning("%s is %s at step %d: such values are not sent to MLflow", name, value, step)
        self.resend(values)

    def resend(self, values: Iterable[Value]) -> None:
        """Add values as they are, such as another log's `undelivered`. Call it before `log`."""
        with self._wake:
            assert not self._closing, "log after close"
            self._waiting.extend(values)
            self._drop_oldest()
            self._wake.notify()

    def waiting(self) -> list[Value]:
        """Values that the server has not confirmed yet."""
        with self._wake:
            return [*self._sending, *self._waiting]

    def close(self, timeout: float = 30) -> int:
        """Send the buffered values, for at most `timeout` seconds; returns the number of values that did not arrive.

        Values that can be sent later are in `undelivered`; a warning counts the others.
        """
        with self._wake:
            self._closing = True
            self._deadline = time.monotonic() + timeout
            self._wake.notify()
        self._thread.join(timeout)
        with self._wake:
            self.undelivered = self.waiting()
            self._waiting.clear()
        if self.num_lost:
            log.warning("%d metric values of run %s did not reach MLflow", self.num_lost, self.run_id)
        return self.num_lost + len(self.undelivered)

    def _drop_oldest(self) -> None:
        surplus = len(self._waiting) - self._capacity
        if surplus > 0:
            if not self.num_lost:
                log.warning("more than %d metric values wait for MLflow: dropping the oldest", self._capacity)
            self.num_lost += surplus
            for _ in range(surplus):
                self._waiting.popleft()

    def _deliver(self) -> None:
        """Main function of the thread: sends batches until the log is closed and the buffer empty, or the timeout of
        `close` has passed."""
        pause_s, down = 1.0, False
        while batch := self._next_batch():
            try:
                self._send(batch)
            except Exception as error:  # MLflow, requests and sqlalchemy raise errors of different types
                if getattr(error, "error_code", None) in PERMANENT:
                    log.warning("MLflow refuses metrics of run %s: %s", self.run_id, error)
                    self.num_lost += len(batch)
                    continue
                if not down:
                    log.warning("MLflow does not accept metrics; they are sent later, training continues (%s)", error)
                down = True
                if not self._wait_to_retry(pause_s):
                    return
                pause_s = min(2 * pause_s, 30)
            else:
                if down:
                    log.warning("MLflow accepts metrics again")
                pause_s, down = 1.0, False

    def _next_batch(self) -> list[Value]:
        """Wait for values and take some out of the buffer; an empty list once the log is closed and all are sent."""
        with self._wake:
            self._sending = []
            self._wake.wait_for(lambda: self._waiting or self._closing)
            self._sending = [self._waiting.popleft() for _ in range(min(BATCH_LIMIT, len(self._waiting)))]
            return self._sending

    def _wait_to_retry(self, pause_s: float) -> bool:
        """Put the batch back to the front of the buffer and pause, shorter when closing; False after the timeout."""
        with self._wake:
            self._waiting.extendleft(reversed(self._sending))
            self._sending = []
            self._drop_oldest()
            if self._closing:
                self._wake.wait(0.5)
            else:
                self._wake.wait_for(lambda: self._closing, timeout=pause_s)
            return time.monotonic() < self._deadline

    def _send(self, batch: list[Value]) -> None:
        mlflow = store.mlflow()
        client = mlflow.MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        if self._last_step is None:
            # `data` has the newest value of each metric; whole histories would be slow for long runs
            latest = client.get_run(self.run_id).data._metric_objs
            self._last_step = {metric.key: metric.step for metric in latest}
        last, fresh = dict(self._last_step), []
        for name, value, time_ms, step in batch:
            if step > last.get(name, -1):
                last[name] = step
                fresh.append(mlflow.entities.Metric(name, value, time_ms, step))
        if fresh:
            client.log_batch(self.run_id, metrics=fresh)
        self._last_step = last
