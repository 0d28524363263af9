"""Starting Ray, or connecting to one: errors are one line."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from egic.errors import UserError
from jobs.cluster import start
from jobs.cluster.shutdown import interruptible

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def no_ray(monkeypatch):
    """Arguments of ray.init, which is replaced and starts nothing."""
    calls = []
    monkeypatch.setattr(start.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(start.ray, "init", lambda *args, **options: calls.append((args, options)))
    monkeypatch.setattr(start, "quiet_ray", lambda: None)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return calls


def test_without_an_address_a_new_ray_is_started(no_ray):
    start.start_ray()
    assert no_ray[0][0] == ("local",)


def test_a_failed_start_is_one_line(no_ray, monkeypatch):
    def init(*_, **__):
        raise Exception("The current node timed out during startup. This could happen because ...\nmore")

    monkeypatch.setattr(start.ray, "init", init)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/logs-of-ray")
    with pytest.raises(UserError, match="timed out during startup.*busy.*/tmp/logs-of-ray/ray/session_latest/logs"):
        start.start_ray()


def test_a_start_that_fails_once_is_tried_again(monkeypatch):
    """A busy machine may need more than the 30 s that Ray waits; by then its programs are in memory."""
    outcomes = [Exception("timed out"), None]

    def init(*_, **__):
        if error := outcomes.pop(0):
            raise error

    monkeypatch.setattr(start.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(start.ray, "init", init)
    monkeypatch.setattr(start, "quiet_ray", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    start.start_ray()
    assert not outcomes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_starting_ray_keeps_the_programs_signal_handlers(number, no_ray, monkeypatch):
    monkeypatch.setattr(start.ray, "init", lambda *_, **__: signal.signal(number, signal.SIG_DFL))
    with interruptible():
        ours = signal.getsignal(number)
        start.start_ray()
        assert signal.getsignal(number) == ours


def test_a_temporary_folder_with_a_too_long_path_is_refused(no_ray, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("slurm" * 20)))
    with pytest.raises(UserError, match="too long for Ray's sockets.*set RAY_TMPDIR"):
        start.start_ray()
    assert not no_ray
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (start.MAX_SOCKET - start.RAY_SOCKETS - 1))
    start.start_ray()


def test_an_address_without_ray_is_one_line(no_ray, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"no Ray runs at RAY_ADDRESS={address} .*refused.*unset RAY_ADDRESS"):
        start.start_ray()
    assert not no_ray


@pytest.mark.parametrize(
    "address, message",
    [
        ("127.0.0.1", "is not HOST:PORT, such as 127.0.0.1:6379"),
        (":6379", "is not HOST:PORT"),
        ("127.0.0.1:", "is not HOST:PORT"),
        ("127.0.0.1:70000", "is not HOST:PORT"),
        ("head node", "is not HOST:PORT"),
        ("a..b:6379", "no Ray runs at RAY_ADDRESS=a..b:6379"),
        (f"{'x' * 64}.org:6379", "no Ray runs at"),
    ],
)
def test_an_address_that_is_none_is_one_line(no_ray, monkeypatch, address, message):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"RAY_ADDRESS={re.escape(address)}") as caught:
        start.start_ray()
    assert message in str(caught.value) and "token" not in str(caught.value) and not no_ray


def test_blanks_around_an_address_do_not_matter(no_ray, monkeypatch):
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        address = f"127.0.0.1:{head.getsockname()[1]}"
        for written, used in ((f" {address} ", address), (" ", "local")):
            monkeypatch.setenv("RAY_ADDRESS", written)
            start.start_ray()
            assert no_ray[-1][0] == (used,)


def test_a_cluster_that_never_answers_is_one_line():
    """As a head whose process hangs. Ray would wait for minutes in a call that signals do not interrupt."""
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        address = f"127.0.0.1:{head.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", "from jobs.cluster import start; start.ANSWER_S = 1; start.start_ray()"],
            cwd=ROOT, env=os.environ | {"RAY_ADDRESS": address}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"error: the Ray at RAY_ADDRESS={address} does not answer within 1 s"
    )


def test_a_ray_client_is_refused(no_ray, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    with pytest.raises(UserError, match="Ray Client, which cannot train"):
        start.start_ray()


CORES = """
import json, ray
ray.init = lambda *args, **options: print(json.dumps(options["num_cpus"]))
from jobs.cluster import start
start.start_ray()
"""


def cores_of(command: list[str]) -> int:
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, sys.executable, "-c", CORES], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not shutil.which("taskset"), reason="no taskset")
def test_ray_uses_the_cores_of_the_cpu_affinity():
    first = str(min(os.sched_getaffinity(0)))
    assert cores_of(["taskset", "-c", first]) == 1


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts need root")
def test_ray_uses_the_cores_of_the_containers_quota():
    mount = 'mount -t tmpfs tmpfs /sys/fs/cgroup && echo "100000 100000" > /sys/fs/cgroup/cpu.max && exec "$@"'
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let mounts be changed")
    assert cores_of(["unshare", "-m", "bash", "-c", mount, "bash"]) == 1
