"""What surrounds the worker loop, on Ray Train (jobs/training/worker.py) or in one process (tests/local_session.py)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from egic.errors import NonFiniteError
from jobs.config.schema import Config, Training


class Session(Protocol):
    """A worker's rank in its group, its data, the checkpoints to resume from, and the reports of new ones."""

    rank: int
    world_size: int
    """Workers that share the batch."""
    idle: bool
    """The batch cannot be divided evenly among all workers, and this one has no part: it only reports in time."""
    group: dist.ProcessGroup | None
    """The workers that share the batch; None for all."""
    device: torch.device
    rollbacks: list[dict]
    """The non-finite losses that training went back from so far."""

    def stream(self, config: Config, first_step: int, settings: Training) -> Iterator[dict[str, np.ndarray]]:
        """Raw training batches of this rank from `first_step` on."""

    def val_batches(self, config: Config, settings: Training) -> Iterator[dict[str, np.ndarray]]:
        """Raw validation batches of this rank."""

    def checkpoints(self) -> Iterator[Path]:
        """Folders of the checkpoints to resume from, best first."""

    def look(self, step: int, next_step: int) -> tuple[str, int]:
        """What is wanted at `step` ("", "checkpoint", or "stop": a checkpoint, then the end), and rank 0's `next_step`.

        Called by all workers at the same step; all get the same answer.
        """

    def report(self, metrics: dict, write: Callable[[Path], None] | None) -> None:
        """Report metrics, plain JSON; on rank 0 `write(folder)` fills a new checkpoint folder."""

    def went_wrong(self, step: int, error: NonFiniteError) -> None:
        """Called before a non-finite loss ends the workers: records that training shall go back and try again."""


def reduce_sum(values: dict[str, Tensor], session: Session) -> dict[str, Tensor]:
    """Sum of each tensor over the workers that share the batch."""
    if session.world_size > 1:
        for value in values.values():
            dist.all_reduce(value, group=session.group)
    return values
