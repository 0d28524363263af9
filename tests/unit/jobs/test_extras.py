"""`python -m jobs.NAME` without its packages names the extra to install."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
NAMES = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if not path.stem.startswith("_"))


@pytest.mark.parametrize("name", NAMES)
def test_a_command_without_its_extra_ends_with_one_line(name):
    """-S: Python without the installed packages."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", f"jobs.{name}"], cwd=ROOT, capture_output=True, text=True, env={}
    )
    extra = "ray" if name in ("compress", "decompress") else "train"
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"python -m jobs.{name} needs ray and " in done.stderr and f"pip install 'egic[{extra}]'" in done.stderr
