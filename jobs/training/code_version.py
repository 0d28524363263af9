"""The code part of a stage's key: which sources decide a result, and a digest of them.

The digest is taken of the syntax tree without comments and docstrings: better documentation or another line break does
not train a stage again, but a changed number, name or message in one of these files does.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TAG = "egic.code"

LEARNING = (
    "egic/networks", "egic/training", "egic/metrics/perceptual.py", "jobs/config/schema.py", "jobs/data/shards.py",
    "jobs/data/stream.py", "jobs/training/cuda_graphs.py", "jobs/training/loop.py",
    "jobs/training/train_state.py",
)  # fmt: skip
"""Folders and files that decide what a stage learns, beside the stage's own module."""
MEASURING = (
    *LEARNING, "egic/coding", "egic/metrics", "egic/model.py", "egic/pictures",
    "egic/file_size.py", "egic/report/anchors.py", "egic/report/curves.py", "egic/report/evaluation_folder.py",
    "egic/report/matched_rates.py", "jobs/evaluate.py", "jobs/evaluation",
)  # fmt: skip
"""What decides the numbers of an evaluation: files are made by the networks, and read and measured again."""


def code_files(*places: str, root: Path = ROOT) -> dict[str, str]:
    """The Python sources in these folders and files, relative to `root`, each with its digest (sha256, hex)."""
    return {path.relative_to(root).as_posix(): source_digest(path.read_text()) for path in _sources(places, root)}


def _sources(places: tuple[str, ...], root: Path) -> Iterator[Path]:
    found: set[Path] = set()
    for place in places:
        found |= {root / place} if place.endswith(".py") else set((root / place).rglob("*.py"))
    yield from sorted(found)


@cache
def source_digest(source: str) -> str:
    """sha256 (hex) of a Python source without comments, docstrings, texts under fields, and its layout in lines."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for block in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, block, None), list):
                setattr(node, block, [each for each in statements if not _is_text(each)])
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is only a string: a docstring, or the text under a field."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False


def code_digest(files: dict[str, str]) -> str:
    """sha256 (hex) over the digests of `code_files`."""
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in files.items()).encode()).hexdigest()


def code_tag(files: dict[str, str]) -> dict[str, str]:
    """The sources as a tag of a stage's MLflow run, by which `--status` names those that changed since."""
    return {TAG: json.dumps({name: digest[:12] for name, digest in files.items()})}


def changed_files(tag: str, files: dict[str, str]) -> list[str]:
    """The sources whose digest is not the one in a run's tag: changed, new and removed ones."""
    before, now = json.loads(tag), {name: digest[:12] for name, digest in files.items()}
    return [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
