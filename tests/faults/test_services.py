"""An unavailable MLflow server, a restarted database, and a submitted job that is stopped."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.tracking import store
from tests.faults.injected import ARGS, EVERY, ROOT, STEPS, Run, free_port, head, wait_for_port

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]


class Server:
    """An MLflow server that can be stopped and started again on the same port."""

    def __init__(self, folder: Path, database: str):
        self.folder, self.database, self.port = folder, database, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.database, "--port", str(self.port),
            "--artifacts-destination", str(self.folder / "artifacts"), "--workers", "1",
        ]  # fmt: skip
        env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        env.pop("MLFLOW_TRACKING_URI", None)
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        wait_for_port(self.port, 120)
        store.check_server(self.uri)

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def server(folder: Path, database: str | None = None):
    made = Server(folder, database or f"sqlite:///{folder}/server.db")
    try:
        made.start()
        yield made
    finally:
        made.stop()


def history(uri: str, monkeypatch) -> tuple[list[int], list[str]]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = store.client()
    runs = client.search_runs([store.experiment_id()], "tags.`egic.kind` = 'stage'")
    steps = [m.step for run in runs for m in client.get_metric_history(run.info.run_id, "train/seg")]
    return sorted(steps), [run.info.status for run in runs]


ALL = list(range(5, STEPS + 1, 5))


def test_the_server_is_unavailable_for_a_while(tmp_path, monkeypatch):
    """It stops during training and returns after the end: no data is missing."""
    with server(tmp_path) as mlflow, Run(tmp_path, MLFLOW_TRACKING_URI=mlflow.uri) as run:
        run.wait_for_checkpoint(EVERY)
        mlflow.stop()
        run.wait_for_checkpoint(STEPS)
        run.wait_until(lambda: "trying again for" in run.text(), "the end of the stage to miss the server")
        mlflow.start()
        assert run.end() == 0, run.text()
        assert history(mlflow.uri, monkeypatch) == (ALL, ["FINISHED"])


def test_the_server_stays_unavailable(tmp_path, monkeypatch):
    """The stage trains to its end and keeps its checkpoint; one line says how to continue, and that works."""
    with server(tmp_path) as mlflow:
        with Run(tmp_path, MLFLOW_TRACKING_URI=mlflow.uri, EGIC_MLFLOW_PATIENCE_S="5") as run:
            run.wait_for_checkpoint(EVERY)
            mlflow.stop()
            assert run.end() == 2, run.text()
            last = run.text().strip().splitlines()[-1]
            assert last.startswith("error: segmentation is trained and its last checkpoint kept, but the MLflow server")
            assert run.committed() == STEPS
        mlflow.start()
        with Run(tmp_path, MLFLOW_TRACKING_URI=mlflow.uri) as run:
            assert run.end() == 0, run.text()
        steps, statuses = history(mlflow.uri, monkeypatch)
        assert statuses == ["FINISHED"] and steps == sorted(set(steps)) and steps[-1] == STEPS


def test_the_driver_is_killed_while_the_server_is_unavailable(tmp_path, monkeypatch):
    """Curves of several checkpoints that could not be sent to MLflow are kept."""
    with server(tmp_path) as mlflow:
        with Run(tmp_path, MLFLOW_TRACKING_URI=mlflow.uri) as run:
            run.wait_for_checkpoint(EVERY)
            mlflow.stop()
            run.wait_for_checkpoint(3 * EVERY)
            run.kill_hard()
        mlflow.start()
        with Run(tmp_path, MLFLOW_TRACKING_URI=mlflow.uri) as run:
            assert run.end() == 0, run.text()
        assert history(mlflow.uri, monkeypatch) == (ALL, ["FINISHED"])


POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))


@contextmanager
def postgres(folder: Path):
    """A new PostgreSQL server, run by the user `postgres`; yields its URI and a function to restart it."""
    if not POSTGRES or os.getuid() or not shutil.which("runuser"):
        pytest.skip("needs PostgreSQL's programs, runuser and root")
    pytest.importorskip("psycopg2")
    binaries, port = POSTGRES[-1].parent, free_port()
    data = Path(f"/tmp/egic-postgres-{os.getpid()}")
    data.mkdir()
    shutil.chown(data, "postgres")

    def run(*command: str) -> None:
        subprocess.run(["runuser", "-u", "postgres", "--", *command], check=True, stdout=subprocess.DEVNULL, cwd="/")

    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}"

    def control(action: str) -> None:
        run(
            str(binaries / "pg_ctl"), "-D", f"{data}/db", "-l", f"{data}/log", "-w", "-m", "fast", "-o", options, action
        )

    try:
        run(str(binaries / "initdb"), "-D", f"{data}/db", "--auth=trust")
        control("start")
        yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres", lambda: control("restart")
    finally:
        subprocess.run(
            ["runuser", "-u", "postgres", "--", str(binaries / "pg_ctl"), "-D", f"{data}/db", "stop"], cwd="/"
        )
        shutil.rmtree(data, ignore_errors=True)


def test_the_servers_database_is_restarted(tmp_path, monkeypatch):
    with postgres(tmp_path) as (database, restart), server(tmp_path, database) as mlflow:
        with Run(tmp_path, MLFLOW_TRACKING_URI=mlflow.uri) as run:
            run.wait_for_checkpoint(EVERY)
            restart()
            run.wait_for_checkpoint(2 * EVERY)
            restart()
            assert run.end() == 0, run.text()
        assert history(mlflow.uri, monkeypatch) == (ALL, ["FINISHED"])


def test_a_submitted_job_is_stopped_and_submitted_again(tmp_path, monkeypatch):
    """`ray job stop` with token authentication: a checkpoint is kept, runs are KILLED, the next submission resumes."""
    dashboard = free_port()
    database = f"sqlite:///{tmp_path}/mlflow.db"
    flags = (f"--dashboard-port={dashboard}", "--include-dashboard=true", "--dashboard-host=127.0.0.1")
    with head(tmp_path, *flags) as cluster:
        wait_for_port(dashboard)
        env = os.environ | cluster.env | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        env.pop("RAY_ADDRESS")

        def ray(*args: str) -> subprocess.CompletedProcess:
            command = [str(Path(sys.executable).with_name("ray")), "job", *args]
            return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)

        def submit(name: str, *wait: str) -> subprocess.CompletedProcess:
            environment = f'{{"env_vars": {{"MLFLOW_TRACKING_URI": "{database}"}}}}'
            entry = f"{sys.executable} -m jobs.segmentation tiny {' '.join(ARGS)} --output {tmp_path}/outputs"
            where = ("--submission-id", name, "--working-dir", ".", "--runtime-env-json", environment, *wait)
            return ray("submit", *where, "--", *entry.split())

        assert submit("first", "--no-wait").returncode == 0
        watch = Run.__new__(Run)
        watch.folder = tmp_path
        deadline = time.monotonic() + 240
        while watch.committed() < EVERY:
            assert time.monotonic() < deadline, ray("logs", "first").stdout[-3000:]
            time.sleep(0.2)
        stopped = ray("stop", "first")
        assert stopped.returncode == 0 and "stopped" in stopped.stdout + stopped.stderr
        kept = watch.committed()
        assert EVERY <= kept < STEPS
        assert history(database, monkeypatch)[1] == ["KILLED"]
        again = submit("second")
        assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-1000:]
        assert f"step {STEPS}/{STEPS}" in again.stdout
    steps, statuses = history(database, monkeypatch)
    assert statuses == ["FINISHED"] and steps == sorted(set(steps)) and set(ALL) <= {*steps}
