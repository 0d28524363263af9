"""A stage with all files on object storage: data, checkpoints, interruption and resume, evaluation."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.data.preparation import prepare
from jobs.data.sources.scenes.scenes import SceneConfig, write_scenes
from jobs.storage import files
from jobs.tracking import store
from tests.fake_s3 import place_on, s3_server

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
FEW = f"--mse-codec.steps {STEPS} --mse-codec.last-steps 1 --mse-codec.batch 2 --mse-codec.val-samples 2 ".split()
FEW += "--mse-codec.log-every 5 --mse-codec.checkpoint-every 5".split()

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.fixture
def server(monkeypatch, tmp_path):
    """An S3 server; its address and credentials are in the environment of every process."""
    with s3_server(monkeypatch) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("EGIC_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        yield address


def start(folder: Path, *args: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", *args], cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out


def test_a_stage_runs_with_all_files_on_object_storage(server, tmp_path):
    data, output = place_on(server, "shards"), "s3://bucket/runs/egic"
    tree = write_scenes(tmp_path / "coco", SceneConfig(num_train=8, num_val=2, min_side=128, max_side=160))
    prepare((tree,), data)
    work = tmp_path / "work"
    work.mkdir()
    options = ["--data", data, "--output", output, *FEW]

    def checkpoints() -> set[str]:
        names = files.sizes(files.join(output, "checkpoints"))
        return {name.split("/")[1] for name in names if name.endswith("meta.json")}

    broken = start(work, "jobs.mse_codec", "tiny", *options)
    while len(checkpoints()) < 2 and broken.poll() is None:
        time.sleep(0.2)
    broken.send_signal(signal.SIGTERM)  # requests a checkpoint, through the storage
    out, err = broken.communicate()
    assert broken.returncode == 130, err[-3000:]
    assert checkpoints()

    out = finish(start(work, "jobs.mse_codec", "tiny", *options))
    assert f"after {STEPS} steps (trained)" in out
    (run,) = store.client().search_runs(["1"], "tags.`egic.stage` = 'mse-codec'")
    history = store.client().get_metric_history(run.info.run_id, "train/loss")
    steps = [m.step for m in history]
    assert len(set(steps)) == len(steps), "steps were repeated: the run was not resumed"
    assert set(steps) >= set(range(5, STEPS + 1, 5))  # and the step at which it was stopped
    assert len(checkpoints()) <= 3  # Ray Train deletes old ones there, too

    evaluate = ["jobs.evaluate", "tiny", "--model", "models:/egic-mse-codec@best", "--data", data, "--output", output]
    evaluate += ["--metrics", "psnr", "--compute.threads", "1"]
    printed = finish(start(work, *evaluate)).strip().splitlines()
    report = files.split(printed[-1])
    assert report[0].startswith(output + "/evaluate/") and report[1] == "report.html"
    rows = pq.read_table(io.BytesIO(files.read(files.join(report[0], "rows.parquet")))).to_pylist()
    assert {row["bpp"] for row in rows} == {8 * row["bytes"] / (row["height"] * row["width"]) for row in rows}
    assert json.loads(files.read(files.join(report[0], "summary.json")))["num_pictures"] == 2
    assert {"sheet.png", "report.html", "sets.json", "skipped.json"} <= files.sizes(report[0]).keys()
    reused = finish(start(work, *evaluate)).strip().splitlines()
    assert reused[-1] == printed[-1] and reused[-2].startswith("reused, ")

    local = {p.relative_to(work): p.stat().st_size for p in work.rglob("*") if p.is_file()}
    kept = {name: size for name, size in local.items() if "mlartifacts" not in name.parts}
    assert sum(kept.values()) < 100_000, kept
    assert {p.name for p in (tmp_path / "cache").iterdir()} <= {"artifacts", "preparing"}
