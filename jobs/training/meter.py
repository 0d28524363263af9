"""Means of losses and times over the steps between two rows of metrics, and the line that shows them."""

import time

import psutil
import torch
from torch import Tensor

from jobs.config.schema import Training
from jobs.training.session import Session, reduce_sum
from jobs.training.stage import Stage


class Meter:
    """Means of losses and times between two rows; tensors stay on the device until a row is due."""

    def __init__(self, session: Session):
        self.session = session
        self.clear()

    def clear(self) -> None:
        """Reset all sums."""
        self.sums: dict[str, tuple[Tensor, int]] = {}
        self.num_steps = 0
        self.time_s = {"data": 0.0, "step": 0.0, "checkpoint": 0.0}
        self.last_s = 0.0
        """Time of the last step, with that of its batch."""
        self.start = time.perf_counter()

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add one step's losses; their names may differ between phases."""
        self.num_steps += 1
        for name, value in losses.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)

    def count(self, what: str, began: float) -> None:
        """Count the time since `began` (perf_counter) as time for data or for the step; data comes first."""
        time_s = time.perf_counter() - began
        self.time_s[what] += time_s
        self.last_s = time_s if what == "data" else self.last_s + time_s

    def count_checkpoint(self, began: float) -> None:
        """Count the time since `began` as time for a checkpoint, which does not count for the images per second."""
        self.time_s["checkpoint"] += time.perf_counter() - began
        self.start = time.perf_counter()

    def row(self, step: int, batch: int, lr: float) -> dict:
        """The row of metrics at `step` (steps done), the same on every worker."""
        names = sorted(self.sums)
        mean = torch.stack([self.sums[n][0].float() / self.sums[n][1] for n in names])
        mean = reduce_sum({"mean": mean}, self.session)["mean"] / self.session.world_size
        elapsed = time.perf_counter() - self.start
        row = {"step": step} | {f"train/{n}": v for n, v in zip(names, mean.tolist(), strict=True)}
        row |= {f"time/{k}_s": v / self.num_steps for k, v in self.time_s.items()}
        row |= {"time/images_per_s": self.num_steps * batch / elapsed, "train/lr": lr}
        row |= system_metrics(self.session.device)
        self.clear()
        return row


def system_metrics(device: torch.device) -> dict[str, float]:
    """Memory and load of this worker."""
    process = psutil.Process()
    found = {"system/worker_rss_gb": process.memory_info().rss / 1e9, "system/cpu_percent": psutil.cpu_percent()}
    if device.type == "cuda":
        found["system/gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found


def progress(stage: Stage, row: dict, settings: Training) -> str:
    """One line: stage, step, rate, loss, time left."""
    rate = row["time/images_per_s"] / settings.batch
    left = int((settings.steps - row["step"]) / max(rate, 1e-9))
    loss, eta = row[f"train/{stage.shown_loss}"], f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
    return f"{stage.name:<13} step {row['step']}/{settings.steps}  {rate:.2f} steps/s  loss {loss:.4g}  left {eta}"
