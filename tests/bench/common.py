"""Functions of all benchmarks: timing, names of commit and device, pictures, figures."""

import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch


def seconds(function: Callable[[], object], device: torch.device | str) -> float:
    """Time of one call, including work that it queued on the device."""
    start = time.perf_counter()
    function()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def commit() -> str:
    """Short name of the checkout's commit; empty outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's kind; with AMX, cores multiply bfloat16 several times as fast as float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine() + (", AMX" if torch.cpu._is_amx_tile_supported() else "")


def picture_files(folder: Path) -> list[Path]:
    """PNG and JPEG files below a folder, in order."""
    return [f for f in sorted(folder.rglob("*")) if f.suffix.lower() in (".png", ".jpg")]


def random_crop(x: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square of a picture (H, W, 3)."""
    top, left = (int(rng.integers(0, side - size + 1)) for side in x.shape[:2])
    return x[top : top + size, left : left + size]


@contextmanager
def drawing(path: Path, title: str, size: tuple[float, float]) -> Iterator[Any]:
    """Axes of a figure, which is written to an SVG file when the block ends."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    axes = figure.subplots()
    yield axes
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text instead of outlines
        figure.savefig(path, bbox_inches="tight")
