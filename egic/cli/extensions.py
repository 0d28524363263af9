"""Functions that other packages register for the command `egic`, as entry points of the group "egic.extensions".

`egic` must not import `jobs`, which imports `egic`. The training pipeline (`jobs`) therefore registers its functions:
models in MLflow, `egic evaluate`, `egic compare`, replicas on Ray Serve. pyproject.toml has the list.

In a checkout the list is read from its pyproject.toml: the metadata of an editable install can be older than the code,
and a checkout that is not installed has none.
"""

import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from egic.errors import UserError

GROUP = "egic.extensions"
CHECKOUT = Path(__file__).resolve().parents[2]


def extension(name: str, what: str, extra: str = "train") -> Callable[..., Any]:
    """The function that is registered as `name`. what: beginning of the error message, such as "egic compare needs".

    Raises UserError naming the `extra` to install if no function is registered, or a package of the extra is missing.
    """
    entry = registered().get(name)
    fix = f"pip install 'egic[{extra}]'"
    if entry is None:
        raise UserError(f"{what} the training pipeline, which is not installed: {fix}")
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        raise UserError(f"{what} the package {error.name}, which is not installed: {fix}") from error


def registered() -> dict[str, EntryPoint]:
    """The group's entry points by name: of the checkout that contains this file, else of the installed packages."""
    pyproject = CHECKOUT / "pyproject.toml"
    if pyproject.is_file():
        declared = tomllib.loads(pyproject.read_text()).get("project", {}).get("entry-points", {}).get(GROUP)
        if declared:
            return {name: EntryPoint(name, value, GROUP) for name, value in declared.items()}
    return {entry.name: entry for entry in entry_points(group=GROUP)}
