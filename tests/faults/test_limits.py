"""Non-finite losses, damaged shards, full disks and stores: one line that says what to do, and no step is lost."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobs.config.presets import tiny
from jobs.tracking import store
from jobs.training.worker import MAX_ROLLBACKS
from tests.faults.injected import ARGS, EVERY, ROOT, STEPS, Run, checkpoints, curves, head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(600)]


def with_nan(folder: Path, where: str, *args: str, **run: str) -> Run:
    paths = f"{Path(__file__).parent / 'inject'}{os.pathsep}{ROOT}"
    return Run(folder, *ARGS, *args, PYTHONPATH=paths, INJECT_NAN=where, INJECT_FOLDER=str(folder), **run)


def last_line(run: Run) -> str:
    return run.text().strip().splitlines()[-1]


def test_a_loss_that_is_not_finite_stops_the_stage_at_once(tmp_path):
    with with_nan(tmp_path, f"{EVERY + 7}") as run:
        assert run.end() == 2
        line = f"error: segmentation step {EVERY + 7}, rank 0: non-finite seg"
        assert last_line(run).startswith(line), run.text()
        assert run.text().count("the update was not made") <= 3  # logged once per process, not retried
        assert run.committed() == EVERY


def test_a_failing_stage_stops_the_one_in_parallel(tmp_path, monkeypatch):
    with with_nan(tmp_path, "3", command=f"{ROOT}/pipelines/full.py tiny") as run:
        assert run.end() == 2
        assert last_line(run).startswith("error: segmentation step 3, rank 0: non-finite seg"), run.text()
        assert not psutil.wait_procs(run.family.values(), timeout=20)[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    runs = store.client().search_runs([store.experiment_id()])
    statuses = {run.data.tags.get("egic.stage", "pipeline"): run.info.status for run in runs}
    assert statuses == {"pipeline": "FAILED", "segmentation": "FAILED", "mse-codec": "KILLED"}
    assert not list(tmp_path.glob("outputs/checkpoints/*/lease.json"))


def test_rollback_resumes_with_half_the_learning_rate(tmp_path, monkeypatch):
    with with_nan(tmp_path, f"{EVERY + 7}", "--on-nan", "rollback") as run:
        assert run.end() == 0, run.text()
    steps, statuses = curves(tmp_path, monkeypatch)
    assert (steps, statuses) == (list(range(5, STEPS + 1, 5)), ["FINISHED"])
    rates = learning_rates(tmp_path, monkeypatch)
    full = tiny().segmentation.lr
    assert [rates[s] for s in (5, 10, 15, STEPS)] == pytest.approx([full, full, full / 2, full / 2])


def learning_rates(folder: Path, monkeypatch) -> dict[int, float]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    client = store.client()
    (run,) = client.search_runs([store.experiment_id()], "tags.`egic.kind` = 'stage'")
    return {m.step: m.value for m in client.get_metric_history(run.info.run_id, "train/lr")}


def test_rollbacks_are_bounded(tmp_path):
    with with_nan(tmp_path, f"{EVERY + 2}!", "--on-nan", "rollback") as run:
        assert run.end(400) == 2
        assert last_line(run).startswith(f"error: segmentation step {EVERY + 2}, rank 0: non-finite seg"), run.text()
    assert len(list(tmp_path.glob("outputs/checkpoints/*/rollback-*.json"))) == MAX_ROLLBACKS


def test_the_disk_fills_up_while_a_checkpoint_is_written(tmp_path):
    """The last complete checkpoint is kept; when there is space again, the same command resumes from it."""
    (tmp_path / "outputs" / "checkpoints").mkdir(parents=True)
    disk = tmp_path / "outputs" / "checkpoints"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small file system: not root")
    try:
        with Run(tmp_path) as run:
            run.wait_for_checkpoint(EVERY)
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as f, pytest.raises(OSError, match="No space left"):
                while True:
                    f.write(bytes(100_000))
            assert run.end() == 2, run.text()
            assert "no space left for a checkpoint" in last_line(run), run.text()
            assert EVERY <= run.committed() < STEPS
            filler.unlink()
        with Run(tmp_path) as run:
            assert run.end() == 0, run.text()
            assert len(checkpoints(tmp_path)) == 3
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_damaged_shard_is_named_and_not_retried(tmp_path):
    with Run(tmp_path, *ARGS[:1], "2", *ARGS[2:]) as run:
        assert run.end() == 0
    shard = sorted(tmp_path.glob("outputs/data/**/train/shard-*.parquet"))[0]
    content = bytearray(shard.read_bytes())
    for place in range(1000, len(content) - 5000, 97):
        content[place] ^= 0xFF
    shard.write_bytes(content)
    with Run(tmp_path) as run:
        assert run.end() == 2, run.text()
        assert shard.name in last_line(run), run.text()
        assert run.text().count("Error in training function") <= 1, "not retried"


FILL = """
import numpy as np, ray, sys, time
ray.init(logging_level="ERROR")
kept = [ray.put(np.ones(10_000_000, np.uint8)) for _ in range(12)]  # more than the store: some are spilled
print("full", flush=True)
time.sleep(600)
"""


def test_training_works_with_a_full_object_store(tmp_path):
    """Another job has filled the store of 80 MB: crops are spilled to disk, and training succeeds."""
    with head(tmp_path, object_store_memory=80_000_000) as ray:
        command = [sys.executable, "-c", FILL]
        filler = subprocess.Popen(command, env=os.environ | ray.env, stdout=subprocess.PIPE, text=True)
        try:
            assert filler.stdout.readline() == "full\n"
            with Run(tmp_path, **ray.env) as run:
                assert run.end() == 0, run.text()
                assert run.committed() == STEPS
            assert list(ray.temp.glob("session_*/ray_spilled_objects*/*")), "nothing was spilled"
        finally:
            filler.kill()
            filler.wait()
