"""Evaluations of an experiment in one report: which results are used, their labels, and the run in MLflow."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from egic.cli import main
from egic.report import evaluation_folder
from jobs.evaluation import compare
from jobs.tracking.runs import finish, finished_runs, log_folder, start_pipeline, start_stage
from jobs.tracking.store import client, experiment_id
from tests import evaluation_folders

LABEL = "models:/egic-orp@best"


def kept(folder, digest, label=LABEL, bpp=0.6, seed=0):
    """An evaluation folder of one model on two small pictures."""
    pictures = {f"{i}.png": evaluation_folders.photograph(seed + i, 32, 48) for i in range(2)}
    evaluation_folders.make(folder, pictures, labels=(label,), alphas=(0.0, 1.0), bpp=bpp)
    rows = [row | {"model_digest": digest} for row in pq.read_table(folder / "rows.parquet").to_pylist()]
    evaluation_folders.write(folder, rows)
    return folder


def result(folder, run_id, pipeline="", data="d"):
    return compare.Result(run_id=run_id, data=data, pipeline=pipeline, found=evaluation_folder.read(folder))


def test_the_newest_result_of_a_model_is_used_and_a_moved_alias_is_another_model(tmp_path):
    old = result(kept(tmp_path / "old", "a" * 64, bpp=0.5), "1" * 32)
    moved = result(kept(tmp_path / "moved", "b" * 64, bpp=0.7), "2" * 32)
    again = result(kept(tmp_path / "again", "b" * 64, bpp=0.9), "3" * 32)
    labels = compare.write_together([again, moved, old], tmp_path / "out")
    assert labels == [f"{LABEL} in run 11111111", LABEL]
    found = evaluation_folder.read(tmp_path / "out")
    assert {(r["label"], r["model_digest"][0]) for r in found.rows} == {(labels[0], "a"), (LABEL, "b")}
    assert [(e["label"], round(e["bpp"], 1), e["alpha"]) for e in found.sets] == [
        (labels[0], 0.5, 0.0), (labels[0], 0.5, 1.0), (LABEL, 0.9, 0.0), (LABEL, 0.9, 1.0),
    ]  # fmt: skip
    shown = evaluation_folder.shown(found)
    assert {name: len(files) for name, (_, files) in shown.items()} == {"0.png": 4, "1.png": 4}
    assert found.skipped == old.found.skipped != []


def test_a_pipelines_model_has_the_pipelines_name(tmp_path):
    members = [result(kept(tmp_path / n, n * 64, label=f"models:/egic-orp/{n}"), n * 32, f"beta{n}") for n in "21"]
    assert compare.write_together(members, tmp_path / "out") == [f"beta{n}, models:/egic-orp/{n}" for n in "12"]


def test_another_codec_is_used_once_and_listed_after_the_models(tmp_path):
    members = []
    for n in "21":
        folder = kept(tmp_path / n, n * 64, label=n)
        rows = pq.read_table(folder / "rows.parquet").to_pylist()
        rows += [
            r | {"label": "JPEG", "codec": "jpeg", "alpha": None, "point": f"rate of {n}", "model_digest": None}
            for r in rows[:2]
        ]
        evaluation_folders.write(folder, rows)
        members.append(result(folder, n * 32))
    assert compare.write_together(members, tmp_path / "out") == ["1", "2", "JPEG"]
    points = {r["point"] for r in evaluation_folder.read(tmp_path / "out").rows if r["label"] == "JPEG"}
    assert points == {"rate of 2"}


def logged(folder, experiment, data="d", status="FINISHED", parent=None):
    """Log the run of an evaluation with these files."""
    run_id = start_stage(parent, "evaluate", folder.name, {"data": data}, {}, experiment=experiment)
    log_folder(run_id, folder, {})
    finish(run_id, status)
    return run_id


def test_an_experiment_has_a_report_per_set_of_pictures(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    assert main.main(["compare", "--experiment", "x"]) == 2
    assert "'x' has no finished evaluation" in capsys.readouterr().err
    pipeline = start_pipeline("beta02", {}, {}, experiment="x")
    first = logged(kept(tmp_path / "1", "1" * 64), "x", parent=pipeline)
    second = logged(kept(tmp_path / "2", "2" * 64), "x")
    logged(kept(tmp_path / "3", "3" * 64, seed=7), "x", data="other")
    logged(kept(tmp_path / "4", "4" * 64), "x", status="FAILED")
    (tmp_path / "none").mkdir()
    empty = logged(tmp_path / "none", "x")
    assert main.main(["compare", "--experiment", "x"]) == 0
    reports = [Path(line) for line in capsys.readouterr().out.split()]
    assert len(reports) == 2 and f"run {empty} is left out: " in caplog.text
    found = evaluation_folder.read(reports[1].parent)  # an evaluation folder again
    assert {r["model_digest"][0] for r in found.rows} == {"1", "2"}
    page = reports[1].read_text()
    assert f"beta02, {LABEL}" in page and "PSNR over rate" in page

    runs = client().search_runs(
        [experiment_id("x")], "tags.`egic.kind` = 'comparison'", order_by=["attributes.start_time ASC"]
    )
    assert [json.loads(run.data.tags["egic.compared"]) for run in runs][1] == [second, first]
    kept_files = {f.path for run in runs for f in client().list_artifacts(run.info.run_id)}
    assert kept_files == {"report.html", "plots"} and {run.info.status for run in runs} == {"FINISHED"}
    assert main.main(["compare", "--experiment", "x"]) == 0  # again: the same two runs
    assert len(finished_runs("evaluate", experiment="x")) == 4
    assert len(client().search_runs([runs[0].info.experiment_id], "tags.`egic.kind` = 'comparison'")) == 2


@pytest.mark.parametrize("output", ["s3://bucket/egic", "gs://bucket"])
def test_reports_need_a_local_folder(output, capsys):
    assert main.main(["compare", "--output", output]) == 2
    assert "no local folder" in capsys.readouterr().err
