"""Curves of a stage whose controller ends while MLflow is unavailable."""

import pytest

from jobs.storage.files import Folder
from jobs.tracking import metric_log, store
from jobs.training import reports


def test_curves_of_a_killed_controller_are_sent_later(client, run_id, tmp_path, monkeypatch):
    """The next controller starts with the rows of the last checkpoint; the stage's folder has the earlier ones."""
    place = Folder(str(tmp_path / "stage"))
    rows = {step: [{"step": step, "train/loss": 1.0 / step}] for step in (10, 20, 30, 40)}
    killed = reports.Reports(run_id, 40, place)
    with monkeypatch.context() as away:
        away.setattr(metric_log.MetricLog, "_send", lambda self, batch: (_ for _ in ()).throw(ConnectionError("away")))
        for step in (10, 20, 30):
            killed.after_report(None, [{"step": step, "rows": rows[step], "pictures": []}], None)
        killed.metric_log.close(0)  # ends its thread, as a kill would
    following = reports.Reports(run_id, 40, place)
    following.after_report(None, [{"step": 40, "rows": rows[30] + rows[40], "pictures": []}], None)
    history = store.client().get_metric_history(run_id, "train/loss")
    assert sorted(m.step for m in history) == [10, 20, 30, 40]
    assert place.names() == []


def test_curves_that_a_server_missed_are_sent_when_it_is_back(client, run_id, tmp_path, monkeypatch):
    """If the controller ends while the server is unavailable, the next one, or the driver, sends its curves first."""
    place = Folder(str(tmp_path / "stage"))
    first = reports.resumed_log(run_id, place)
    with monkeypatch.context() as away:
        away.setattr(metric_log.MetricLog, "_send", lambda self, batch: (_ for _ in ()).throw(ConnectionError("away")))
        first.log([{"step": step, "train/loss": 1.0 / step} for step in (1, 2)])
        reports.finish_log(first, place, 0.2)
        with pytest.raises(ConnectionError):
            reports.deliver_rest(run_id, place, timeout_s=0.2)
    second = reports.resumed_log(run_id, place)
    second.log([{"step": 2, "train/loss": 0.5}, {"step": 3, "train/loss": 0.25}])  # a resumed run logs some again
    reports.finish_log(second, place, 30)
    history = store.client().get_metric_history(run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert place.names() == []
    reports.deliver_rest(run_id, place)  # nothing remains to be sent
