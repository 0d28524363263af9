"""What `ray job submit --working-dir .` uploads: the code, in less than 5 MB, and nothing that runs or people leave."""

import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 5_000_000
LEFT_BEHIND = (
    "outputs/checkpoints/resume.pt", "outputs/data/train/shard_00000.parquet", "mlruns/0/metric", "mlartifacts/1/model",
    "mlflow.db", "data/coco/train2017/0.jpg", ".venv/lib/torch.so", "egic/__pycache__/codec.cpython-311.pyc",
    ".git/objects/pack", "infra/.env", ".ray-job-7-abcdef/token",
)  # fmt: skip


def test_a_checkout_with_runs_in_it_is_small(tmp_path):
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    constants = pytest.importorskip("ray._private.ray_constants")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    here = tmp_path / "checkout"
    tracked = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    for name in tracked:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes((ROOT / name).read_bytes())
    for name in LEFT_BEHIND:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(b"\0" * LIMIT)
    package = tmp_path / "package.zip"
    packaging.create_package(  # as the job client does it: Ray's own excludes, and .gitignore
        str(here), package, include_gitignore=True, excludes=constants.get_runtime_env_default_excludes()
    )
    assert package.stat().st_size < LIMIT
    with zipfile.ZipFile(package) as content:
        assert sorted(content.namelist()) == sorted(tracked)
        assert "pipelines/full.py" in content.namelist()
