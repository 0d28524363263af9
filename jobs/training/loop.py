"""The one worker loop: build, restore, step, log, validate, save. Shared by every stage, on one worker or many.

The loop meets the outside through a `Session` alone: `jobs.training.trainer` gives it Ray's, tests a local one. Order,
augmentation and noise are functions of (seed, position): only weights, optimizers and the step need to be restored.
"""

import hashlib
import json
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from egic import artifact
from egic.errors import UserError
from egic.networks.discriminator import Block
from egic.networks.swin import SwinBlock
from egic.networks.transforms import PatchMerging, PatchSplitting
from egic.training.steps import Batch, Nets, NonFiniteError
from jobs.config.schema import Config, Training
from jobs.storage.files import file_sha256
from jobs.training import rates
from jobs.training.cuda_graphs import QueuedSteps, cuda_graph, uncaptured
from jobs.training.stage import Components, Stage, load_stage

log = logging.getLogger(__name__)

PROGRESS_EVERY_S = 5.0
LOOK_EVERY_S = 2.0
"""How often the workers look whether a checkpoint is wanted now: a spot node that goes gives 30 s."""
COMPILER = "inductor"
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SMALLER = 0.5
"""Factor on the learning rate for each time that training went back from a non-finite loss."""


class DamagedCheckpoint(UserError):
    """A checkpoint is not what was written."""


class Session(Protocol):
    """What surrounds the loop: place in the group, data, the checkpoints there are, a place for the next."""

    rank: int
    world_size: int
    """Workers that share the batch."""
    idle: bool
    """This worker is one too many for the batch to be divided evenly: it keeps the rhythm of reports, and no more."""
    group: dist.ProcessGroup | None
    """The workers that share the batch; None for all."""
    device: torch.device
    rollbacks: list[dict]
    """What training went back from so far."""

    def stream(self, config: Config, first_step: int, settings: Training) -> Iterator[dict[str, np.ndarray]]:
        """Raw training batches of this rank from `first_step` on."""

    def val_batches(self, config: Config, settings: Training) -> Iterator[dict[str, np.ndarray]]:
        """Raw validation batches of this rank."""

    def checkpoints(self) -> Iterator[Path]:
        """Folders of the checkpoints to go on from, best first."""

    def look(self, step: int, next_step: int) -> tuple[str, int]:
        """What is wanted at `step` ("", "checkpoint", or "stop": a checkpoint, then the end), and rank 0's `next_step`.

        Called by all workers at the same step; all get the same answer.
        """

    def report(self, metrics: dict, write) -> None:
        """Hand over metrics, plain JSON; rank 0 fills a new checkpoint folder with `write(folder)`."""

    def went_wrong(self, step: int, error: NonFiniteError) -> None:
        """Called before a non-finite loss ends the workers: notes it where training shall go back and try again."""


@dataclass
class State:
    """Everything a resumed run needs, and what it has yet to say."""

    nets: Nets
    optimizers: dict[str, torch.optim.Optimizer]
    queued: QueuedSteps | None = None
    """The stage's steps as they are taken on a GPU."""
    step: int = 0
    time_s: float = 0.0
    """Time spent on data and steps so far, over all attempts."""
    validation_s: float = 0.0
    """Time spent on validation, likewise."""
    ema: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)


def to_batch(raw: dict[str, np.ndarray], device: torch.device) -> Batch:
    """uint8 arrays from the wire -> tensors as the steps want them."""

    def send(name: str) -> Tensor:
        return torch.tensor(raw[name]).to(device, non_blocking=True)  # a copy: what Ray hands over is read-only

    x = send("x").permute(0, 3, 1, 2).contiguous().float()
    return Batch(x, send("label").long(), send("weight").float(), [int(p) for p in raw["position"]])


def named_parameters(nets: Nets) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of all networks as `codec.g_s...`, `discriminator...`, `orp...`, `lpips...`."""
    for part in ("codec", "discriminator", "orp", "lpips"):
        if (module := getattr(nets, part)) is not None:
            yield from module.named_parameters(prefix=part)


def parts_of(nets: Nets) -> dict[str, nn.Module]:
    """The modules that stages train, those there are, by the name of their optimizer."""
    g_s = nets.codec and nets.codec.g_s
    found = {"codec": nets.codec, "g_s": g_s, "discriminator": nets.discriminator, "orp": nets.orp}
    return {name: module for name, module in found.items() if module is not None}


def compile_blocks(nets: Nets) -> None:
    """Let torch.compile make each kind of block once, for all blocks of that kind. Names of weights stay."""
    torch._dynamo.config.recompile_limit = 128  # shapes of blocks, with gradients and without; beyond it, it gives up
    for part in (nets.codec, nets.discriminator, nets.orp):
        for module in part.modules() if part is not None else ():
            if isinstance(module, SwinBlock | Block | PatchMerging | PatchSplitting):
                module.compile(dynamic=False, backend=COMPILER)


def make_optimizers(stage: Stage, nets: Nets, settings: Training) -> dict[str, torch.optim.Optimizer]:
    """Freeze all but what the stage declares, and give that its optimizers."""
    for _, parameter in named_parameters(nets):
        parameter.requires_grad_(False)
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, prefixes in stage.trains.items():
        chosen = [p for full, p in named_parameters(nets) if full.startswith(prefixes)]
        for parameter in chosen:
            parameter.requires_grad_(True)
        optimizers[name] = OPTIMIZERS[settings.optimizer](chosen, settings.lr, fused=True)
    return optimizers


def prepare_training(stage: Stage, nets: Nets, session: Session, settings: Training) -> State:
    """Networks on the device, optimizers for what the stage trains, and that wrapped for several workers."""
    # TF32 keeps 10 bits of mantissa, bfloat16 7: where those do, these do for what stays in float32 (ChARM, h_s)
    torch.backends.cuda.matmul.allow_tf32 = nets.precision == torch.bfloat16
    for module in (nets.codec, nets.discriminator, nets.orp, nets.lpips):
        if module is not None:
            module.to(session.device).eval()  # no network here behaves otherwise in training, but LPIPS's dropout
    optimizers, parts = make_optimizers(stage, nets, settings), parts_of(nets)
    for name in stage.trains:
        wrap = session.world_size > 1 and not session.idle
        nets.trained[name] = wrapped(parts[name], session) if wrap else parts[name]
    return State(nets, optimizers)


def wrapped(module: nn.Module, session: Session) -> DistributedDataParallel:
    """The module in DistributedDataParallel. Buffers are constants here, and each worker has them: none are sent."""
    devices = [session.device] if session.device.type == "cuda" else None
    with warnings.catch_warnings():  # torch before 2.15 does not have the option that replaces this one
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(module, device_ids=devices, process_group=session.group, broadcast_buffers=False)


def trained_weights(stage: Stage, nets: Nets) -> dict[str, Tensor]:
    """The parameters that the stage moves, by full name."""
    prefixes = tuple(prefix for group in stage.trains.values() for prefix in group)
    return {name: p.data for name, p in named_parameters(nets) if name.startswith(prefixes)}


def save(folder: Path, stage: Stage, state: State, rows: list[dict]) -> None:
    """Write a checkpoint: resume.pt, and meta.json with its digest, the step and the rows since the last one."""
    content = {
        "weights": {k: v.cpu() for k, v in trained_weights(stage, state.nets).items()},
        "optimizers": {k: opt.state_dict() for k, opt in state.optimizers.items()},
        "ema": {k: v.cpu() for k, v in state.ema.items()},
    }
    torch.save(content, folder / "resume.pt")
    meta = {"step": state.step, "time_s": state.time_s, "validation_s": state.validation_s, "rows": rows}
    meta["sha256"] = file_sha256(folder / "resume.pt")
    (folder / "meta.json").write_text(json.dumps(meta | {"digest": digest_of(meta)}))


def digest_of(meta: dict) -> str:
    """sha256 of what meta.json says."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def restore_newest(stage: Stage, state: State, session: Session) -> None:
    """Go on from the newest checkpoint that is sound, if there is any; says which ones are not."""
    damaged = []
    for folder in session.checkpoints():
        try:
            restore(folder, stage, state)
        except DamagedCheckpoint as e:
            damaged.append(e)
            continue
        if damaged and session.rank == 0:
            print(f"{stage.name}: {damaged[0]}; going on from step {state.step}, the checkpoint before it", flush=True)
        elif session.rank == 0:
            print(f"{stage.name:<13} goes on from the checkpoint of step {state.step}", flush=True)
        return
    if damaged:
        raise UserError(f"{stage.name}: {damaged[0]}, and none before it is sound; remove it to train from the start")


def restore(folder: Path, stage: Stage, state: State) -> None:
    """Bring back what `save` wrote. Raises DamagedCheckpoint, before anything is changed, when it is not that."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta.pop("digest") != digest_of(meta):
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: meta.json has another digest")
        if file_sha256(folder / "resume.pt") != meta["sha256"]:
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: resume.pt has another digest")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError) as e:
        raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {type(e).__name__} {e}") from e
    content = torch.load(folder / "resume.pt", map_location="cpu", weights_only=True)
    weights = trained_weights(stage, state.nets)
    if weights.keys() != content["weights"].keys():
        raise UserError(f"checkpoint {folder} belongs to other networks; use another output folder")
    for name, value in weights.items():
        value.copy_(content["weights"][name])
    for name, opt in state.optimizers.items():
        opt.load_state_dict(content["optimizers"][name])
    state.ema = {k: v.to(next(iter(weights.values())).device) for k, v in content["ema"].items()}
    state.step, state.rows = meta["step"], meta["rows"]
    state.time_s, state.validation_s = meta["time_s"], meta["validation_s"]


def reduce_sum(values: dict[str, Tensor], session: Session) -> dict[str, Tensor]:
    """Sum of each tensor over the workers that share the batch."""
    if session.world_size > 1:
        for value in values.values():
            dist.all_reduce(value, group=session.group)
    return values


class swapped:
    """Context in which the averaged weights (EMA), if any, stand in for the trained ones."""

    def __init__(self, state: State):
        own = dict(named_parameters(state.nets))
        self.pairs = [(own[name].data, value) for name, value in state.ema.items()]

    def _swap(self) -> None:
        for weight, average in self.pairs:
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_) -> None:
        self._swap()


def update_ema(stage: Stage, state: State, decay: float) -> None:
    """The moving average of what the stage averages, started from the weights after the first step.

    The decay rises to its value, as (1 + step) / (10 + step), so that a short run does not keep its first weights.
    """
    decay = min(decay, (1 + state.step) / (10 + state.step))
    own = {k: p.data for k, p in named_parameters(state.nets) if k.startswith(stage.averages)}
    if not state.ema:
        state.ema = {k: v.clone() for k, v in own.items()}
    torch._foreach_lerp_(list(state.ema.values()), [own[k] for k in state.ema], 1 - decay)


@torch.no_grad()
def validate(
    stage: Stage, state: State, config: Config, session: Session, names: Sequence[str]
) -> tuple[dict[str, float], dict[str, bytes]]:
    """val/ metrics over all workers' validation crops, and rank 0's pictures of its first batch. names: of classes."""
    sums: dict[str, Tensor] = {}
    pictures: dict[str, bytes] = {}
    with swapped(state):
        for i, raw in enumerate(session.val_batches(config, stage.settings(config))):
            batch = to_batch(raw, session.device)
            for name, value in stage.validate(state.nets, batch, config).items():
                value = value.double()
                sums[name] = sums[name] + value if name in sums else value
            if i == 0 and session.rank == 0:
                pictures = stage.pictures(state.nets, batch.part(slice(0, 4)), config, names)
    sums = reduce_sum(dict(sorted(sums.items())), session)
    values = {f"val/{k}": v for k, v in stage.summarise(sums).items()}
    if session.rank == 0 and (curve := rates.curve_png(values)):
        pictures["rate_distortion"] = curve
    return values, pictures


class Meter:
    """Means of losses and times between two rows; tensors stay on the device until a row is due."""

    def __init__(self, session: Session):
        self.session = session
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.sums: dict[str, tuple[Tensor, int]] = {}
        self.num_steps = 0
        self.time_s = {"data": 0.0, "step": 0.0, "checkpoint": 0.0}
        self.last_s = 0.0
        self.start = time.perf_counter()

    def add(self, losses: dict[str, Tensor]) -> None:
        """Count one step's losses; which ones there are may change between phases."""
        self.num_steps += 1
        for name, value in losses.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)

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
    loss = next(row[f"train/{n}"] for n in ("loss", "seg", "mse255") if f"train/{n}" in row)
    eta = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
    return f"{stage.name:<13} step {row['step']}/{settings.steps}  {rate:.2f} steps/s  loss {loss:.4g}  left {eta}"


def train(stage_name: str, config: Config, components: Components, session: Session, provenance: dict) -> None:
    """Run a stage to its end, from its last checkpoint if it has one. Resume beats init; see `Stage.build` for init."""
    stage = load_stage(stage_name)
    settings = stage.settings(config)
    torch.manual_seed(config.seed)
    nets = stage.build(config, components)
    nets.precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.precision]
    if config.compute.compile:
        compile_blocks(nets)
    state = prepare_training(stage, nets, session, settings)
    if session.device.type == "cuda":
        capture = cuda_graph if config.compute.cuda_graphs and session.world_size == 1 else uncaptured
        state.queued = QueuedSteps(stage, nets, state.optimizers, config, session.device, capture)
    restore_newest(stage, state, session)
    if session.rollbacks:
        provenance = provenance | {"rollbacks": session.rollbacks}
    run_steps(stage, config, settings, state, session, provenance)


def run_steps(
    stage: Stage, config: Config, settings: Training, state: State, session: Session, provenance: dict
) -> None:
    """The steps that are left, with a row every log_every and a checkpoint every checkpoint_every steps.

    A checkpoint comes also when the node is about to go, or when the run is told to stop, which then ends it.
    """
    meter, spoken, first, next_look = Meter(session), 0.0, state.step + 1, state.step + 1
    unsent = list(state.rows)  # rows a killed run may not have delivered
    since: list[dict] = []  # rows since the last checkpoint
    if state.step >= settings.steps:  # finished, but its end was not heard: say it again
        finish_interval(stage, config, settings, state, session, provenance, unsent, since)
        return
    stream = None if session.idle else session.stream(config, state.step, settings)
    while state.step < settings.steps:
        if stream is not None:
            take_step(stage, config, settings, state, session, stream, meter)
        state.step += 1
        if state.step == first and session.rank == 0:
            print(f"{stage.name:<13} step {state.step}/{settings.steps}", flush=True)
        last, wish = state.step == settings.steps, ""
        if state.step >= next_look and not last:
            wish, next_look = session.look(state.step, state.step + steps_in(LOOK_EVERY_S, meter.last_s))
        due = last or state.step % settings.checkpoint_every == 0
        if stream is not None and (due or wish or state.step % settings.log_every == 0):
            if state.queued:
                with said_where(stage, state.step, session):
                    state.queued.check()
            since.append(meter.row(state.step, settings.batch, learning_rate(settings, state.step - 1, session)))
            if session.rank == 0 and (time.monotonic() - spoken > PROGRESS_EVERY_S or last):
                spoken = time.monotonic()
                print(progress(stage, since[-1], settings), flush=True)
        if due or wish:
            began = time.perf_counter()
            finish_interval(stage, config, settings, state, session, provenance, unsent, since, validated=due)
            unsent, since = [], []
            meter.time_s["checkpoint"] += time.perf_counter() - began
            meter.start = time.perf_counter()
        if wish == "stop":
            return


def steps_in(time_s: float, step_s: float) -> int:
    """How many steps of `step_s` seconds fill `time_s`, at least one."""
    return max(1, int(time_s / max(step_s, 1e-3)))


def learning_rate(settings: Training, step: int, session: Session) -> float:
    """Learning rate of the step with this index, smaller for each time that training went back."""
    return settings.lr_at(step) * SMALLER ** len(session.rollbacks)


def take_step(
    stage: Stage, config: Config, settings: Training, state: State, session: Session, stream: Iterator, meter: "Meter"
) -> None:
    """One optimizer step on the stream's next batch. Raises NonFiniteError, with where, before the update is made."""
    begun = began = time.perf_counter()
    batch = to_batch(next(stream), session.device)
    meter.time_s["data"] += time.perf_counter() - began
    began = time.perf_counter()
    for opt in state.optimizers.values():
        for group in opt.param_groups:
            group["lr"] = learning_rate(settings, state.step, session)
    with said_where(stage, state.step, session):
        if state.queued:
            losses = state.queued(batch, state.step)
        else:
            losses = stage.step(state.nets, state.optimizers, batch, config, state.step)
        meter.add(losses)
    if settings.ema:
        update_ema(stage, state, settings.ema)
    meter.time_s["step"] += time.perf_counter() - began
    meter.last_s = time.perf_counter() - begun
    state.time_s += meter.last_s


@contextmanager
def said_where(stage: Stage, step: int, session: Session) -> Iterator[None]:
    """Raise a NonFiniteError of the step with this index again, with where it was; the session notes it."""
    try:
        yield
    except NonFiniteError as e:
        number = 1 + (step if e.step is None else e.step)
        error = NonFiniteError(f"{stage.name} step {number}, rank {session.rank}: {e}; the update was not made")
        session.went_wrong(number, error)
        raise error from None


def finish_interval(
    stage: Stage, config: Config, settings: Training, state: State, session: Session, provenance: dict,
    unsent: list[dict], since: list[dict], *, validated: bool = True,
) -> None:  # fmt: skip
    """Validate, checkpoint and report; at the last step the checkpoint carries the artifact."""
    if session.idle:
        session.report({}, None)
        return
    began = time.perf_counter()
    names = provenance.get("classes") or [f"class {c}" for c in range(1, config.discriminator.num_categories + 1)]
    values, pictures = validate(stage, state, config, session, names) if validated else ({}, {})
    state.validation_s += time.perf_counter() - began
    row = {"step": state.step} | values
    if since:
        since[-1] |= values
    rows = since or [row]

    def write(folder: Path) -> None:
        save(folder, stage, state, rows)
        for name, png in pictures.items():
            (folder / f"{name}.png").write_bytes(png)
        if state.step == settings.steps:
            with swapped(state):
                parts = {name: getattr(state.nets, name) for name in stage.publishes}
                facts = {"steps": state.step, "batch": settings.batch, "metrics": row}
                facts |= {"time_s": state.time_s, "validation_s": state.validation_s}
                artifact.save(folder / "artifact", parts, provenance | facts)

    session.report({"step": state.step, "rows": unsent + rows, "pictures": sorted(pictures)}, write)
