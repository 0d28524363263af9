"""`--dry-run`: steps, sizes on disk, memory of a worker, data and resources of a run, without starting anything."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate
from torch import Tensor

from egic.networks.frozen_features import FrozenFeatures
from egic.pictures import READ_SUFFIXES
from jobs.config.schema import Config
from jobs.data.datasets import find_data
from jobs.data.sources.coco import file_sizes
from jobs.data.sources.folders import COCO, SPLITS, folders_of, kind_of, read_splits
from jobs.storage.files import absolute, is_remote, join
from jobs.training import fake_step
from jobs.training.num_categories import expected
from jobs.training.stage import EVALUATE, Stage, load_stage, phases_of
from jobs.training.train_state import trained_weights

log = logging.getLogger(__name__)

HEAD = ("stage", "steps", "batch", "images seen", "parameters", "trained", "resume.pt", "artifact", "worker memory")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a stage. Sizes in bytes."""

    steps: int
    batch: int
    parameters: int
    """Of all networks on the worker, frozen ones included."""
    trained: int
    checkpoint: int
    """resume.pt: trained weights, what the optimizers keep, and the moving average if there is one."""
    artifact: int
    memory: int
    """Largest sum of a worker's tensors at any moment of a step."""


def cost_of(name: str, config: Config, world_size: int = 1) -> Cost:
    """The cost of a stage on each of the `world_size` workers that share its batch.

    The memory is counted in two steps of each phase of the stage, run on torch's fake tensors (shapes without values):
    weights, gradients, optimizers, activations and temporary results. For the tiny preset it agrees with the CPU
    allocator to 10 % (test_dry_run.py). It does not include the program (0.6 GB on a CPU, as much again for CUDA),
    memory that libraries use inside an operation, and fragmentation; for a GPU, autocast's rules for the CPU are used.
    """
    stage = load_stage(name)
    settings = stage.settings(config)
    nets = fake_step.networks(stage, config)
    networks = nets.networks()
    modules = [module for network in networks.values() for module in network.modules()]
    frozen = [module.net for module in modules if isinstance(module, FrozenFeatures)]  # its weights are buffers
    parameters = sum(p.numel() for network in networks.values() for p in network.parameters())
    parameters += sum(b.numel() for features in frozen for b in features.buffers())
    weights = trained_weights(stage, nets)
    trained = {name: _bytes(weight) for name, weight in weights.items()}
    averaged = sum(v for k, v in trained.items() if k.startswith(stage.averages)) if settings.ema else 0
    artifact = sum(_bytes(v) for part in stage.publishes for v in networks[part].state_dict().values())
    num_trained = sum(weight.numel() for weight in weights.values())
    living = fake_step.Living()
    steps = first_steps(stage, config)
    optimizers = fake_step.take_steps(stage, config, nets, settings.batch // world_size, steps, living)
    kept = [value for opt in optimizers.values() for state in opt.state.values() for value in state.values()]
    memory = living.most + averaged
    if world_size > 1:
        memory += sum(trained.values())  # DistributedDataParallel's buckets
    return Cost(
        steps=settings.steps, batch=settings.batch, parameters=parameters, trained=num_trained,
        checkpoint=sum(trained.values()) + sum(map(_bytes, kept)) + averaged, artifact=artifact, memory=memory,
    )  # fmt: skip


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def first_steps(stage: Stage, config: Config) -> list[int]:
    """The first two steps of every phase; the second one starts with gradients and moments in memory."""
    return [phase.first + i for phase in phases_of(stage, config) for i in range(min(2, phase.steps))]


def text(config: Config, names: Sequence[str]) -> str:
    """Table of the stages, then data, workers and disk."""
    from jobs.training.worker import KEPT_CHECKPOINTS, sharing  # imports Ray, but starts nothing

    config = expected(config, find_data(config.data, config.output), names)
    compute = config.compute
    rows: list[tuple[str, ...]] = [HEAD]
    disk = 0
    log.info("counting the memory of a step, which takes up to a minute")
    for name in names:
        if name == EVALUATE:
            rows.append((name, "-", "-", f"{config.evaluate.max_pictures:,} at most", *["-"] * 5))
            continue
        cost = cost_of(name, config, sharing(config, name, compute.min_workers))
        disk += KEPT_CHECKPOINTS * cost.checkpoint + cost.artifact
        sizes = [shown(size) for size in (cost.checkpoint, cost.artifact, cost.memory)]
        counts = (cost.steps, cost.batch, cost.steps * cost.batch, cost.parameters, cost.trained)
        rows.append((name, *(f"{count:,}" for count in counts), *sizes))
    columns = list(zip(*rows, strict=True))  # a column per stage, to fit a terminal
    align = ("left", *["right"] * len(names))
    lines = [tabulate(columns, tablefmt="plain", disable_numparse=True, colalign=align)]
    lines += ["", f"data       {data_line(config)}", f"workers    {workers_line(config)}"]
    lines += [f"disk       {shown(disk)} below {absolute(config.output)} and in MLflow's artifacts,"]
    lines += [f"           with {KEPT_CHECKPOINTS} checkpoints of each stage"]
    lines += ["memory     of each worker's tensors; program and libraries come on top, 0.6 GB or more"]
    return "\n".join(lines)


def shown(size: float) -> str:
    """A size in bytes as text with 3 digits and a unit."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError


def workers_line(config: Config) -> str:
    """The number of workers of a stage, and the resources that must be free."""
    from jobs.cluster.resources import needed

    compute = config.compute
    each = f"{compute.cpus_per_worker:g} CPU" + (" and 1 GPU" if compute.use_gpu else "")
    wanted = ", ".join(f"{count:g} {name}" for name, count in needed(compute, compute.min_workers).items())
    return f"{compute.workers} of {each} per stage; data tasks of {compute.data_cpus:g} CPU; at least {wanted} in all"


def data_line(config: Config) -> str:
    """The data folders, with their numbers of pictures."""
    folders = folders_of(config.data) if not is_remote(config.data) else ()
    places = [absolute(f) for f in folders or [config.data or join(config.output, "scenes")]]
    place, kind = " and ".join(places), "prepared"
    counts = Counter({split: manifest.num_samples for split, manifest in find_data(config.data, config.output).items()})
    if not counts and all(Path(p).is_dir() for p in places):
        found = {Path(p): kind_of(Path(p)) for p in places}
        kind = f"{' and '.join(dict.fromkeys(found.values()))}, to be prepared"
        for folder, each in found.items():
            counts.update(num_pictures(folder, each))
    if counts:
        return f"{place}, {kind}: " + ", ".join(f"{n:,} pictures in {k}" for k, n in counts.items())
    return f"{place} does not exist" + ("" if config.data else " yet; scenes will be drawn there")


def num_pictures(folder: Path, kind: str) -> dict[str, int]:
    """Number of pictures in each split of a folder that is not prepared."""
    if kind == COCO:  # without reading its annotations, which takes minutes
        trees = {split: folder / f"{split}2017" for split in SPLITS}
        return {k: len(file_sizes(tree, READ_SUFFIXES)) for k, tree in trees.items() if tree.is_dir()}
    return {part.split: len(part.samples) for part in read_splits([folder], SPLITS)}
