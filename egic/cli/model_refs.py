"""What --model may name: an artifact folder, a file in one, or an artifact in MLflow."""

from pathlib import Path

from egic.cli.extensions import extension
from egic.errors import UserError

_SCHEMES = ("models:/", "runs:/")


def is_uri(ref: str) -> bool:
    """Whether `ref` names something in MLflow."""
    return ref.startswith(_SCHEMES)


def folder_of(ref: str) -> Path:
    """The artifact folder that `ref` names, fetched from MLflow into the cache when it is a URI. Raises UserError."""
    if is_uri(ref):
        return extension("fetch", "models in MLflow need")(ref)
    path = Path(ref).expanduser()
    folder = path.parent if path.is_file() else path
    if not path.exists():
        raise UserError(f"--model {ref}: no such folder or file; MLflow URIs begin with {' or '.join(_SCHEMES)}")
    if not (folder / "config.json").is_file():
        raise UserError(f"--model {ref}: {folder} is no EGIC model, it has no config.json")
    return folder


def local(folder: Path) -> list[Path]:
    """Artifact folders with a codec at or below `folder`."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    return sorted(path.parent for path in folder.rglob("codec.safetensors") if (path.parent / "config.json").is_file())
