"""Evaluation on a local Ray cluster: models on folders of pictures, as users run it."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from joblib import cpu_count
from PIL import Image

from egic import artifact
from egic.cli import main
from egic.report import anchors
from egic.report.curves import METRICS
from jobs.evaluation.tables import SCHEMA
from jobs.tracking import store
from tests.codec_models import tiny_model
from tests.evaluation_folders import photograph

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
    args += f"--compute.threads 1 --compute.cpus-per-worker {cpu_count()}".split()  # no CPU is left for other tasks
    assert main.main(args) == 0
    printed = capsys.readouterr().out
    report = Path(printed.strip().splitlines()[-1])
    folder = report.parent
    assert "<title>" in report.read_text()
    assert folder.parent == place / "outputs" / "evaluate" and "left out: bad.jpg: " in printed

    table = pq.read_table(folder / "rows.parquet")
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    order = [("codec", n, None) for n in ("a.png", "b.png", "c.png")]
    order += [("orp", n, alpha) for alpha in (0.0, 1.0) for n in ("a.png", "b.png", "c.png")]
    assert [(r["label"], r["name"], r["alpha"]) for r in rows] == order
    for row in rows:
        assert row["bpp"] == 8 * row["bytes"] / (row["height"] * row["width"])
        assert (row["ms_ssim"] is not None) == (row["name"] == "b.png")
        assert row["model_digest"] == artifact.digest(place / row["label"])
    found = json.loads((folder / "sets.json").read_text())
    assert [(e["label"], e["alpha"], e["num_pictures"]) for e in found] == [
        ("codec", None, 3),
        ("orp", 0.0, 3),
        ("orp", 1.0, 3),
    ]
    assert [s["name"] for s in json.loads((folder / "skipped.json").read_text())] == ["bad.jpg"]
    kept_pictures = [p for p in (folder / "pictures").rglob("*.png") if p.is_file()]
    shown = sorted(p.relative_to(folder / "pictures").as_posix() for p in kept_pictures)
    each = ["codec_decoded.png", "original.png", "orp_alpha_0.png", "orp_alpha_1.png"]
    assert shown == [f"{n}.png/{p}" for n in "ab" for p in each]

    run = store.client().get_run(printed.split("MLflow run ")[1].split()[0])
    assert run.info.status == "FINISHED" and "val/orp/psnr_db_alpha_1" in run.data.metrics
    kept = {p.path for p in store.client().list_artifacts(run.info.run_id)}
    assert {"rows.parquet", "sets.json", "skipped.json", "pictures", "sheet.png", "summary.json"} <= kept

    first = (folder / "rows.parquet").read_bytes()
    assert main.main(args) == 0
    assert f"reused, MLflow run {run.info.run_id}" in capsys.readouterr().out
    os.remove(folder / "summary.json")  # as if killed before the end: all parts exist
    assert main.main(args) == 0
    assert (folder / "rows.parquet").read_bytes() == first  # including the measured times


def test_other_codecs_have_the_same_measures_as_the_model(place, capsys, weights, monkeypatch):
    """`egic evaluate --anchors` and `egic report --anchors`, with measures of pictures and of sets.

    FID is left out: its matrix roots take a minute for these sets, and it is collected as KID is.
    """
    model = tiny_model(rates=3)
    artifact.save(place / "some" / "where" / "orp", {"codec": model.codec, "orp": model.orp}, {"stage": "orp"})
    (place / "pictures").mkdir()
    for i in range(2):
        Image.fromarray(photograph(i, 256, 288)).save(place / "pictures" / f"{i}.png")
    args = "evaluate --model mine=some/where/orp --images pictures --alphas 0,1 --qualities 20,50 --shown 1".split()
    args += f"--weights {weights} --metrics psnr,ms_ssim,lpips_alex,kid256 --compute.threads 1".split()
    args += "--compute.cpus-per-worker 0.5".split()
    assert main.main([*args, "--anchors", "jpeg,webp,avif"]) == 0
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1]).parent
    of_command = json.loads((folder / "sets.json").read_text())
    installed = {anchor.label for anchor in anchors.find(("jpeg", "webp", "avif"))[0]}
    assert {e["label"] for e in of_command} == {"mine"} | installed and len(of_command) == 4 + 4 * len(installed)
    measured = {name for name in METRICS if of_command[0][name] is not None}
    assert {"psnr_db", "ms_ssim"} <= measured
    for entry in of_command:
        assert {name for name in METRICS if entry[name] is not None} == measured, entry
        assert set(entry["intervals"]) == {"bpp"} | {name for name in measured if not METRICS[name].patch}
    page = (folder / "report.html").read_text()
    assert "mine, quality 20" in page and 'id="paired"' in page and "Against JPEG" in page
    assert 'data-kind="group"' in page and 'data-kind="alpha"' in page and "some/where" not in page

    monkeypatch.setenv("EGIC_WEIGHTS", str(weights))  # the other command codes and measures them again
    assert main.main(["report", str(folder), "--anchors", "jpeg,webp,avif", "--images", "pictures"]) == 0
    again = {(e["label"], e["point"]): e for e in json.loads((folder / "sets.json").read_text())}
    assert list(again) == [(e["label"], e["point"]) for e in of_command]
    for entry in of_command:
        for name in ("bpp", *measured):
            assert again[entry["label"], entry["point"]][name] == pytest.approx(entry[name], rel=1e-3, abs=1e-6), name
