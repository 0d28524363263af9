"""Commands on a machine where Ray already runs, as documented: they join it only if RAY_ADDRESS is set."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/training.md").read_text()
PORT = 6379
pytestmark = [pytest.mark.ray, pytest.mark.slow]

COMMAND = """
import json, os, ray
from egic.errors import run_main
from jobs.cluster.start import start_ray

@ray.remote
def group():
    return os.getpgrp()

def main():
    start_ray()
    print(json.dumps([ray.get_runtime_context().gcs_address, os.getpgrp(), ray.get(group.remote())]))

raise SystemExit(run_main(main))
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home folder with a token, as Ray's first start creates it."""
    with tempfile.TemporaryDirectory(prefix="egic") as folder:
        token = Path(folder, ".ray/auth_token")
        token.parent.mkdir()
        token.write_text("0123456789abcdef" * 4)
        yield Path(folder)


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"HOME": str(home), "RAY_TMPDIR": str(home), "PYTHONPATH": str(ROOT), "PATH": path} | more


@pytest.fixture(scope="module")
def head(home) -> Iterator[str]:
    """Run `ray start --head` as in docs/training.md; yields its address."""
    (start,) = re.findall(r"^ray start .*$", PAGE, re.MULTILINE)
    (address,) = re.findall(r"^export RAY_ADDRESS=(\S+)$", PAGE, re.MULTILINE)
    process = subprocess.Popen([*start.split(), "--block", "--num-cpus=1"], env=environment(home), cwd=home,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    if not any("started" in line for line in process.stdout):
        process.wait()
        pytest.skip(f"port {PORT} is taken, or Ray does not start")
    yield address
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def command(env: dict[str, str], *prefix: str) -> subprocess.CompletedProcess:
    """The command's end, in a process group of its own: where Ray kills that, this process is spared."""
    return subprocess.run(
        [*prefix, sys.executable, "-c", COMMAND], env=env, cwd=ROOT, capture_output=True, text=True, timeout=240,
        process_group=0,
    )  # fmt: skip


def test_a_command_joins_the_documented_address_with_the_homes_token(head, home):
    done = command(environment(home, RAY_ADDRESS=head))
    assert done.returncode == 0, done.stderr
    assert str(PORT) in done.stdout and "authentication" not in done.stderr


def test_without_an_address_a_command_starts_its_own_ray_and_does_not_kill_its_caller(head, home):
    """Ray kills the process group of a worker, which must not be that of the command."""
    script = 'echo before; "$@"; status=$?; sleep 2; echo "after $status"'
    done = command(environment(home), "bash", "-c", script, "bash")
    assert done.returncode == 0, done.stderr
    before, facts, after = done.stdout.splitlines()
    address, own, workers = json.loads(facts)
    assert (before, after) == ("before", "after 0") and not address.endswith(f":{PORT}") and own != workers


def test_a_missing_token_is_one_line(head, home, tmp_path):
    done = command(environment(tmp_path, RAY_TMPDIR=str(home), RAY_ADDRESS=head))
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: ") and "~/.ray/auth_token" in last, done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts need root")
def test_a_temporary_folder_mounted_noexec(home):
    with tempfile.TemporaryDirectory(prefix="nx") as folder:
        mount = f'mount -t tmpfs -o noexec tmpfs {folder} && exec "$@"'
        if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
            pytest.skip("this machine does not let mounts be changed")
        done = command(
            environment(home, TMPDIR=folder, RAY_TMPDIR=folder), "unshare", "-m", "bash", "-c", mount, "bash"
        )
    assert done.returncode == 0, done.stderr
