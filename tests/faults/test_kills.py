"""Processes that die: the result equals an unbroken run, and MLflow has every step once."""

import os
import signal
import time

import pytest

from tests.faults.injected import EVERY, STEPS, Run, checkpoints, curves, digest, step_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(600)]
ALL = list(range(5, STEPS + 1, 5))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> str:
    """Artifact digest of a run without faults."""
    with Run(tmp_path_factory.mktemp("unbroken")) as run:
        assert run.end() == 0, run.text()
        return digest(run.text())


def test_a_train_worker_is_killed(tmp_path, monkeypatch, unbroken):
    with Run(tmp_path) as run:
        run.wait_for_checkpoint(EVERY)
        (worker,) = run.members("RayTrainWorker")
        worker.kill()
        killed = time.monotonic()
        run.wait_until(lambda: run.members("RayTrainWorker"), "new worker")
        run.wait_for_checkpoint(2 * EVERY)
        print(f"{time.monotonic() - killed:.1f} s from the kill to the next checkpoint")
        assert run.end() == 0, run.text()
        assert digest(run.text()) == unbroken
    assert curves(tmp_path, monkeypatch) == (ALL, ["FINISHED"])


def test_ray_trains_controller_is_killed(tmp_path, monkeypatch, unbroken):
    with Run(tmp_path) as run:
        run.wait_for_checkpoint(EVERY)
        (controller,) = run.members("TrainController")
        controller.kill()
        assert run.end() == 0, run.text()
        assert "Ray Train's controller died" in run.text()
        assert digest(run.text()) == unbroken
    assert curves(tmp_path, monkeypatch) == (ALL, ["FINISHED"])


def test_ray_trains_controller_is_killed_while_it_starts_the_workers(tmp_path, unbroken):
    """Its reserved resources are released: otherwise no core is free for the next worker and its data."""
    with Run(tmp_path) as run:
        run.wait_until(lambda: run.members("RayTrainWorker"), "first worker")
        (controller,) = run.members("TrainController")
        controller.kill()
        assert run.end() == 0, run.text()
        assert "Ray Train's controller died" in run.text()
        assert digest(run.text()) == unbroken


def test_the_data_workers_are_killed(tmp_path, unbroken):
    with Run(tmp_path) as run:
        run.wait_for_checkpoint(EVERY)
        victims = [
            p for p in run.members("ray::") if "Read" in " ".join(p.cmdline()) or "IDLE" in " ".join(p.cmdline())
        ]
        assert victims
        for victim in victims:
            victim.kill()
        assert run.end() == 0, run.text()
        assert digest(run.text()) == unbroken


def test_the_driver_is_killed_and_its_last_checkpoint_truncated(tmp_path, monkeypatch, unbroken):
    """kill -9 of the driver; then the same command resumes from the checkpoint before the damaged one."""
    with Run(tmp_path) as run:
        run.wait_for_checkpoint(2 * EVERY)
        run.kill_hard()
    steps = {step_of(folder): folder for folder in checkpoints(tmp_path)}
    last = steps[run.committed()] / "resume.pt"  # a later one may exist, written but not committed
    last.write_bytes(last.read_bytes()[:1000])
    with Run(tmp_path) as run:
        assert run.end() == 0, run.text()
        assert "is damaged: resume.pt has another digest; going on from step" in run.text()
        assert digest(run.text()) == unbroken
    assert curves(tmp_path, monkeypatch) == (ALL, ["FINISHED"])
    assert len(checkpoints(tmp_path)) == 3


def test_the_list_of_checkpoints_is_damaged(tmp_path, unbroken):
    with Run(tmp_path) as run:
        run.wait_for_checkpoint(EVERY)
        run.kill_hard()
    snapshot = next(tmp_path.glob("outputs/checkpoints/*/checkpoint_manager_snapshot.json"))
    snapshot.write_bytes(snapshot.read_bytes()[:20])
    with Run(tmp_path) as run:
        assert run.end() == 0, run.text()
        assert "using the checkpoint folders instead" in run.text()
        assert digest(run.text()) == unbroken


@pytest.mark.parametrize("by", ["notice", "Ctrl-C"])
def test_signals_end_a_run_after_a_checkpoint(tmp_path, monkeypatch, unbroken, by):
    """Spot nodes' notices and Slurm's limits are a SIGTERM; a terminal's Ctrl-C is a SIGINT for all processes of the
    program. No finished step is lost, and the run is KILLED."""
    with Run(tmp_path) as run:
        run.wait_for_checkpoint(EVERY)
        if by == "notice":
            run.process.send_signal(signal.SIGTERM)
        else:
            os.killpg(run.process.pid, signal.SIGINT)
        assert run.end(60) == 130
        ours = [line for line in run.text().splitlines() if "pid=" not in line]  # Ray's own processes may complain
        assert not [line for line in ours if "Traceback" in line], run.text()
        assert ours[-1] == "stopped; the same command continues from the last checkpoint"
        step = run.committed()
    assert EVERY < step < STEPS
    steps, statuses = curves(tmp_path, monkeypatch)
    assert statuses == ["KILLED"] and steps[-1] == step
    with Run(tmp_path) as run:
        assert run.end() == 0, run.text()
        assert digest(run.text()) == unbroken
    steps, statuses = curves(tmp_path, monkeypatch)
    assert statuses == ["FINISHED"] and steps == sorted({*ALL, step})
