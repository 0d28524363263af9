"""Evaluation on a local Ray cluster: models on folders of pictures, as users run it."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from egic import artifact
from egic.cli import main
from jobs.evaluation.tables import SCHEMA, slug
from jobs.tracking import store
from tests.codec_models import tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    ray.shutdown()


def test_models_are_compared_on_folders_and_a_second_run_codes_nothing(place, capsys):
    model = tiny_model()
    artifact.save(place / "orp", {"codec": model.codec, "orp": model.orp}, {"stage": "orp"})
    artifact.save(place / "codec", {"codec": model.codec}, {"stage": "mse-codec"})
    rng = np.random.default_rng(0)
    (place / "pictures").mkdir()
    for name, size in (("b.png", (170, 200)), ("a.png", (64, 70)), ("c.png", (50, 40))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(place / "pictures" / name)
    (place / "pictures" / "bad.jpg").write_bytes(b"\xff\xd8 no picture")
    args = "evaluate --model orp codec --images pictures --alphas 0,1 --metrics psnr,ms_ssim --shown 2".split()
    args += "--compute.threads 1 --compute.cpus-per-worker 0.5".split()
    assert main.main(args) == 0
    printed = capsys.readouterr().out
    report = Path(printed.strip().splitlines()[-1])
    folder = report.parent
    assert "<title>" in report.read_text()
    assert folder.parent == place / "outputs" / "evaluate" and "left out: bad.jpg: " in printed

    table = pq.read_table(folder / "rows.parquet")
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    order = [("codec", n, 1.0) for n in ("a.png", "b.png", "c.png")]
    order += [("orp", n, alpha) for n in ("a.png", "b.png", "c.png") for alpha in (0.0, 1.0)]
    assert [(r["label"], r["name"], r["alpha"]) for r in rows] == order
    for row in rows:
        assert row["bpp"] == 8 * row["bytes"] / (row["height"] * row["width"])
        assert (row["ms_ssim"] is not None) == (row["name"] == "b.png")
        assert row["model_digest"] == artifact.digest(place / row["label"])
    found = json.loads((folder / "sets.json").read_text())
    assert [(e["label"], e["alpha"], e["num_pictures"]) for e in found] == [
        ("codec", 1.0, 3),
        ("orp", 0.0, 3),
        ("orp", 1.0, 3),
    ]
    assert [s["name"] for s in json.loads((folder / "skipped.json").read_text())] == ["bad.jpg"]
    shown = sorted(p.relative_to(folder / "pictures").as_posix() for p in (folder / "pictures").rglob("*.png"))
    each = ["codec_alpha_1.png", "original.png", "orp_alpha_0.png", "orp_alpha_1.png"]
    assert shown == [f"{n}/{p}" for n in "ab" for p in each] and slug("orp") == "orp"

    run = store.client().get_run(printed.split("MLflow run ")[1].split()[0])
    assert run.info.status == "FINISHED" and "val/orp/psnr_db_alpha_1" in run.data.metrics
    kept = {p.path for p in store.client().list_artifacts(run.info.run_id)}
    assert {"rows.parquet", "sets.json", "skipped.json", "pictures", "sheet.png", "summary.json"} <= kept

    first = (folder / "rows.parquet").read_bytes()
    assert main.main(args) == 0
    assert f"reused, MLflow run {run.info.run_id}" in capsys.readouterr().out
    os.remove(folder / "summary.json")  # as if killed before the end: the parts are still there
    assert main.main(args) == 0
    assert (folder / "rows.parquet").read_bytes() == first  # times and all
