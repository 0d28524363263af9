"""A `Session` in this process: random batches that depend only on the position, checkpoints in a folder."""

import gc
import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from egic.metrics.perceptual import LPIPS
from jobs.config.presets import tiny
from jobs.training import loop
from jobs.training.num_categories import with_categories
from jobs.training.stage import load_stage


def sample(position: int, size: int, num_classes: int = 133) -> dict[str, np.ndarray]:
    """A coloured picture with a few flat regions, its labels and weights, drawn from the position."""
    rng = np.random.default_rng([11, position])
    cells = rng.integers(1, num_classes + 1, (4, 4))
    cells[0, 0] = 0
    label = np.kron(cells, np.ones((size // 4, size // 4), int)).astype(np.uint8)
    colour = np.random.default_rng(5).integers(0, 256, (num_classes + 1, 3))
    x = np.clip(colour[label] + rng.normal(0, 8, (size, size, 3)), 0, 255).astype(np.uint8)
    return {"x": x, "label": label, "weight": np.where(label % 3 == 0, 3, 1).astype(np.uint8)}


def collate(positions: list[int], size: int) -> dict[str, np.ndarray]:
    samples = [sample(p, size) for p in positions]
    return {k: np.stack([s[k] for s in samples]) for k in samples[0]} | {"position": np.array(positions)}


class LocalSession:
    """One rank of `world_size`, with checkpoints in `folder`. Raises after `stop_after` reports, as if killed."""

    def __init__(self, folder: Path, *, rank: int = 0, world_size: int = 1, stop_after: int | None = None):
        self.folder, self.rank, self.world_size, self.stop_after = folder, rank, world_size, stop_after
        self.device, self.reports = torch.device("cpu"), []
        self.idle, self.group, self.rollbacks, self.wishes = False, None, [], {}

    def stream(self, config, first_step, settings):
        for step in range(first_step, settings.steps):
            start = step * settings.batch
            positions = range(start + self.rank, start + settings.batch, self.world_size)
            yield collate(list(positions), config.crop_of(settings).size)

    def val_batches(self, config, settings):
        positions = range(10**6 + self.rank, 10**6 + settings.val_samples, self.world_size)
        yield collate(list(positions), config.crop_of(settings).size)

    def checkpoints(self):
        yield from sorted(self.folder.glob("step_*"), reverse=True)

    def look(self, step, next_step):
        return self.wishes.pop(step, ""), step + 1

    def went_wrong(self, step, error):
        self.rollbacks = [*self.rollbacks, {"step": step, "why": str(error)}]

    def report(self, metrics, write):
        self.reports.append(metrics)
        if self.rank == 0 and not self.idle:
            target = self.folder / f"step_{metrics['step']:06d}"
            target.mkdir(parents=True, exist_ok=True)
            write(target)
        if self.stop_after is not None and len(self.reports) == self.stop_after:
            raise KeyboardInterrupt


def components(config, *names: str):
    """New networks with the same weights at every call."""
    from egic.networks.codec import Codec
    from egic.networks.discriminator import Discriminator

    torch.manual_seed(3)
    made = {"codec": Codec(config.codec), "discriminator": Discriminator(config.discriminator), "lpips": LPIPS(None)}
    return {name: made[name].eval() for name in names}


def small(stage: str, **changes):
    """The tiny preset with a few steps of one stage; a checkpoint every two."""
    from dataclasses import replace

    config = with_categories(tiny(), 133)
    config = replace(config, codec=replace(config.codec, rates=changes.pop("rates", 0)))
    field = stage.replace("-", "_")
    rhythm = {"steps": 4, "last_steps": 0, "batch": 4, "log_every": 1, "checkpoint_every": 2, "val_samples": 4}
    if stage == "gan":
        rhythm["warmup_steps"] = 2
    return replace(config, **{field: replace(getattr(config, field), **(rhythm | changes))})


NEEDS = {"segmentation": (), "mse-codec": (), "gan": ("codec", "discriminator", "lpips"), "orp": ("codec",)}


def run(stage: str, config, session: LocalSession) -> None:
    loop.train(stage, config, components(config, *NEEDS[stage]), session, {"stage": stage})


def weights(folder: Path, stage: str, config) -> dict[str, torch.Tensor]:
    """Every stored tensor of the stage's finished artifact."""
    import safetensors.torch

    last = folder / f"step_{load_stage(stage).settings(config).steps:06d}" / "artifact"
    found = {}
    for path in sorted(last.glob("*.safetensors")):
        found |= {f"{path.stem}.{k}": v for k, v in safetensors.torch.load_file(path).items()}
    assert found and json.loads((last / "provenance.json").read_text())["stage"] == stage
    return found


def run_group(configs: dict, folder: Path, world_size: int, run=run) -> None:
    """`run(stage, config, session)` for each stage on `world_size` processes with gloo, below `folder`."""
    import torch.multiprocessing as mp

    folder.mkdir()
    mp.spawn(_member, args=(configs, folder, world_size, run), nprocs=world_size)


def _member(rank: int, configs: dict, folder: Path, world_size: int, run) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    try:
        for stage, config in configs.items():
            run(stage, config, LocalSession(folder / stage, rank=rank, world_size=world_size))
        gc.collect()  # DDP modules are in reference cycles with the group: end its threads now
        dist.barrier()
    finally:
        dist.destroy_process_group()
