"""A real server: all data arrives, even if the server is restarted."""

import os
import subprocess
import sys

import pytest

from egic.errors import UserError
from jobs.tracking import metric_log, model_registry, runs, store
from tests.mlflow_store import PNG, free_port, history, published, wait_until


@pytest.mark.slow
def test_real_server_round_trip_and_restart(tmp_path, folder, monkeypatch):
    port = free_port()
    uri = f"http://127.0.0.1:{port}"

    def start() -> subprocess.Popen:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI")
        with open(tmp_path / "server.log", "ab") as out:
            return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out, process_group=0)

    def answers() -> bool:
        try:
            store.check_server(uri)
        except UserError:
            return False
        return True

    def stop(server: subprocess.Popen) -> None:
        os.killpg(server.pid, 9)
        server.wait()

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    server = start()
    try:
        wait_until(answers, timeout_s=120)
        artifact = published(folder, "served")
        runs.log_pictures(artifact.run_id, 1, {"val": PNG})
        assert model_registry.find_finished("gan", "key1", experiment="served") == artifact
        assert model_registry.fetch("models:/egic-gan@latest", tmp_path / "new").is_dir()
        curves = metric_log.MetricLog(artifact.run_id)
        curves.log([{"step": 1, "train/loss": 1.0}])
        stop(server)
        curves.log([{"step": 2, "train/loss": 2.0}])
        server = start()
        wait_until(answers, timeout_s=120)
        assert curves.close(timeout=60) == 0
        assert history(artifact.run_id, "train/loss") == [(1, 1.0), (2, 2.0)]
    finally:
        stop(server)
