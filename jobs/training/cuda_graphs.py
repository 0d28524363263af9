"""Training steps that are queued on a GPU without waiting for results in between; as CUDA graphs where possible.

A step of the full-size networks is some 5,000 kernels, most of which run for microseconds: launching them one by one
from Python takes twice as long as they run. Captured once, a step is launched with one call. A captured step reads its
batch and its learning rate from the same memory every time, so both are copied there.

Whether a loss is finite is not read after each step: `egic.training.update.Guard` leaves out all updates from the first
non-finite one on, and `check` raises. Captured optimizers are made with the options that torch documents for this
(`fused`, `capturable`, a tensor as learning rate; jobs/training/train_state.py).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from egic.training.steps import Batch
from egic.training.update import Guard, not_finite
from jobs.config.schema import Config
from jobs.training.stage import Stage, phase_at
from jobs.training.train_state import TrainState

WARM_UP = 3
"""Steps of a phase that run as they are before one is captured: they make Adam's state, and let compilers choose."""

Function = Callable[[], object]


def cuda_graph(function: Function) -> Function:
    """What `function` starts on the current GPU, to be started by one call. It does not run now."""
    torch.cuda.empty_cache()  # a graph has memory of its own
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def uncaptured(function: Function) -> Function:
    """In place of `cuda_graph`: kernels are started one by one, every time."""
    return function


class QueuedSteps:
    """Called as `Stage.step` is, with a batch and a step's number: the same updates, and losses until the next call."""

    def __init__(
        self,
        stage: Stage,
        state: TrainState,
        config: Config,
        device: torch.device,
        capture: Callable[[Function], Function] = cuda_graph,
    ):
        self.stage, self.state, self.config, self.capture = stage, state, config, capture
        self.guard = Guard(device)
        self.sound = torch.zeros((), dtype=torch.int64, device=device)
        """Steps replayed before the guard stopped updates."""
        self.phase: str | None = None
        self.warm, self.first = 0, 0
        self.batch: Batch
        self.losses: dict[str, Tensor] = {}
        self.replay: Function | None = None
        self.running: list[torch.cuda.Event] = []

    def __call__(self, batch: Batch, number: int) -> dict[str, Tensor]:
        """One step, queued. Raises NonFiniteError for the first steps of a phase; for others, `check` does."""
        phase = phase_at(self.stage, self.config, number).name
        if phase != self.phase:
            self.check()
            self.phase, self.warm, self.replay = phase, 0, None
        if self.warm < WARM_UP:
            self.warm += 1
            self.batch = batch
            with warnings.catch_warnings():  # Adam warns that it is capturable while nothing is captured
                warnings.filterwarnings("ignore", message=".*capturable=True")
                return self.stage.step(self.state.nets, self.state.optimizers, batch, self.config, number)
        if self.replay is None:
            self.capture_step(batch, number)
        self.fill(batch)
        assert self.replay is not None
        with self.guarded():
            self.replay()
        self.wait_for_the_last()
        return self.losses

    def capture_step(self, batch: Batch, number: int) -> None:
        """Let the step with this number be the one that is replayed, and `batch` be the memory that it reads."""
        for draw in self.batch.drawn:  # what the warm-up asked for
            batch.draw(*draw)
        self.batch, self.first, self.losses = batch, number, {}
        self.sound.zero_()
        with self.guarded():
            self.replay = self.capture(self.step)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """While the block runs, steps decide on the device whether their updates are made."""
        self.state.nets.guard = self.guard
        try:
            yield
        finally:
            self.state.nets.guard = None

    def step(self) -> None:
        """What is captured: a step, and what `check` reads."""
        before = self.guard.stopped.clone()
        losses = self.stage.step(self.state.nets, self.state.optimizers, self.batch, self.config, self.first)
        for name, value in losses.items():
            kept = self.losses.setdefault(name, torch.empty_like(value))
            kept.copy_(torch.where(before > 0, kept, value))
        self.sound += 1 - self.guard.stopped.long()

    def fill(self, batch: Batch) -> None:
        """Copy what a step reads to where the captured one reads it."""
        for name in ("x", "label", "weight"):
            getattr(self.batch, name).copy_(getattr(batch, name))
        for draw, numbers in self.batch.drawn.items():
            numbers.copy_(batch.draw(*draw))

    def wait_for_the_last(self) -> None:
        """Wait for the step before the one just queued, so that the GPU never waits and the queue stays short."""
        if self.guard.stopped.device.type == "cuda":
            self.running.append(torch.cuda.Event())
            self.running[-1].record()
            if len(self.running) > 1:
                self.running.pop(0).synchronize()

    def check(self) -> None:
        """Raise NonFiniteError for the first step that was not finite, if one was: no update was made from it on."""
        if self.guard.stopped.item():
            terms = {name: value for name, value in self.losses.items() if not name.endswith(("loss", "norm"))}
            error = not_finite(terms, ", ".join(f"{name} {value.item():g}" for name, value in self.losses.items()))
            error.step = self.first + int(self.sound.item())
            raise error
