"""infra/slurm.sh with stand-ins for srun, scontrol and ray that record their arguments."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

INFRA = Path(__file__).resolve().parents[3] / "infra"
EXECUTABLES = Path(sys.executable).parent


@pytest.mark.parametrize("path", sorted(INFRA.rglob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_reports_nothing(path):
    program = shutil.which("shellcheck", path=f"{EXECUTABLES}{os.pathsep}{os.environ['PATH']}")
    if not program:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run([program, path], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert os.access(path, os.X_OK)


FAKES = {
    "scontrol": 'for i in {1..20000}; do echo node$i; done',
    "srun": 'while [[ $1 == --* ]]; do shift; done; [[ $1 == hostname ]] && { echo "10.1.2.3 fe80::1"; exit; }; "$@"',
    "ray": '[[ -z $RAY_ADDRESS ]] || exit 3;'
           ' stat -c %a "$RAY_AUTH_TOKEN_PATH" > mode; wc -c < "$RAY_AUTH_TOKEN_PATH" > size; echo "$@" > said;'
           ' [[ -z $RAY_FAILS ]] || exit 0; while [[ $1 != -- ]]; do shift; done; shift; "$@"',
    "python": 'if [[ $1 == -c ]]; then exec "$REAL_PYTHON" "$@"; fi; echo "$@" > ran;'
              ' echo "$RAY_ADDRESS" > address; exit "${PIPELINE_STATUS:-0}"',
}  # fmt: skip


@pytest.fixture
def slurm(tmp_path):
    """Runs the script with stand-ins for srun, ray and python that record their arguments."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, body in FAKES.items():
        (tmp_path / ".venv/bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / ".venv/bin" / name).chmod(0o755)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        given = os.environ | {
            "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[1-2]", "REAL_PYTHON": sys.executable, "RAY_FAILS": "", "RAY_ADDRESS": "",
        } | environment  # fmt: skip
        given["PATH"] = f"{tmp_path / '.venv/bin'}{os.pathsep}{given['PATH']}"
        return subprocess.run(["bash", INFRA / "slurm.sh", *arguments], env=given, capture_output=True, text=True)

    return run


def test_the_job_starts_ray_on_all_nodes_and_runs_the_pipeline(slurm, tmp_path):
    done = slurm("paper", "--data", "/a folder")
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "said").read_text()
    assert said.startswith("symmetric-run --address 10.1.2.3:6379 --min-nodes 2 ")
    assert (tmp_path / "ran").read_text() == "pipelines/full.py paper --data /a folder\n"
    assert (tmp_path / "address").read_text() == "10.1.2.3:6379\n"
    assert (tmp_path / "mode").read_text() == "600\n" and (tmp_path / "size").read_text() == "64\n"
    assert not list(tmp_path.glob(".ray-job-*")), "the token is removed with the job"


def test_a_failed_job_ends_with_an_error(slurm, tmp_path):
    assert slurm("paper", PIPELINE_STATUS="2").returncode != 0
    silent = slurm("paper", RAY_FAILS="1")  # symmetric-run exits with 0 when Ray does not start
    assert silent.returncode == 1 and "the pipeline did not finish" in silent.stderr
    assert slurm().returncode == 2
    (tmp_path / ".venv/bin/ray").unlink()
    assert slurm("paper").returncode == 2
