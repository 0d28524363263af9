"""Workers as forks: they are what a Python started for the same script would be, and nothing outlives the driver."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.cluster import forks

ROOT = Path(__file__).resolve().parents[4]
SCRIPT = """
import json, os, signal, sys
print(json.dumps({"argv": sys.argv, "name": __name__, "env": os.environ.get("EGIC_TEST"), "here": os.getcwd(),
                  "old": os.environ.get("EGIC_OLD"), "forked": "torch" in sys.modules, "pid": os.getpid(),
                  "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))}))
print("said", file=sys.stderr)
sys.exit(3)
"""
DRIVER = "from jobs import forks; print(forks.fork_twin(), flush=True); input()"


@pytest.fixture(scope="module")
def executable():
    """A twin of a process that has imported torch, and has a variable that the ones that ask do not have."""
    driver = subprocess.Popen(
        [sys.executable, "-c", f"import ray._raylet, torch; {DRIVER}"], cwd=ROOT, env=os.environ | {"EGIC_OLD": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield driver.stdout.readline().strip()
    driver.kill()
    driver.wait()


def ask(executable: str, folder: Path, job: str = forks.FIRST_JOB) -> tuple[dict, subprocess.CompletedProcess]:
    script = folder / "some_worker.py"
    script.write_text(SCRIPT)
    env = {k: v for k, v in os.environ.items() if k != "EGIC_OLD"} | {"RAY_JOB_ID": job, "EGIC_TEST": "it's"}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as Ray does for what it starts
    try:
        done = subprocess.run(
            [executable, str(script), "--a", "b c"], cwd=folder, env=env, capture_output=True, text=True, timeout=60
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return json.loads(done.stdout), done


def wait_until(condition, otherwise: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def test_a_fork_has_what_the_one_that_asked_has(executable, tmp_path):
    told, done = ask(executable, tmp_path)
    pid = told.pop("pid")
    assert told == {
        "argv": [str(tmp_path / "some_worker.py"), "--a", "b c"], "name": "__main__", "env": "it's", "old": None,
        "here": str(tmp_path), "forked": True, "blocked": [int(signal.SIGINT)],
    }  # fmt: skip
    assert done.stderr == "said\n"
    wait_until(lambda: not Path("/proc", str(pid)).exists(), "the worker is not buried")


def test_every_request_is_a_process_of_its_own(executable, tmp_path):
    assert len({ask(executable, tmp_path)[0]["pid"] for _ in range(3)}) == 3


def test_a_worker_of_another_job_is_an_ordinary_process(executable, tmp_path):
    told, done = ask(executable, tmp_path, job="02000000")
    assert not told["forked"] and told["argv"][1:] == ["--a", "b c"] and done.returncode == 3


def test_without_the_twin_the_script_is_python(executable, tmp_path):
    Path(executable).with_name("socket").rename(tmp_path / "away")
    try:
        told, done = ask(executable, tmp_path)
    finally:
        (tmp_path / "away").rename(Path(executable).with_name("socket"))
    assert not told["forked"] and done.returncode == 3
    said = subprocess.run([executable, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
    assert said.stdout.strip() == sys.executable


def test_the_twin_ends_with_a_driver_that_is_killed():
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    executable = driver.stdout.readline().strip()
    folder = Path(executable).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    driver.kill()
    driver.wait()
    wait_until(lambda: not folder.exists(), "the twin is still there")


def test_a_driver_on_a_cluster_makes_no_twin(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    forks.start()
    assert forks.executable == ""
