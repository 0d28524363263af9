"""`python -m jobs.NAME` and `python pipelines/NAME.py` without their packages name the extra to install."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MODULES = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if not path.stem.startswith("_"))
SCRIPTS = sorted(path.name for path in (ROOT / "pipelines").glob("[a-z]*.py"))
WITHOUT_TRAIN = (
    "import runpy, sys; sys.argv = [sys.argv[1]]; sys.modules.update(dict.fromkeys(['ray', 'mlflow', 'pyarrow'])); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def error_of(*words: str) -> str:
    """The line on stderr of a command that ends with status 2."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env={})
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_a_command_without_its_extra_ends_with_one_line(name):
    """-S: Python without the installed packages."""
    error = error_of("-S", "-m", f"jobs.{name}")
    extra = "ray" if name in ("compress", "decompress") else "train"
    assert f"python -m jobs.{name} needs ray and " in error and f"pip install 'egic[{extra}]'" in error


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_the_extra_ends_with_one_line(name):
    error = error_of("-c", WITHOUT_TRAIN, f"pipelines/{name}")
    assert f"python pipelines/{name} needs ray and mlflow, not installed: pip install 'egic[train]'" in error
