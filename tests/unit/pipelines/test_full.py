"""What a pipeline prints at its end."""

from pipelines import full


def row(stage, headline, reused=False):
    return {
        "stage": stage, "steps": 10_000, "time_s": 4321.7, "images_per_s": 12.34, "headline": headline,
        "run_id": "0123456789abcdef" * 2, "reused": reused,
    }  # fmt: skip


def test_the_table_fits_a_terminal():
    rows = [row("segmentation", "val/miou 0.2365", True), row("gan", "val/lpips 0.5785 *")]
    lines = full.table([*rows, row("evaluate", "0.484 bpp, 18.65 dB")]).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["segmentation", "10000", "1:12:01", "12.3", "val/miou", "0.2365", "01234567", "reused"]
    assert lines[2].endswith("trained") and lines[3].endswith("evaluated")


def test_it_says_where_the_runs_are(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.tracking.runs.experiment_id", lambda name: "7")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/x.db")
    page = "#/experiments/7/runs?workflowType=machine_learning"
    assert full.mlflow_page("x") == (
        f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/x.db\nthen open http://127.0.0.1:5000/{page}"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@server/")
    assert full.mlflow_page("x") == f"https://server/{page}"
