"""Functions that packages above `egic` register for its command line, as entry points of the group "egic.extensions".

The training pipeline (`jobs`) registers there what `egic` cannot import, since imports run downward only: models in
MLflow, `egic evaluate`, `egic compare`, replicas on Ray Serve. pyproject.toml holds the list.

In a checkout the list is read from its pyproject.toml, so that it is never older than the code: the metadata of an
editable install is only written when it is installed, and a plain checkout has none.
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
    """The function that is registered as `name`. what: how the message begins when it cannot be used ("X needs").

    Raises UserError naming the `extra` to install when nothing is registered, or a package of the extra is missing.
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
    """The group's entry points by name: of the checkout that this file lies in, else of the installed packages."""
    pyproject = CHECKOUT / "pyproject.toml"
    if pyproject.is_file():
        declared = tomllib.loads(pyproject.read_text()).get("project", {}).get("entry-points", {}).get(GROUP)
        if declared:
            return {name: EntryPoint(name, value, GROUP) for name, value in declared.items()}
    return {entry.name: entry for entry in entry_points(group=GROUP)}
