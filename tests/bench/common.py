"""What every benchmark needs."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch


def seconds(function: Callable[[], object], device: torch.device | str) -> float:
    """Time of one call, with what it left running on the device."""
    start = time.perf_counter()
    function()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def commit() -> str:
    """Short name of the checkout's commit; empty outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
