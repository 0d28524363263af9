"""The state of a stage's training: networks, optimizers, moving averages, and how it is saved and restored.

Order, augmentation and noise are functions of (seed, position): weights, optimizers, averages and the step are all that
a checkpoint needs.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from egic.errors import UserError
from egic.training.optimizers import make_optimizer
from egic.training.steps import Nets
from jobs.config.schema import Training
from jobs.storage.files import file_sha256
from jobs.training.session import Session
from jobs.training.stage import Stage


class DamagedCheckpoint(UserError):
    """A checkpoint is not what was written."""


@dataclass
class TrainState:
    """Everything that a resumed run needs, and rows of metrics that are still to be reported."""

    nets: Nets
    optimizers: dict[str, torch.optim.Optimizer]
    step: int = 0
    """Steps done."""
    time_s: float = 0.0
    """Time spent on data and steps so far, over all attempts."""
    validation_s: float = 0.0
    """Time spent on validation, likewise."""
    ema: dict[str, Tensor] = field(default_factory=dict)
    """Moving averages of weights by the parameters' full names."""
    rows: list[dict] = field(default_factory=list)
    """Rows of the checkpoint that training resumes from, since a killed run may not have delivered them."""


def named_parameters(nets: Nets) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of all networks as `codec.g_s...`, `discriminator...`, `orp...`, `lpips...`."""
    for name, module in nets.networks().items():
        yield from module.named_parameters(prefix=name)


def parts_of(nets: Nets) -> dict[str, nn.Module]:
    """The modules that stages train, by the name of their optimizer: the networks, and the codec's g_s alone."""
    networks = nets.networks()
    return networks | ({"g_s": networks["codec"].get_submodule("g_s")} if "codec" in networks else {})


def make_optimizers(stage: Stage, nets: Nets, settings: Training) -> dict[str, torch.optim.Optimizer]:
    """Freeze all but what the stage declares, and give that its optimizers."""
    for _, parameter in named_parameters(nets):
        parameter.requires_grad_(False)
    modules = [module for network in nets.networks().values() for module in network.modules()]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, prefixes in stage.trains.items():
        chosen = [p for full, p in named_parameters(nets) if full.startswith(prefixes)]
        for parameter in chosen:
            parameter.requires_grad_(True)
        queued = chosen[0].device.type == "cuda"  # jobs/training/cuda_graphs.py
        optimizers[name] = make_optimizer(settings.optimizer, chosen, modules, settings.lr, queued=queued)
    return optimizers


def set_learning_rate(opt: torch.optim.Optimizer, lr: float) -> None:
    """Set it for all parameters; a tensor stays the same tensor, since a captured step reads it."""
    for group in opt.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def load_optimizer(opt: torch.optim.Optimizer, saved: dict) -> None:
    """Load an optimizer's state from any kind of device, but keep this device's `lr` and `capturable`."""
    here: list[dict[str, Any]] = [
        {name: group[name] for name in ("lr", "capturable") if name in group} for group in opt.param_groups
    ]
    opt.load_state_dict(saved)
    for group, kept in zip(opt.param_groups, here, strict=True):
        group.update(kept)


def prepare_training(stage: Stage, nets: Nets, session: Session, settings: Training) -> TrainState:
    """Networks on the device, optimizers for what the stage trains, and that wrapped for several workers."""
    # TF32 keeps 10 bits of mantissa, bfloat16 7: where those do, these do for what stays in float32 (ChARM, h_s)
    torch.backends.cuda.matmul.allow_tf32 = nets.precision == torch.bfloat16
    for module in nets.networks().values():
        module.to(session.device).eval()  # no network here behaves otherwise in training, but LPIPS's dropout
    optimizers, parts = make_optimizers(stage, nets, settings), parts_of(nets)
    for name in stage.trains:
        wrap = session.world_size > 1 and not session.idle
        nets.trained[name] = wrapped(parts[name], session) if wrap else parts[name]
    return TrainState(nets, optimizers)


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


def save(folder: Path, stage: Stage, state: TrainState, rows: list[dict]) -> None:
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


def restore_newest(stage: Stage, state: TrainState, session: Session) -> None:
    """Resume from the newest checkpoint that is not damaged, if any; prints which ones are."""
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
        raise UserError(f"{stage.name}: {damaged[0]}, and no earlier one is intact; delete them to start again")


def restore(folder: Path, stage: Stage, state: TrainState) -> None:
    """Load a checkpoint written by `save`. Raises DamagedCheckpoint, before any state is changed, if its digests do not
    match."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta.pop("digest") != digest_of(meta):
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: meta.json has another digest")
        if file_sha256(folder / "resume.pt") != meta["sha256"]:
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: resume.pt has another digest")
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError) as e:
        raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {type(e).__name__} {e}") from e
    content = torch.load(folder / "resume.pt", map_location="cpu", weights_only=True)
    weights = trained_weights(stage, state.nets)
    if weights.keys() != content["weights"].keys():
        raise UserError(f"checkpoint {folder} belongs to other networks; use another output folder")
    for name, value in weights.items():
        value.copy_(content["weights"][name])
    for name, opt in state.optimizers.items():
        load_optimizer(opt, content["optimizers"][name])
    state.ema = {k: v.to(next(iter(weights.values())).device) for k, v in content["ema"].items()}
    state.step, state.rows = meta["step"], meta["rows"]
    state.time_s, state.validation_s = meta["time_s"], meta["validation_s"]


@contextmanager
def averaged(state: TrainState) -> Iterator[None]:
    """Context manager that replaces the trained weights by their moving averages (EMA), if `ema` is set."""
    own = dict(named_parameters(state.nets))
    pairs = [(own[name].data, average) for name, average in state.ema.items()]
    _swap(pairs)
    try:
        yield
    finally:
        _swap(pairs)


def _swap(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for weight, average in pairs:
        kept = weight.clone()
        weight.copy_(average)
        average.copy_(kept)


def update_ema(stage: Stage, state: TrainState, decay: float) -> None:
    """The moving average of what the stage averages, started from the weights after the first step.

    The decay rises to its value, as (1 + step) / (10 + step), so that a short run does not keep its first weights.
    """
    decay = min(decay, (1 + state.step) / (10 + state.step))
    own = {k: p.data for k, p in named_parameters(state.nets) if k.startswith(stage.averages)}
    if not state.ema:
        state.ema = {k: v.clone() for k, v in own.items()}
    get_ema_multi_avg_fn(decay)(list(state.ema.values()), [own[k] for k in state.ema], None)
