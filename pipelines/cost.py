#!/usr/bin/env python3
"""What training costs: floating-point work of every stage, counted, and GPU-hours and money at an assumed speed.

    python pipelines/cost.py paper --tflops 40 --price 2

Nothing is started, and no speed is measured here: docs/cost.md says what to put in for `--tflops`.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script

from egic.errors import UserError, quiet, run_main
from jobs.config import command_line
from jobs.config.schema import Config
from jobs.data.sources.coco_classes import CATEGORIES

HEAD = ("stage", "steps", "batch", "TFLOP/step", "EFLOP", "GPU-hours", "price")


@dataclass(frozen=True, kw_only=True)
class Priced(Config):
    """A preset's configuration, the speed that a GPU is taken to have, and its price."""

    tflops: float = 40.0
    """Sustained TFLOP/s of one GPU in these networks. Default: an assumption, 13 % of an A100's bfloat16 peak."""
    price: float = 2.0
    """Price of a GPU-hour, in any currency. Default: a placeholder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tflops", "price"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; give a positive number")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Steps of a stage that all do the same work."""

    name: str
    first: int
    """The phase's first step."""
    steps: int
    batch: int


def phases(config: Config) -> Iterator[tuple[str, Phase]]:
    """(stage, phase) in the order of training; the GAN stage has two."""
    for name in ("segmentation", "mse-codec", "gan", "orp"):
        settings = getattr(config, name.replace("-", "_"))
        warm = getattr(settings, "warmup_steps", 0)
        parts = [("gan, warm-up", 0, warm), ("gan, adversarial", warm, settings.steps - warm)] if warm else []
        for label, first, steps in parts or [(name, 0, settings.steps)]:
            if steps:
                yield name, Phase(name=label, first=first, steps=steps, batch=settings.batch)


def flop_per_picture(stage_name: str, config: Config, step: int) -> float:
    """Floating-point operations of that training step, forward and backward, per picture of its batch.

    Matrix products, convolutions and attention are counted (two per multiply-add), in a step on tensors without values;
    what is left out (norms, activations, Adam) takes memory bandwidth rather than arithmetic.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from egic.training.steps import Batch
    from jobs.commands import dry_run
    from jobs.training import loop
    from jobs.training.stage import load_stage

    stage, batch = load_stage(stage_name), 2  # the adversarial step halves its batch
    size = config.crop_of(stage.settings(config)).size
    with torch.device("meta"):
        nets = dry_run.networks(stage, config)
    with FakeTensorMode(), dry_run.Finite(), sdpa_kernel(SDPBackend.MATH):  # fused attention is not counted on CPUs
        for part in (nets.codec, nets.discriminator, nets.orp, nets.lpips):
            if part is not None:
                dry_run.onto_cpu(part)
        optimizers = loop.make_optimizers(stage, nets, stage.settings(config))
        nets.trained |= {name: loop.parts_of(nets)[name] for name in stage.trains}
        x, label = torch.zeros(batch, 3, size, size), torch.zeros(batch, size, size, dtype=torch.long)
        drawn = Batch(x, label, torch.zeros(batch, size, size), list(range(batch)))
        with FlopCounterMode(display=False) as counter:
            stage.step(nets, optimizers, drawn, config, step)
    return counter.get_total_flops() / batch


def text(config: Priced) -> str:
    """Table of the phases and their sum."""
    from jobs.training.num_categories import with_categories

    if not config.discriminator.num_categories:  # as many as the data has
        config = with_categories(config, len(CATEGORIES))
    rows: list[tuple[str, ...]] = [HEAD]
    total = 0.0
    for stage, phase in phases(config):
        per_step = flop_per_picture(stage, config, phase.first) * phase.batch
        total += per_step * phase.steps
        counts = (f"{phase.steps:,}", str(phase.batch), f"{per_step / 1e12:.3g}")
        rows.append((phase.name, *counts, *_priced(per_step * phase.steps, config)))
    rows.append(("all", "", "", "", *_priced(total, config)))
    align = ("left", *["right"] * (len(HEAD) - 1))
    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=align)


def _priced(flop: float, config: Priced) -> tuple[str, str, str]:
    hours = flop / (config.tflops * 1e12) / 3600
    return f"{flop / 1e18:.3g}", f"{hours:.3g}", f"{hours * config.price:.3g}"


def start(argv: list[str] | None = None) -> None:
    """Read the command line, and print the table."""
    print(text(command_line.read(Priced, argv, prog="cost.py").config))


if __name__ == "__main__":
    quiet("jobs")
    raise SystemExit(run_main(start))
