"""The one worker loop: build, restore, step, log, validate, save. Shared by every stage, on one worker or many.

The loop meets the outside through a `Session` alone (jobs/training/session.py).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.compiler.config
from torch import Tensor

from egic import artifact
from egic.errors import NonFiniteError
from egic.networks.discriminator import Block
from egic.networks.swin import SwinBlock
from egic.networks.transforms import PatchMerging, PatchSplitting
from egic.training.optimizers import MUON
from egic.training.steps import Batch, Nets
from jobs.config.schema import Config, Training
from jobs.training import rates
from jobs.training.cuda_graphs import QueuedSteps, cuda_graph, uncaptured
from jobs.training.meter import Meter, progress
from jobs.training.session import Session, reduce_sum
from jobs.training.stage import Components, Stage, load_stage
from jobs.training.train_state import (
    TrainState,
    averaged,
    prepare_training,
    restore_newest,
    save,
    set_learning_rate,
    update_ema,
)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PROGRESS_EVERY_S = 5.0
LOOK_EVERY_S = 2.0
"""How often the workers ask whether a checkpoint is wanted now: a spot node is announced 30 s before it ends."""
COMPILER = "inductor"
SMALLER = 0.5
"""Factor on the learning rate for each time that training went back from a non-finite loss."""


@dataclass
class Context:
    """What every part of the loop works with."""

    stage: Stage
    config: Config
    session: Session
    state: TrainState
    provenance: dict
    """What the artifact's provenance.json has beside the measures of the training."""
    meter: Meter
    queued: QueuedSteps | None = None
    """The stage's steps on a GPU; None: `stage.step` itself."""
    new_rows: list[dict] = field(default_factory=list)
    """Rows of metrics since the last checkpoint."""

    @property
    def settings(self) -> Training:
        return self.stage.settings(self.config)

    def learning_rate(self, step: int) -> float:
        """Learning rate of the step with this index, smaller for each time that training went back."""
        return self.settings.lr_at(step) * SMALLER ** len(self.session.rollbacks)


def train(stage_name: str, config: Config, components: Components, session: Session, provenance: dict) -> None:
    """Run a stage to its end, from its last checkpoint if it has one. Resume beats init; see `Stage.build` for init."""
    stage = load_stage(stage_name)
    torch.manual_seed(config.seed)
    nets = stage.build(config, components)
    nets.precision = PRECISIONS[config.precision]
    if config.compute.compile:
        compile_blocks(nets)
    state = prepare_training(stage, nets, session, stage.settings(config))
    if session.rollbacks:
        provenance = provenance | {"rollbacks": session.rollbacks}
    context = Context(stage, config, session, state, provenance, Meter(session))
    context.queued = queued_steps(context)
    restore_newest(stage, state, session)
    check_same_step(context)
    run_steps(context)


def check_same_step(context: Context) -> None:
    """Raise RuntimeError, so that the workers start again, if they resumed from different checkpoints."""
    session, step = context.session, context.state.step
    total = reduce_sum({"step": torch.tensor(float(step), device=session.device, dtype=torch.float64)}, session)["step"]
    if not session.idle and total != step * session.world_size:
        raise RuntimeError(f"{context.stage.name}: worker {session.rank} resumed at step {step}, others elsewhere")


def compile_blocks(nets: Nets) -> None:
    """Let torch.compile make each kind of block once, for all blocks of that kind. Names of weights stay."""
    torch.compiler.config.recompile_limit = 128  # shapes of blocks, with gradients and without
    for network in nets.networks().values():
        for module in network.modules():
            if isinstance(module, SwinBlock | Block | PatchMerging | PatchSplitting):
                module.compile(dynamic=False, backend=COMPILER)


def queued_steps(context: Context) -> QueuedSteps | None:
    """The stage's steps as a GPU takes them: queued, and as a CUDA graph where one worker trains; None on CPUs.

    None with Muon, too, whose steps wait for the device.
    """
    session, config = context.session, context.config
    if session.device.type != "cuda" or context.settings.optimizer == MUON:
        return None
    capture = cuda_graph if config.compute.cuda_graphs and session.world_size == 1 else uncaptured
    return QueuedSteps(context.stage, context.state, config, session.device, capture)


def run_steps(context: Context) -> None:
    """The steps that are left, with a row every log_every and a checkpoint every checkpoint_every steps.

    A checkpoint comes also when the node is about to go, or when the run is asked to stop, which then ends it.
    """
    stage, state, session, settings = context.stage, context.state, context.session, context.settings
    if state.step >= settings.steps:  # finished, but the report of its last step may be lost: report it again
        finish_interval(context)
        return
    shown_at, first, next_look = 0.0, state.step + 1, state.step + 1
    stream = None if session.idle else session.stream(context.config, state.step, settings)
    while state.step < settings.steps:
        if stream is not None:
            take_step(context, next_batch(context, stream))
        state.step += 1
        if state.step == first and session.rank == 0:
            print(f"{stage.name:<13} step {state.step}/{settings.steps}", flush=True)
        last, wish = state.step == settings.steps, ""
        if state.step >= next_look and not last:
            every = steps_in(LOOK_EVERY_S, context.meter.last_s)
            wish, next_look = session.look(state.step, state.step + every)
        due = last or state.step % settings.checkpoint_every == 0
        if stream is not None and (due or wish or state.step % settings.log_every == 0):
            row = finish_row(context)
            if session.rank == 0 and (time.monotonic() - shown_at > PROGRESS_EVERY_S or last):
                shown_at = time.monotonic()
                print(progress(stage, row, settings), flush=True)
        if due or wish:
            finish_interval(context, validated=due)
        if wish == "stop":
            return


def steps_in(time_s: float, step_s: float) -> int:
    """How many steps of `step_s` seconds fill `time_s`, at least one."""
    return max(1, int(time_s / max(step_s, 1e-3)))


def next_batch(context: Context, stream: Iterator[dict[str, np.ndarray]]) -> Batch:
    """The stream's next batch on the device; the meter counts the time that it took."""
    began = time.perf_counter()
    batch = to_batch(next(stream), context.session.device)
    context.meter.count("data", began)
    return batch


def to_batch(raw: dict[str, np.ndarray], device: torch.device) -> Batch:
    """uint8 arrays of a data stream -> tensors as the steps take them."""

    def send(name: str) -> Tensor:
        return torch.tensor(raw[name]).to(device, non_blocking=True)  # a copy: Ray's arrays are read-only

    x = send("x").permute(0, 3, 1, 2).contiguous().float()
    return Batch(x, send("label").long(), send("weight").float(), [int(p) for p in raw["position"]])


def take_step(context: Context, batch: Batch) -> None:
    """One optimizer step. Raises NonFiniteError, with stage, step and rank, before the update is made."""
    stage, state = context.stage, context.state
    began = time.perf_counter()
    for opt in state.optimizers.values():
        set_learning_rate(opt, context.learning_rate(state.step))
    with non_finite_located(context):
        if context.queued:
            losses = context.queued(batch, state.step)
        else:
            losses = stage.step(state.nets, state.optimizers, batch, context.config, state.step)
        context.meter.add(losses)
    if context.settings.ema:
        update_ema(stage, state, context.settings.ema)
    context.meter.count("step", began)
    state.time_s += context.meter.last_s


@contextmanager
def non_finite_located(context: Context) -> Iterator[None]:
    """Raise a NonFiniteError of the block again with stage, step and rank; the session records it."""
    try:
        yield
    except NonFiniteError as e:
        number = 1 + (context.state.step if e.step is None else e.step)
        where = f"{context.stage.name} step {number}, rank {context.session.rank}"
        error = NonFiniteError(f"{where}: {e}; the update was not made")
        context.session.went_wrong(number, error)
        raise error from None


def finish_row(context: Context) -> dict:
    """The row of metrics since the last one; it is added to `context.new_rows`."""
    state = context.state
    if context.queued:
        with non_finite_located(context):
            context.queued.check()
    row = context.meter.row(state.step, context.settings.batch, context.learning_rate(state.step - 1))
    context.new_rows.append(row)
    return row


def finish_interval(context: Context, *, validated: bool = True) -> None:
    """Validate, checkpoint and report; at the last step the checkpoint carries the artifact."""
    stage, state, session, settings = context.stage, context.state, context.session, context.settings
    if session.idle:
        session.report({}, None)
        return
    began = time.perf_counter()
    values, pictures = validate(context) if validated else ({}, {})
    state.validation_s += time.perf_counter() - began
    measures = {"step": state.step} | values
    if context.new_rows:
        context.new_rows[-1] |= values
    rows = context.new_rows or [measures]

    def write(folder: Path) -> None:
        save(folder, stage, state, rows)
        for name, png in pictures.items():
            (folder / f"{name}.png").write_bytes(png)
        if state.step == settings.steps:
            with averaged(state):
                networks = state.nets.networks()
                facts = {"steps": state.step, "batch": settings.batch, "metrics": measures}
                facts |= {"time_s": state.time_s, "validation_s": state.validation_s}
                published = {name: networks[name] for name in stage.publishes}
                artifact.save(folder / "artifact", published, context.provenance | facts)

    session.report({"step": state.step, "rows": state.rows + rows, "pictures": sorted(pictures)}, write)
    state.rows, context.new_rows = [], []
    context.meter.count_checkpoint(began)


@torch.no_grad()
def validate(context: Context) -> tuple[dict[str, float], dict[str, bytes]]:
    """val/ metrics over all workers' validation crops, and rank 0's pictures of its first batch."""
    stage, config, session, nets = context.stage, context.config, context.session, context.state.nets
    classes = [f"class {c}" for c in range(1, config.discriminator.num_categories + 1)]
    names = context.provenance.get("classes") or classes
    sums: dict[str, Tensor] = {}
    pictures: dict[str, bytes] = {}
    with averaged(context.state):
        for i, raw in enumerate(session.val_batches(config, context.settings)):
            batch = to_batch(raw, session.device)
            for name, value in stage.validate(nets, batch, config).items():
                value = value.double()
                sums[name] = sums[name] + value if name in sums else value
            if i == 0 and session.rank == 0:
                pictures = stage.pictures(nets, batch.part(slice(0, 4)), config, names)
    sums = reduce_sum(dict(sorted(sums.items())), session)
    values = {f"val/{k}": v for k, v in stage.summarise(sums).items()}
    if session.rank == 0 and (curve := rates.curve_png(values)):
        pictures["rate_distortion"] = curve
    return values, pictures
