"""What --model may name: an artifact folder, a file in one, or an artifact in MLflow.

The core of `egic` knows nothing of MLflow. This file alone looks for `jobs`, by name and only when a URI (or a command)
asks for it, so that the codec runs where the training pipeline is not installed.
"""

import importlib
import os
from pathlib import Path
from types import ModuleType

from egic.errors import UserError

_SCHEMES = ("models:/", "runs:/")


def jobs(module: str, what: str = "models in MLflow need") -> ModuleType:
    """A module of the training pipeline. Raises UserError where that, or a package of it, is not installed."""
    try:
        return importlib.import_module(f"jobs.{module}")
    except ImportError as error:
        raise UserError(f"{what} the training extra ({error}): pip install 'egic[train]'") from error


def is_uri(ref: str) -> bool:
    """Whether `ref` names something in MLflow."""
    return ref.startswith(_SCHEMES)


def folder_of(ref: str) -> Path:
    """The artifact folder that `ref` names, fetched from MLflow into the cache when it is a URI. Raises UserError."""
    if is_uri(ref):
        registry = jobs("tracking.model_registry")
        artifact = registry.resolve(ref)  # an alias moves, the digest does not
        return registry.fetch(ref, cache() / artifact.sha256[:32], expect_sha256=artifact.sha256)
    path = Path(ref).expanduser()
    folder = path.parent if path.is_file() else path
    if not path.exists():
        raise UserError(f"--model {ref}: no such folder or file; MLflow URIs begin with {' or '.join(_SCHEMES)}")
    if not (folder / "config.json").is_file():
        raise UserError(f"--model {ref}: {folder} is no EGIC model, it has no config.json")
    return folder


def cache() -> Path:
    """Where fetched models stay: EGIC_CACHE, or egic/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EGIC_CACHE") or Path(base) / "egic")


def registered() -> list[tuple[str, str]]:
    """(URI, description) of every version of every EGIC model in MLflow's registry, newest first. Raises UserError."""
    tracking, rows = jobs("tracking.runs"), []
    client, mlflow = tracking.client(), tracking.mlflow()
    try:
        for model in client.search_registered_models(filter_string="name LIKE 'egic-%'"):
            aliases: dict[str, list[str]] = {}
            for alias, version in model.aliases.items():
                aliases.setdefault(str(version), []).append("@" + alias)
            versions = client.search_model_versions(f"name = '{model.name}'")
            for place, version in enumerate(sorted(versions, key=lambda v: -int(v.version))):
                latest = ["@latest"] if place == 0 else []  # MLflow resolves it by itself, and lists it nowhere
                marks = " ".join(sorted(aliases.get(str(version.version), []) + latest))
                digest = version.tags.get("egic.sha256", "")[:12]
                rows.append((f"models:/{model.name}/{version.version}", f"{digest} {marks}".strip()))
    except mlflow.MlflowException as error:
        raise UserError(f"cannot list the models in {tracking.shown_uri()}: {error}") from error
    return rows


def local(folder: Path) -> list[Path]:
    """Artifact folders with a codec at or below `folder`."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    return sorted(path.parent for path in folder.rglob("codec.safetensors") if (path.parent / "config.json").is_file())
