"""What runs on Ray: commands that users run and edit; the folders have the code behind them."""

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = {"ray": ("ray", "pyarrow"), "train": ("ray", "mlflow")}
"""Packages by which an install with an extra is recognised."""
ARCHIVES = ("python -m jobs.compress", "python -m jobs.decompress")


def _command() -> str:
    """The program that is starting, if it is one of this project: `python -m jobs.gan`, `python pipelines/full.py`."""
    if sys.argv[:1] == ["-m"]:  # Python has not yet imported the module of `python -m jobs.NAME`
        words = (word.removeprefix("-m") for word in sys.orig_argv)
        return next((f"python -m {word}" for word in words if word.startswith("jobs.")), "")
    script = Path(sys.argv[0]).resolve() if sys.argv and sys.argv[0] else Path()
    pipelines = Path(__file__).resolve().parents[1] / "pipelines"
    return f"python pipelines/{script.name}" if script.parent == pipelines else ""


def _check_extra(command: str) -> None:
    """End the program with one line and status 2 if the packages of the command's extra are not installed."""
    extra = "ray" if command in ARCHIVES else "train"
    lacking = [name for name in PACKAGES[extra] if find_spec(name) is None]
    if lacking:
        names = " and ".join(lacking)
        print(f"error: {command} needs {names}, not installed: pip install 'egic[{extra}]'", file=sys.stderr)
        raise SystemExit(2)


if command := _command():
    _check_extra(command)
