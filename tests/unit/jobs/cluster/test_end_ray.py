"""No process of a Ray that a command has started is left when the command ends."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[4]
STUCK = """
import atexit, os, time
import ray
from jobs.cluster.start import start_ray

class Worker:
    def pid(self):
        return os.getpid()

    def leave(self):
        atexit.register(time.sleep, 1000)
        ray.actor.exit_actor()

start_ray()
worker = ray.remote(num_cpus=0)(Worker).remote()
print(ray.get(worker.pid.remote()))
worker.leave.remote()
time.sleep(5)  # Ray no longer counts the process as its own
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_process_that_does_not_end_is_killed(short_folder):
    env = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(short_folder)}
    done = subprocess.run([sys.executable, "-c", STUCK], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(10)  # raises TimeoutExpired
