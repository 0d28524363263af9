"""Metric curves in MLflow: every value is stored once, and training never waits."""

import threading

from jobs.tracking import metric_log, store
from tests.mlflow_store import history, wait_until


def test_rows_are_stored(client, run_id):
    curves = metric_log.MetricLog(run_id)
    curves.log([{"step": i, "train/loss": i / 2, "train/bpp": 1} for i in range(1500)])  # three requests
    assert curves.close() == 0
    assert history(run_id, "train/loss") == [(i, i / 2) for i in range(1500)]
    assert len(history(run_id, "train/bpp")) == 1500


def test_steps_run_again_after_a_resume_appear_once_per_metric(client, run_id):
    first = metric_log.MetricLog(run_id)
    first.log([{"step": step, "train/loss": 1.0} for step in (1, 2, 3)])
    first.log([{"step": 2, "val/psnr_db": 20.0}])
    first.close()
    second = metric_log.MetricLog(run_id)
    second.log([{"step": step, "train/loss": 2.0} for step in (2, 3, 4)])
    second.log([{"step": 2, "val/psnr_db": 21.0}, {"step": 3, "val/psnr_db": 22.0}])
    second.close()
    assert history(run_id, "train/loss") == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    assert history(run_id, "val/psnr_db") == [(2, 20.0), (3, 22.0)]


def test_nonfinite_values_are_left_out_and_named(client, run_id, caplog):
    curves = metric_log.MetricLog(run_id)
    curves.log([{"step": 1, "train/loss": float("inf"), "train/bpp": 1}, {"step": 2, "train/loss": float("nan")}])
    curves.log([{"step": 3, "train/loss": 5.0}])
    curves.close()
    assert history(run_id, "train/loss") == [(3, 5.0)]
    assert history(run_id, "train/bpp") == [(1, 1.0)]
    assert "train/loss is inf at step 1" in caplog.text and caplog.text.count("not sent") == 1


def failing(monkeypatch, num_failures: int, error: Exception) -> list:
    """Let the first `num_failures` batches fail after they were stored, as with a lost response; returns the calls."""
    client, calls = store.mlflow().MlflowClient, []
    log_batch = client.log_batch

    def lose_answer(self, *args, **kwargs):
        log_batch(self, *args, **kwargs)
        calls.append(args)
        if len(calls) <= num_failures:
            raise error

    monkeypatch.setattr(client, "log_batch", lose_answer)
    return calls


def test_requests_with_a_lost_response_are_retried_and_stored_once(client, run_id, monkeypatch, caplog):
    calls = failing(monkeypatch, 1, ConnectionError("gone"))
    curves = metric_log.MetricLog(run_id)
    curves.log([{"step": 1, "train/loss": 1.0}])
    wait_until(lambda: len(calls) == 2)
    assert curves.close() == 0
    assert history(run_id, "train/loss") == [(1, 1.0)]
    assert "they are sent later, training continues" in caplog.text and "accepts metrics again" in caplog.text


def test_log_never_waits_and_close_logs_what_is_lost(run_id, monkeypatch, caplog):
    entered, release = [], threading.Event()

    def hang(self, *args, **kwargs):
        entered.append(1)
        release.wait(60)
        raise ConnectionError("gone")

    monkeypatch.setattr(store.mlflow().MlflowClient, "log_batch", hang)
    curves = metric_log.MetricLog(run_id)
    curves.log([{"step": 7, "train/loss": 1.0}])
    wait_until(lambda: entered)
    curves.log([{"step": 8, "train/loss": 1.0}])  # returns while the first batch hangs
    assert len(entered) == 1
    assert curves.close(timeout=0.1) == 2
    assert curves._thread.is_alive()  # close did not wait for the batch that hangs
    release.set()
    assert [step for *_, step in curves.undelivered] == [7, 8]


def test_full_buffer_drops_the_oldest_and_counts_them(client, run_id, monkeypatch, caplog):
    monkeypatch.setattr(metric_log.MetricLog, "_deliver", lambda self: None)  # a server that never answers
    curves = metric_log.MetricLog(run_id, capacity=3)
    curves.log([{"step": step, "train/loss": 1.0} for step in range(5)])
    assert [step for *_, step in curves._waiting] == [2, 3, 4]
    assert curves.close(timeout=0.1) == 5
    assert "dropping the oldest" in caplog.text


def test_refused_metrics_are_dropped_with_a_reason(run_id, caplog):
    curves = metric_log.MetricLog(run_id)
    curves.log([{"step": 1, "not;a;name": 1.0}])
    wait_until(lambda: curves.num_lost)
    curves.log([{"step": 2, "train/loss": 1.0}])
    assert curves.close() == 1
    assert "MLflow refuses metrics" in caplog.text
