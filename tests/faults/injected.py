"""Run a stage as users run it, in its own processes, and inject faults."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.tracking import store

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 40, 10
ARGS = (
    f"--segmentation.steps {STEPS} --segmentation.checkpoint-every {EVERY} --segmentation.log-every 5 "
    "--segmentation.val-samples 4 --segmentation.batch 4"
).split()


class Run:
    """`python -m jobs.segmentation tiny` in `folder`; all processes that it started are ended with the block."""

    def __init__(self, folder: Path, *args: str, command: str = "-m jobs.segmentation tiny", **env: str):
        self.folder, self.log = folder, folder / f"log-{time.monotonic_ns()}.txt"
        env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONPATH": str(ROOT)} | env
        if "RAY_ADDRESS" not in env or not env["RAY_ADDRESS"]:
            env.pop("RAY_ADDRESS", None)
        command = [sys.executable, *command.split(), *(args or ARGS)]
        self.out = self.log.open("w")
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=self.out, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.family: dict[int, psutil.Process] = {}

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        self.members()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for member in self.family.values():
            try:
                member.kill()
            except psutil.NoSuchProcess:
                pass
        self.out.close()

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def members(self, name: str = "") -> list[psutil.Process]:
        """Processes of the run whose title contains a text."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self.family |= {child.pid: child for child in children}
        return [child for child in children if name in title(child)]

    def snapshot(self) -> dict:
        """Ray Train's list of committed checkpoints."""
        found = list(self.folder.glob("outputs/checkpoints/segmentation-*/checkpoint_manager_snapshot.json"))
        try:
            return json.loads(found[0].read_text()) if found else {}
        except ValueError:  # being written
            return {}

    def committed(self) -> int:
        """Step of the last committed checkpoint; 0 for none."""
        latest = self.snapshot().get("latest_checkpoint_result")
        return latest["metrics"]["step"] if latest else 0

    def wait_for_checkpoint(self, step: int, timeout_s: float = 200) -> None:
        self.wait_until(lambda: self.committed() >= step, f"checkpoint {step}", timeout_s)

    def wait_until(self, condition, what: str, timeout_s: float = 200) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"ended while waiting for {what}:\n{self.text()[-3000:]}"
            assert time.monotonic() < deadline, f"no {what} after {timeout_s} s:\n{self.text()[-3000:]}"
            self.members()
            time.sleep(0.05)

    def end(self, timeout_s: float = 250) -> int:
        """Wait until the run has ended by itself; returns its exit status."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running after {timeout_s} s:\n{self.text()[-3000:]}"
            self.members()
            time.sleep(0.2)
        return self.process.returncode

    def kill_hard(self) -> None:
        """kill -9 of the driver; Ray's processes detect it and end by themselves."""
        self.members()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        psutil.wait_procs(list(self.family.values()), timeout=60)


@dataclass
class Head:
    """A Ray head: its address, its folder, and the environment for processes that connect to it."""

    address: str
    temp: Path
    env: dict[str, str]


@contextmanager
def head(folder: Path, *args: str, cpus: int = 2, object_store_memory: int = 150_000_000, **env: str) -> Iterator[Head]:
    """A Ray head with its own token, separate from any other on this machine. env: for its processes only."""
    temp = Path(tempfile.mkdtemp(prefix="egic-ray-", dir="/tmp"))  # Ray's sockets need a short path
    port, token = free_port(), folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    client = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_ADDRESS": f"127.0.0.1:{port}"}
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}",
        f"--num-cpus={cpus}", f"--object-store-memory={object_store_memory}", f"--temp-dir={temp}",
        "--node-ip-address=127.0.0.1", "--disable-usage-stats", *args,
    ]  # fmt: skip
    with (folder / "head.txt").open("w") as log:
        env = os.environ | {"PYTHONPATH": str(ROOT)} | client | env
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    family = []
    try:
        wait_for_port(port)
        yield Head(client["RAY_ADDRESS"], temp, client)
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                pass
        shutil.rmtree(temp, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for_port(port: int, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on {port}"
            time.sleep(0.2)


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def digest(text: str) -> str:
    """sha256 prefix of the artifact of a finished run, from the folder's name in its output."""
    return Path(text.strip().splitlines()[-1]).name


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of the run, the earliest step first."""
    found = [p.parent for p in folder.glob("outputs/checkpoints/segmentation-*/checkpoint_2*/meta.json")]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint folder."""
    return json.loads((checkpoint / "meta.json").read_text())["step"]


def curves(folder: Path, monkeypatch, metric: str = "train/seg") -> tuple[list[int], list[str]]:
    """Steps in MLflow of a metric of the stage's only run, in order, and the statuses of all its runs."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    client = store.client()
    runs = client.search_runs([store.experiment_id()], "tags.`egic.kind` = 'stage'")
    steps = [m.step for run in runs for m in client.get_metric_history(run.info.run_id, metric)]
    return sorted(steps), [run.info.status for run in runs]


def spoken_steps(text: str) -> list[int]:
    """Steps in the progress lines."""
    return [int(n) for n in re.findall(r"segmentation\s+step (\d+)/", text)]
