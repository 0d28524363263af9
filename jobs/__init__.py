"""What runs on Ray: commands that users run and edit; the folders have the code behind them."""

import sys
from importlib.util import find_spec

PACKAGES = {"ray": ("ray", "pyarrow"), "train": ("ray", "mlflow")}
"""Packages by which an install with an extra is recognised."""
ARCHIVES = ("jobs.compress", "jobs.decompress")


def _check_extra(command: str) -> None:
    """End the program with one line and status 2 if the packages of the command's extra are not installed."""
    extra = "ray" if command in ARCHIVES else "train"
    lacking = [name for name in PACKAGES[extra] if find_spec(name) is None]
    if lacking:
        names = " and ".join(lacking)
        print(f"error: python -m {command} needs {names}, not installed: pip install 'egic[{extra}]'", file=sys.stderr)
        raise SystemExit(2)


if sys.argv[:1] == ["-m"]:  # Python has not yet imported the module of `python -m jobs.NAME`
    for word in sys.orig_argv:
        if word.removeprefix("-m").startswith("jobs."):
            _check_extra(word.removeprefix("-m"))
            break
