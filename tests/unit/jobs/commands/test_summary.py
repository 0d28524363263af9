"""The summary at the end of a pipeline."""

import pytest

from jobs.commands import summary
from jobs.tracking.model_registry import Artifact
from jobs.training.reuse_or_train import Outcome


def row(stage, headline, reused=False, busy_s=0.0):
    return {
        "stage": stage, "steps": 10_000, "time_s": 4321.7, "images_per_s": 12.34, "headline": headline,
        "run_id": "0123456789abcdef" * 2, "reused": reused, "busy_s": busy_s,
    }  # fmt: skip


def test_the_table_fits_a_terminal():
    rows = [row("segmentation", "val/miou 0.2365", True), row("gan", "val/lpips 0.5785 *")]
    lines = summary.table([*rows, row("evaluate", "0.484 bpp, 18.65 dB")]).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["segmentation", "10000", "1:12:01", "12.3", "val/miou", "0.2365", "01234567", "reused"]
    assert lines[2].endswith("trained") and lines[3].endswith("evaluated")


@pytest.mark.parametrize(
    "measured, points",
    [
        ({"psnr_db_alpha_0": 31.0, "psnr_db_alpha_1": 30.0}, ["alpha 0", "alpha 1"]),
        ({"psnr_db_quality_10_alpha_1": 30.0}, ["quality 10 alpha 1"]),  # a codec with rates
        ({"psnr_db": 30.0}, [""]),  # a codec without ORP
    ],
)
def test_the_evaluation_of_any_codec_has_a_row(measured, points):
    found = {"num_pictures": 2, "bpp": 0.5, "time_s": 4.0, "busy_s": 3.0, "reused": False, "run_id": "r", "folder": "f"}
    made = summary.evaluation_row(found | measured, 5.0)
    assert list(made["psnr_db"]) == points and made["headline"] == "0.500 bpp, 30.00 dB"


def outcome(stage: str, metrics: dict, lpips: str = "", reused: bool = False) -> Outcome:
    artifact = Artifact(run_id="run", uri="models:/m-1", sha256="a" * 64, model_version=3)
    facts = {"steps": 10, "batch": 4, "time_s": 20.0, "validation_s": 5.0, "metrics": metrics, "lpips": lpips}
    return Outcome(stage=stage, artifact=artifact, folder="", reused=reused, provenance=facts, wall_s=30.0)


def test_a_row_has_the_stages_model_and_time():
    found = summary.stage_row(outcome("mse-codec", {"step": 10, "val/psnr_db": 30.25, "val/bpp": 0.5}))
    assert found["metrics"] == {"val/psnr_db": 30.25, "val/bpp": 0.5}
    assert (found["headline"], found["images_per_s"], found["busy_s"]) == ("val/psnr_db 30.25", 2.0, 25.0)
    assert found["model"] == "models:/egic-mse-codec/3"
    assert summary.stage_row(outcome("mse-codec", {"val/psnr_db": 30.25}, reused=True))["busy_s"] == 0


def test_lpips_on_random_weights_is_marked_and_explained(monkeypatch):
    monkeypatch.setattr(summary, "mlflow_page", lambda experiment: "page")
    random = "random backbone, seed 0"
    found = summary.stage_row(outcome("gan", {"val/lpips": 0.5}, random))
    assert found["headline"] == "val/lpips 0.5 *"
    text = summary.text(summary.summarise("tiny", "run", [found], 50.0, random), "egic")
    assert f"* LPIPS used a {random}: do not compare its values" in text
    assert summary.stage_row(outcome("gan", {"val/lpips": 0.5}, "alexnet"))["headline"] == "val/lpips 0.5"


def test_it_prints_how_to_use_the_last_codec(monkeypatch):
    monkeypatch.setattr(summary, "mlflow_page", lambda experiment: "page")
    rows = [
        summary.stage_row(outcome(stage, {"val/psnr_db": 1.0, "val/miou": 1.0}))
        for stage in ("mse-codec", "segmentation")
    ]
    text = summary.text(summary.summarise("tiny", "run", rows, 50.0, ""), "egic")
    assert "egic compress photo.jpg -m models:/egic-mse-codec/3" in text
    assert "egic compress" not in summary.text(summary.summarise("tiny", "run", rows[1:], 50.0, ""), "egic")


def test_of_parallel_stages_the_longest_time_is_counted():
    rows = [row("segmentation", "", busy_s=20.0), row("mse-codec", "", busy_s=30.0), row("gan", "", busy_s=10.0)]
    assert summary.summarise("tiny", "run", rows, 100.0, "")["between_steps"] == pytest.approx(0.6)


def test_it_prints_how_to_open_mlflow(tmp_path, monkeypatch):
    monkeypatch.setattr(summary.store, "experiment_id", lambda name: "7")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/x.db")
    page = "#/experiments/7/runs?workflowType=machine_learning"
    assert summary.mlflow_page("x") == (
        f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/x.db\nthen open http://127.0.0.1:5000/{page}"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@server/")
    assert summary.mlflow_page("x") == f"https://server/{page}"
