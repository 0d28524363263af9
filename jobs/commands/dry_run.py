"""What a run would take, before anything is started: steps, sizes on disk, memory of a worker, data, resources."""

import logging
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from egic.metrics.perceptual import LPIPS
from egic.networks import swin
from egic.networks.codec import Codec
from egic.networks.discriminator import Discriminator
from egic.pictures import READ_SUFFIXES
from egic.training.steps import Batch, Nets
from jobs.config.schema import Config, Training
from jobs.data.datasets import find_data
from jobs.data.sources.coco import file_sizes
from jobs.data.sources.folders import COCO, SPLITS, folders_of, kind_of, read_splits
from jobs.storage.files import absolute, is_remote, join
from jobs.training import loop
from jobs.training.num_categories import foretold
from jobs.training.stage import EVALUATE, Components, Stage, load_stage

log = logging.getLogger(__name__)

HEAD = ("stage", "steps", "batch", "images seen", "parameters", "trained", "resume.pt", "artifact", "worker memory")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage takes. Sizes in bytes."""

    steps: int
    batch: int
    parameters: int
    """Of all networks on the worker, frozen ones included."""
    trained: int
    checkpoint: int
    """resume.pt: trained weights, Adam's two moments of each, and the moving average if there is one."""
    artifact: int
    memory: int
    """Largest sum of a worker's tensors at any moment of a step."""


@contextmanager
def in_few_operations() -> Iterator[None]:
    """Attention goes back over more scores at a time: without values it is the number of operations that takes time."""
    before, swin.SCORES = swin.SCORES, 2**22
    try:
        yield
    finally:
        swin.SCORES = before


class Finite(TorchFunctionMode):
    """Tensors without values are taken to be finite: a step looks before it makes its update."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return True if func is torch.isfinite else func(*args, **(kwargs or {}))


class Living(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (key := (storage := leaf.untyped_storage())._cdata) not in self.known:
                self.known.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, key, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def cost_of(name: str, config: Config, world_size: int = 1) -> Cost:
    """What a stage takes on each of the `world_size` workers that share its batch.

    The memory is that of the stage's own steps, two of each of its phases, made with tensors that have shapes and no
    values (torch's fake tensors): weights, gradients, Adam's moments, activations and temporary results. Measured
    against the CPU allocator in steps of the tiny preset it is right to 10 % (test_dry_run.py). It leaves
    out the program (0.6 GB on a CPU, as much again for CUDA), what libraries take inside an operation, and
    fragmentation; for a GPU, mixed precision is what autocast does on a CPU.
    """
    stage = load_stage(name)
    settings = stage.settings(config)
    with torch.device("meta"):
        nets = networks(stage, config)
    modules = [m for part in ("codec", "discriminator", "orp", "lpips") if (m := getattr(nets, part)) is not None]
    parameters = sum(p.numel() for m in modules for p in m.parameters())
    if nets.discriminator is not None and nets.discriminator.encoder is not None:
        parameters += sum(b.numel() for b in nets.discriminator.encoder.net.buffers())
    trained = {k: p.numel() * p.element_size() for k, p in loop.trained_weights(stage, nets).items()}
    averaged = sum(v for k, v in trained.items() if k.startswith(stage.averages)) if settings.ema else 0
    artifact = sum(_bytes(v) for part in stage.publishes for v in getattr(nets, part).state_dict().values())
    memory = peak_memory(stage, config, nets, settings.batch // world_size) + averaged
    if world_size > 1:
        memory += sum(trained.values())  # DistributedDataParallel's buckets
    return Cost(
        steps=settings.steps, batch=settings.batch, parameters=parameters,
        trained=sum(p.numel() for p in loop.trained_weights(stage, nets).values()),
        checkpoint=3 * sum(trained.values()) + averaged, artifact=artifact, memory=memory,
    )  # fmt: skip


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def networks(stage: Stage, config: Config) -> Nets:
    """The stage's networks, as they would come from its parents."""
    takes = set(stage.takes) | ({"lpips"} if "lpips_weights" in stage.reads else set())
    components: Components = {}
    if "codec" in takes:
        components["codec"] = Codec(config.codec)
    if "discriminator" in takes:
        components["discriminator"] = Discriminator(config.discriminator)
    if "lpips" in takes:
        components["lpips"] = LPIPS(None)
    nets = stage.build(config, components)
    nets.precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.precision]
    return nets


def peak_memory(stage: Stage, config: Config, nets: Nets, batch: int) -> int:
    """Bytes that tensors take at most in steps with `batch` pictures; see `cost_of`. nets: on the meta device."""
    settings, size = stage.settings(config), config.crop_of(stage.settings(config)).size
    with FakeTensorMode(), Living() as living, Finite(), in_few_operations():
        for part in (nets.codec, nets.discriminator, nets.orp, nets.lpips):
            if part is not None:
                onto_cpu(part)
        optimizers = loop.make_optimizers(stage, nets, settings)
        nets.trained |= {name: loop.parts_of(nets)[name] for name in stage.trains}
        for step in first_steps(settings):
            x, label = torch.zeros(batch, 3, size, size), torch.zeros(batch, size, size, dtype=torch.long)
            drawn = Batch(x, label, torch.zeros(batch, size, size), list(range(batch)))
            stage.step(nets, optimizers, drawn, config, step)
    return living.most


def first_steps(settings: Training) -> list[int]:
    """The first two steps of every phase: in the second one there are gradients and moments from the start."""
    begins = {0, getattr(settings, "warmup_steps", 0)}
    return sorted({step + i for step in begins for i in (0, 1) if step + i < settings.steps})


def onto_cpu(module: nn.Module) -> None:
    """Replace a meta module's tensors by new ones on the CPU (`Module.to_empty` fails on modules held twice)."""
    for each in module.modules():
        for name, p in each._parameters.items():
            each._parameters[name] = p if p is None else nn.Parameter(torch.empty(p.shape, dtype=p.dtype))
        for name, b in each._buffers.items():
            each._buffers[name] = b if b is None else torch.empty(b.shape, dtype=b.dtype)


def text(config: Config, names: Sequence[str]) -> str:
    """Table of the stages, then data, workers and disk."""
    from jobs.training.worker import KEPT_CHECKPOINTS, sharing  # imports Ray, but starts nothing

    config = foretold(config, find_data(config.data, config.output), names)
    compute = config.compute
    rows: list[tuple[str, ...]] = [HEAD]
    disk = 0
    log.info("taking a step without values, which needs up to a minute")
    for name in names:
        if name == EVALUATE:
            rows.append((name, "-", "-", f"{config.evaluate.max_pictures:,} at most", *["-"] * 5))
            continue
        cost = cost_of(name, config, sharing(config, name, compute.min_workers))
        disk += KEPT_CHECKPOINTS * cost.checkpoint + cost.artifact
        sizes = [shown(size) for size in (cost.checkpoint, cost.artifact, cost.memory)]
        counts = (cost.steps, cost.batch, cost.steps * cost.batch, cost.parameters, cost.trained)
        rows.append((name, *(f"{count:,}" for count in counts), *sizes))
    columns = list(zip(*rows, strict=True))  # a column per stage: that fits a terminal
    align = ("left", *["right"] * len(names))
    lines = [tabulate(columns, tablefmt="plain", disable_numparse=True, colalign=align)]
    lines += ["", f"data       {data_line(config)}", f"workers    {workers_line(config)}"]
    lines += [f"disk       {shown(disk)} below {absolute(config.output)} and in MLflow's artifacts,"]
    lines += [f"           with {KEPT_CHECKPOINTS} checkpoints of each stage"]
    lines += ["memory     of each worker's tensors; program and libraries come on top, 0.6 GB or more"]
    return "\n".join(lines)


def shown(size: float) -> str:
    """Bytes for people: 3 digits."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError


def workers_line(config: Config) -> str:
    """How many workers a stage has, and what has to be free for it."""
    from jobs.cluster.resources import needed

    compute = config.compute
    each = f"{compute.cpus_per_worker:g} CPU" + (" and 1 GPU" if compute.use_gpu else "")
    wanted = ", ".join(f"{count:g} {name}" for name, count in needed(compute).items())
    return f"{compute.workers} of {each} per stage; data tasks of {compute.data_cpus:g} CPU; at least {wanted} in all"


def data_line(config: Config) -> str:
    """The data folders, and how many pictures they have."""
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
    """Pictures in each split of a folder that is not prepared."""
    if kind == COCO:  # without reading its annotations, which takes minutes
        trees = {split: folder / f"{split}2017" for split in SPLITS}
        return {k: len(file_sizes(tree, READ_SUFFIXES)) for k, tree in trees.items() if tree.is_dir()}
    return {part.split: len(part.samples) for part in read_splits([folder], SPLITS)}
