"""The tracking store: its choice, errors for unusable stores, and waiting for an unavailable server."""

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tenacity import wait_fixed, wait_none

from egic.errors import UserError
from jobs.evaluation.compare import results
from jobs.tracking import model_registry, runs, store
from tests.mlflow_store import PNG, free_port, published

pytestmark = pytest.mark.usefixtures("client")


def test_default_is_a_database_and_artifacts_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    assert store.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    run_id = runs.start_pipeline("tiny", {}, {})
    runs.log_pictures(run_id, 100, {"val": PNG})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlartifacts", "mlflow.db"]
    assert [path.read_bytes() for path in tmp_path.rglob("pictures/val/step_000100.png")] == [PNG]


def test_relative_sqlite_path_does_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    assert store.tracking_uri() == f"sqlite:///{tmp_path}/runs.db"


def test_server_that_is_down_is_one_clear_error_without_the_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match=r"MLflow server http://127\.0\.0\.1:\d+ does not answer") as caught:
        runs.start_pipeline("tiny", {}, {})
    assert "secret" not in str(caught.value)


PAGES = {"/health": (200, b"OK"), "/version": (200, b"2.22.5")}
DENIED = b'{"error_code": "PERMISSION_DENIED", "message": "not yours"}'
LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


@pytest.mark.parametrize(
    "pages, others, message",
    [
        (PAGES, (404, b"Not Found"), r"runs MLflow 2\.22\.5, which has no logged models; update it to MLflow 3"),
        (PAGES, (401, b"You are not authenticated"), f"401.*{LOGIN}"),
        (PAGES, (403, b"<html>denied</html>"), f"403.*{LOGIN}"),
        (PAGES, (403, DENIED), f"not yours.*{LOGIN}"),
        (PAGES, (302, b""), f"302.*{LOGIN}"),
        (PAGES, (500, b"no database"), "500.*see its log"),
        (
            {},
            (404, b"Not Found"),
            "http://127.0.0.1:.* is not the address of an MLflow server.*correct MLFLOW_TRACKING",
        ),
        ({}, (200, b"<html>another page</html>"), "another page.*correct MLFLOW_TRACKING_URI"),
    ],
    ids="mlflow-2 login forbidden denied redirect fault not-mlflow another-page".split(),
)
def test_a_server_that_does_not_serve_mlflow_to_this_user_is_one_error(pages, others, message, monkeypatch):
    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = pages.get(self.path, others)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, *args) -> None:
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        for ask in (store.experiment_id, lambda: next(results("egic", Path("unused")))):
            with pytest.raises(UserError, match=message):
                ask()
        server.shutdown()


def test_paths_may_have_characters_with_a_meaning_in_uris(tmp_path, folder, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    place = tmp_path / "100%25 of é? #1"
    place.mkdir()
    monkeypatch.chdir(place)
    artifact = published(folder, "odd", name="odd")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.tracking_uri())  # as it is set for the processes of a stage
    runs.log_pictures(artifact.run_id, 1, {"val": PNG})
    assert store.sqlite_path(store.tracking_uri()) == place / "mlflow.db" and (place / "mlflow.db").is_file()
    assert [path.read_bytes() for path in place.rglob("val/step_000001.png")] == [PNG]
    assert model_registry.fetch("models:/egic-odd@latest", tmp_path / "fetched").is_dir()


def test_folder_that_does_not_exist_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/missing/mlflow.db")
    with pytest.raises(UserError, match="cannot write the MLflow store .*/missing/mlflow.db; set MLFLOW"):
        store.client()


def test_only_one_process_at_a_time_creates_the_database(tmp_path, monkeypatch):
    """Two processes that create the tables at once would fail with MLflow's `table already exists`."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    inside, met = [], []

    def make(**_) -> None:
        inside.append(1)
        time.sleep(0.2)
        met.append(len(inside))
        inside.pop()

    monkeypatch.setattr(store.mlflow(), "MlflowClient", make)
    threads = [threading.Thread(target=store.client) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == [1, 1, 1]


def test_deleted_experiment_is_a_clear_error(client, experiment):
    client.delete_experiment(store.experiment_id(experiment))
    with pytest.raises(UserError, match="is deleted in MLflow"):
        runs.start_pipeline("tiny", {}, {}, experiment=experiment)


def test_user_settings_of_mlflow_are_kept(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    store.mlflow()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"


@pytest.fixture
def away(monkeypatch):
    """A server that does not answer the first requests; yields how many requests it will still not answer."""
    left = [0]

    def check(uri):
        if left[0] > 0:
            left[0] -= 1
            raise UserError("the MLflow server does not answer; start it")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(store, "check_server", check)
    monkeypatch.setattr(store, "PAUSE", wait_none())
    return left


def failing_first(times: int, error: Exception):
    calls = []

    def action():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    action.calls = calls
    return action


def test_the_end_of_a_stage_waits_for_an_unavailable_server(away, caplog):
    away[0] = 3
    assert store.patiently(failing_first(3, ConnectionError("refused")), "gan is trained") == "done"
    assert "trying again for" in caplog.text


def test_errors_of_a_restarting_database_are_retried(away):
    error = store.mlflow().MlflowException("(psycopg2.OperationalError) server closed the connection")
    assert store.patiently(failing_first(2, error), "gan is trained") == "done"


def test_a_server_that_stays_unavailable_is_an_error_that_says_what_is_kept(away, monkeypatch):
    away[0] = 10**9
    monkeypatch.setenv("EGIC_MLFLOW_PATIENCE_S", "0")
    with pytest.raises(UserError, match="gan is trained, but the MLflow server does not answer.*give the same command"):
        store.patiently(failing_first(10**9, ConnectionError()), "gan is trained")


def test_other_errors_are_not_retried(away):
    for error in (KeyError("x"), ValueError("no"), store.mlflow().MlflowException("bad", error_code=1000)):
        action = failing_first(10, error)
        with pytest.raises(type(error)):
            store.patiently(action, "gan is trained")
        assert len(action.calls) == 1


def test_waiting_for_a_server_ends_when_the_program_is_stopped(away, monkeypatch):
    away[0] = 10**9
    monkeypatch.setattr(store, "PAUSE", wait_fixed(1000))
    monkeypatch.setattr(store, "interrupted", threading.Event())
    threading.Timer(0.2, store.interrupted.set).start()
    with pytest.raises(UserError, match="gan is trained, but the MLflow server does not answer"):
        store.patiently(failing_first(10**9, ConnectionError()), "gan is trained")
