"""The pipeline as users run it, with killed workers: it trains a codec, and a second run trains nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import egic
from egic.errors import UserError
from jobs.commands.summary import NAME
from jobs.tracking import model_registry
from jobs.tracking.store import client
from pipelines import full
from tests.faults.injected import Run

ROOT = Path(__file__).resolve().parents[2]
FULL = f"{ROOT}/pipelines/full.py tiny"
FEW = (
    "--segmentation.steps 24 --segmentation.checkpoint-every 8 --segmentation.log-every 8 --mse-codec.steps 4 "
    "--mse-codec.last-steps 1 --gan.steps 4 --gan.warmup-steps 2 --gan.last-steps 1 --orp.steps 4 --orp.last-steps 1 "
    "--evaluate.max-pictures 2"
).split()

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def run(folder: Path, *args: str) -> subprocess.CompletedProcess:
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    env.pop("RAY_ADDRESS", None)
    return subprocess.run([sys.executable, *FULL.split(), *args], cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the pipeline ran, and what it printed: on COCO pictures where they are available, else on drawn
    scenes. Its train workers are killed after the first checkpoint of the segmentation."""
    folder = tmp_path_factory.mktemp("pipeline")
    root = os.environ.get("EGIC_COCO_ROOT")
    args = FEW + (["--data", root] if root else [])
    with Run(folder, *args, command=FULL) as pipeline:
        pipeline.wait_for_checkpoint(8)
        for worker in pipeline.members("RayTrainWorker"):
            worker.kill()
        assert pipeline.end(500) == 0, pipeline.text()[-3000:]
    return folder, args, pipeline.text()


def summary(folder: Path) -> dict:
    return json.loads((folder / "outputs" / NAME).read_text())


def test_every_stage_trains_and_is_in_the_table(finished):
    folder, _, text = finished
    rows = summary(folder)["stages"]
    assert [r["stage"] for r in rows] == ["segmentation", "mse-codec", "gan", "orp", "evaluate"]
    assert not any(r["reused"] for r in rows)
    for row in rows:
        assert row["run_id"][:8] in text
        assert 0 < row["busy_s"] < row["wall_s"]
    assert 0 < summary(folder)["between_steps"] < 1


def test_a_stage_with_killed_workers_has_every_step_once(finished, monkeypatch):
    folder, _, text = finished
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    run_id = next(r["run_id"] for r in summary(folder)["stages"] if r["stage"] == "segmentation")
    assert [m.step for m in client().get_metric_history(run_id, "train/seg")] == [8, 16, 24]
    assert "It restarts from the last checkpoint" in text


def test_models_are_registered_and_decode_at_any_alpha(finished, monkeypatch):
    folder, _, _ = finished
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    for name in ("segmentation", "mse-codec", "gan", "orp"):
        best, latest = (model_registry.resolve(f"models:/egic-{name}@{alias}") for alias in ("best", "latest"))
        assert best == latest
    row = next(r for r in summary(folder)["stages"] if r["stage"] == "orp")
    assert model_registry.resolve("models:/egic-orp@best").sha256 == row["sha256"]
    model = egic.load(model_registry.fetch("models:/egic-orp@best", folder / "fetched"))
    picture = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    data = model.compress(picture)
    assert {model.decompress(data, alpha).shape for alpha in (0.0, 0.3, 1.0)} == {picture.shape}


def test_lineage_curves_and_pictures_are_in_mlflow(finished, monkeypatch):
    folder, _, _ = finished
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    runs = {r["stage"]: client().get_run(r["run_id"]) for r in summary(folder)["stages"]}
    rows = {r["stage"]: r for r in summary(folder)["stages"]}
    tags = runs["gan"].data.tags
    for parent in ("mse-codec", "segmentation"):
        assert tags[f"egic.parent.{parent}.sha256"] == rows[parent]["sha256"]
        assert tags[f"egic.parent.{parent}.run_id"] == rows[parent]["run_id"]
    for name, run_ in runs.items():
        assert run_.info.status == "FINISHED"
        assert run_.data.tags["mlflow.parentRunId"] == summary(folder)["run_id"]
        if name != "evaluate":
            assert {"time/data_s", "time/step_s", "system/worker_rss_gb", "train/grad_norm"} <= run_.data.metrics.keys()
            assert client().list_artifacts(run_.info.run_id, "pictures")
    curve = client().get_metric_history(rows["evaluate"]["run_id"], "rd/psnr_db")
    assert [m.step for m in curve] == [0, 50, 100]
    parent = client().get_run(summary(folder)["run_id"]).data.metrics
    assert parent["rd/bpp"] == runs["evaluate"].data.metrics["rd/bpp"] > 0


def test_evaluation_counts_the_bits_of_real_files(finished):
    folder, _, _ = finished
    row = next(r for r in summary(folder)["stages"] if r["stage"] == "evaluate")
    sheet = Path(row["sheet"])
    assert sheet.is_file()
    table = pq.read_table(sheet.parent / "rows.parquet").to_pylist()
    assert len(table) == 2 * 3
    for line in table:
        assert line["bpp"] == 8 * line["bytes"] / (line["height"] * line["width"])


def test_the_second_run_trains_nothing(finished):
    folder, args, text = finished
    first = summary(folder)["stages"]
    again = run(folder, *args)
    assert again.returncode == 0, again.stderr[-3000:]
    rows = summary(folder)["stages"]
    assert all(r["reused"] for r in rows) and summary(folder)["between_steps"] == 1
    assert "starting Ray" in text and "starting Ray" not in again.stderr
    assert [r.get("sha256") for r in rows] == [r.get("sha256") for r in first]


def test_from_without_finished_parents_names_the_missing_stage(finished, monkeypatch):
    folder, args, _ = finished
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    asked = "--orp.lr", "0.5", "--until", "orp", "--from", "orp", "--gan.lr", "0.5"
    with pytest.raises(UserError, match="^gan is not finished with this configuration"):
        full.start(["tiny", *args, *asked])


def test_missing_data_is_one_clear_line(tmp_path):
    done = run(tmp_path, "--data", "nowhere", *FEW)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: data folder nowhere does not exist")
    assert "Traceback" not in done.stderr
