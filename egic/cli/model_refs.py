"""Resolve --model: an artifact folder, a file in one, a model in MLflow, or one on the Hugging Face hub."""

import os
import sys
from pathlib import Path

from egic.cache import cache_folder
from egic.cli.extensions import extension
from egic.errors import UserError
from egic.shipped import shipped_model

_MLFLOW = ("models:/", "runs:/")
_HUB = "hf://"


def is_uri(ref: str) -> bool:
    """Whether `ref` names a model in MLflow or on the hub, rather than a local folder."""
    return ref.startswith((*_MLFLOW, _HUB))


def folder_of(ref: str | None) -> Path:
    """The artifact folder that `ref` names; URIs are downloaded into the cache. Raises UserError.

    None means the model that ships with the package.
    """
    if ref is None:
        return shipped_model()
    if ref.startswith(_HUB):
        return _from_hub(ref)
    if ref.startswith(_MLFLOW):
        return extension("fetch", "models in MLflow need")(ref)
    path = Path(ref).expanduser()
    folder = path.parent if path.is_file() else path
    if not path.exists():
        raise UserError(
            f"--model {ref}: no such folder or file; names in MLflow begin with {' or '.join(_MLFLOW)}, "
            f"on the hub with {_HUB}"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"--model {ref}: {folder} is not an EGIC model, it has no config.json")
    return folder


def _from_hub(ref: str) -> Path:
    """Download `hf://owner/name[@revision]`, a repository as `egic export` makes it, or use its copy in the cache."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import httpx
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import disable_progress_bars
    except ModuleNotFoundError as error:
        raise UserError(f"{_HUB} needs the package {error.name}: pip install 'egic[hub]'") from error
    name, _, revision = ref.removeprefix(_HUB).partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"--model {ref}: write {_HUB}owner/name, or {_HUB}owner/name@revision")
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        fetched = snapshot_download(
            name, revision=revision or None, cache_dir=cache_folder() / "hub",
            allow_patterns=["config.json", "provenance.json", "README.md", "*.safetensors"],
        )  # fmt: skip
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--model {ref} is not in the cache and cannot be downloaded ({why})") from error
    if not (Path(fetched) / "config.json").is_file():
        raise UserError(f"--model {ref} is not an EGIC model, it has no config.json")
    return Path(fetched)


def local(folder: Path) -> list[Path]:
    """Artifact folders with a codec at or below `folder`."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    return sorted(path.parent for path in folder.rglob("codec.safetensors") if (path.parent / "config.json").is_file())
