"""Pictures of an archive, a model, and checks of what a run has made of them."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from egic import artifact
from egic.model import Model
from tests.codec_models import tiny_model
from tests.faults.injected import Run

ROOT = Path(__file__).resolve().parents[1]
BLOCKER = '''"""Packages of egic[train] that egic[ray] lacks cannot be imported."""
import sys

LACKING = ("mlflow", "ray.train", "torchvision", "torchmetrics", "lpips", "compressai", "timm", "scipy", "matplotlib")


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in LACKING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocker())
'''


def without_training_extra(folder: Path) -> str:
    """PYTHONPATH of processes in which the packages of egic[train] that egic[ray] lacks cannot be imported."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return f"{folder}:{ROOT}"


def photographs() -> list[Path]:
    """Those that EGIC_PHOTOGRAPHS names, or the demo's."""
    folder = Path(os.environ.get("EGIC_PHOTOGRAPHS") or ROOT / "egic" / "demo" / "photographs")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png"))


def write_pictures(folder: Path, num: int, size: tuple[int, int] = (96, 96)) -> list[str]:
    """Crops of photographs of `size` (height, width), as PNG, JPEG and WebP in 17 folders; returns their names relative
    to `folder`."""
    files, names, opened = photographs(), [], {}
    rng = np.random.default_rng(0)
    for i in range(num):
        file = files[i % len(files)]
        if file not in opened:
            opened[file] = np.asarray(Image.open(file).convert("RGB"))
        top, left = (int(rng.integers(0, max(1, a - b))) for a, b in zip(opened[file].shape[:2], size, strict=True))
        names.append(f"{i % 17:02d}/{i:05d}.{('png', 'jpg', 'webp')[i % 3]}")
        (folder / names[-1]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(opened[file][top : top + size[0], left : left + size[1]]).save(folder / names[-1])
    return sorted(names)


def write_model(folder: Path) -> Model:
    """A tiny model with rates and ORP, saved in `folder`."""
    model = tiny_model(rates=3)
    artifact.save(folder, {"codec": model.codec, "orp": model.orp}, {})
    return model


def rows_of(archive: Path) -> dict[str, dict]:
    """The rows of an archive's index by their source; each source has one."""
    rows = pq.read_table(archive / "index").to_pylist()
    found = {row["source"]: row for row in rows}
    assert len(rows) == len(found)
    return found


def check(archive: Path, names: list[str], suffix: str) -> dict[str, dict]:
    """Every picture is in the index once, with the digest and size of its file, and no other file exists; returns the
    rows."""
    rows = rows_of(archive)
    assert sorted(rows) == sorted(names)
    for name, row in rows.items():
        assert row["error"] is None and row["file"] == str(Path(name).with_suffix(suffix))
        content = (archive / row["file"]).read_bytes()
        assert (row["sha256"], row["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    files = {path.relative_to(archive).as_posix() for path in archive.rglob("*") if path.is_file()}
    others = {name for name in files if name != "archive.json" and not name.startswith("index/")}
    assert others == {row["file"] for row in rows.values()}
    return rows


class Archiving(Run):
    """A run of `python -m jobs.compress` or `jobs.decompress`."""

    def __init__(self, folder: Path, command: str, *args: str):
        super().__init__(
            folder, *args, "-m", str(folder / "model"), command=f"-m jobs.{command}",
            PYTHONPATH=f"{folder / 'blocker'}:{ROOT}",
        )  # fmt: skip

    def wait_for_files(self, suffix: str, num: int) -> None:
        self.wait_until(lambda: len(list(self.folder.rglob(f"out*/*/*{suffix}"))) >= num, f"{num} files", 500)


def archived_with_kills(folder: Path, num: int) -> tuple[list[str], dict[str, dict]]:
    """Compress pictures with a kill of the driver, and decompress them with a kill of a worker; every picture is in
    both indexes once. Returns the names, and the rows of the pictures."""
    names = write_pictures(folder / "in", num)
    model = write_model(folder / "model")
    without_training_extra(folder / "blocker")
    with Archiving(folder, "compress", "in", "out", "--quality", "40") as run:
        run.wait_for_files(".egic", num // 2)
        run.kill_hard()
    made = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.egic")}
    with Archiving(folder, "compress", "in", "out", "--quality", "40") as run:
        assert run.end(1500) == 0, run.text()
        print(run.text())
        assert f"{num} pictures, " in run.text().splitlines()[-1]
    rows = check(folder / "out", names, ".egic")
    assert {path: path.stat().st_mtime_ns for path in made} == made  # finished files were not made again
    assert {row["quality"] for row in rows.values()} == {40}
    with Archiving(folder, "decompress", "out", "out2", "--alpha", "0.5") as run:
        run.wait_for_files(".png", num // 2)
        worker = run.members("MapWorker")[0]
        worker.kill()
        assert run.end(1500) == 0, run.text()
        print(run.text())
    rows = check(folder / "out2", [row["file"] for row in rows.values()], ".png")
    for name in list(rows)[:: num // 10]:
        expected = model.decompress((folder / "out" / name).read_bytes(), 0.5)
        assert np.array_equal(np.asarray(Image.open(folder / "out2" / rows[name]["file"])), expected)
    return names, rows
