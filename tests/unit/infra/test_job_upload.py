"""`ray job submit --working-dir .` uploads code and model, less than 15 MB, without outputs of runs and local files."""

import os
import subprocess
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 15_000_000
LEFT_BEHIND = (
    "outputs/checkpoints/resume.pt", "outputs/data/train/shard_00000.parquet", "mlruns/0/metric", "mlartifacts/1/model",
    "mlflow.db", "data/coco/train2017/0.jpg", ".venv/lib/torch.so", "egic/__pycache__/codec.cpython-311.pyc",
    ".git/objects/pack", "infra/.env", ".ray-job-7-abcdef/token",
)  # fmt: skip


@ray.remote
def uploaded() -> dict[str, int]:
    """Sizes in bytes of the files below a task's working folder."""
    found = [Path(folder, name) for folder, _, names in os.walk(".") for name in names]
    return {os.path.normpath(path): path.stat().st_size for path in found}


@pytest.mark.ray
@pytest.mark.slow
def test_the_upload_of_a_checkout_with_outputs_is_small(tmp_path, short_folder, monkeypatch):
    """Tested with `ray.init`, which uploads the same files of a working folder as `ray job submit`."""
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
    monkeypatch.chdir(tmp_path)
    ray.init("local", num_cpus=1, include_dashboard=False, _temp_dir=str(short_folder),
             runtime_env={"working_dir": str(here)})  # fmt: skip
    try:
        sizes = ray.get(uploaded.remote(), timeout=120)
    finally:
        ray.shutdown()
    assert sum(sizes.values()) < LIMIT
    assert sorted(sizes) == sorted(tracked)
