#!/usr/bin/env python3
"""Estimate the cost of training: counted FLOP of every stage, GPU-hours and price at a given speed.

    python pipelines/cost.py paper --tflops 40 --price 2

Starts no training and measures no speed. docs/cost.md explains which value to use for `--tflops`.
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
from jobs.training.stage import MODULES, Phase, load_stage, phases_of

HEAD = ("stage", "steps", "batch", "TFLOP/step", "EFLOP", "GPU-hours", "price")


@dataclass(frozen=True, kw_only=True)
class Priced(Config):
    """A preset's configuration, and assumed speed and price of a GPU."""

    tflops: float = 40.0
    """Sustained TFLOP/s of one GPU in these networks. Default: an assumption, 13 % of an A100's bfloat16 peak."""
    price: float = 2.0
    """Price of a GPU-hour, in any currency. Default: a placeholder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tflops", "price"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; give a positive number")


def phases(config: Config) -> Iterator[tuple[str, Phase]]:
    """(stage name, phase) of all stages in the order of training; the GAN stage has two phases."""
    for name in MODULES:
        for phase in phases_of(load_stage(name), config):
            yield name, phase


def flop_per_picture(stage_name: str, config: Config, step: int) -> float:
    """FLOP of a training step, forward and backward, per picture of the batch.

    Counts matrix products, convolutions and attention (two per multiply-add) of a step on fake tensors. Norms,
    activations and Adam are not counted: they are limited by memory bandwidth.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from jobs.training import fake_step

    stage, batch = load_stage(stage_name), 2  # the adversarial step halves its batch
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH):  # FlopCounterMode does not count fused attention on CPUs
        fake_step.take_steps(stage, config, fake_step.networks(stage, config), batch, [step], counter)
    return counter.get_total_flops() / batch


def text(config: Priced) -> str:
    """The table of the phases and their sum."""
    from jobs.training.num_categories import with_categories

    if not config.discriminator.num_categories:  # 0 means the data's number
        config = with_categories(config, len(CATEGORIES))
    rows: list[tuple[str, ...]] = [HEAD]
    total = 0.0
    for name, phase in phases(config):
        batch = load_stage(name).settings(config).batch
        per_step = flop_per_picture(name, config, phase.first) * batch
        total += per_step * phase.steps
        counts = (f"{phase.steps:,}", str(batch), f"{per_step / 1e12:.3g}")
        label = f"{name}, {phase.name}" if phase.steps < load_stage(name).settings(config).steps else name
        rows.append((label, *counts, *_priced(per_step * phase.steps, config)))
    rows.append(("all", "", "", "", *_priced(total, config)))
    align = ("left", *["right"] * (len(HEAD) - 1))
    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=align)


def _priced(flop: float, config: Priced) -> tuple[str, str, str]:
    hours = flop / (config.tflops * 1e12) / 3600
    return f"{flop / 1e18:.3g}", f"{hours:.3g}", f"{hours * config.price:.3g}"


def start(argv: list[str] | None = None) -> None:
    """Parse the command line and print the table."""
    print(text(command_line.read(Priced, argv, prog="cost.py").config))


if __name__ == "__main__":
    quiet("jobs")
    raise SystemExit(run_main(start))
