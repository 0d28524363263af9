"""What a stage is, and its key: the same key means the same result, so a finished stage is never run twice."""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.optim import Optimizer

from egic import artifact
from egic.metrics.perceptual import LPIPS
from egic.training.steps import Batch, Nets
from jobs.config.schema import TRAINED, Config, Training
from jobs.training.code_version import LEARNING, MEASURING, code_digest, code_files

MODULES = {name: f"jobs.{name.replace('-', '_')}" for name in TRAINED}
EVALUATE = "evaluate"
"""The stage that measures; it trains nothing, and so it is no `Stage`."""
MEASURED = "orp"
"""The stage whose artifact it measures."""
STAGES = (*MODULES, EVALUATE)
"""Names of all stages, as tables list them."""


class Components(artifact.Components, total=False):
    """What a stage starts from: networks of its parents' artifacts, LPIPS, and weights of the discriminator's
    frozen encoder where it has one."""

    lpips: LPIPS
    encoder: Mapping[str, Tensor]


N = TypeVar("N", bound=Nets)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Consecutive steps of a stage that all do the same, with other numbers."""

    name: str
    """Empty where a stage has one phase."""
    first: int
    """Index of its first step (0-based)."""
    steps: int


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[N]):
    """One stage as plain functions on its networks N; the worker loop (`jobs.training.loop`) uses nothing else."""

    name: str
    parents: tuple[str, ...]
    """Stages whose artifacts this one starts from."""
    takes: tuple[str, ...] = ()
    """Components (codec, discriminator) it needs from them."""
    publishes: tuple[str, ...]
    """Components of its own artifact."""
    trains: Mapping[str, tuple[str, ...]]
    """Optimizer -> prefixes of the parameters it moves. Everything else stays bit-identical."""
    averages: tuple[str, ...]
    """Prefixes of the trained parameters whose moving average is published where `ema` is set."""
    reads: tuple[str, ...]
    """Fields of Config that its result depends on."""
    settings: Callable[[Config], Training]
    build: Callable[[Config, Components], N]
    """Networks from the parents' components; fresh ones take their initial weights from the global seed."""
    step: Callable[[N, Mapping[str, Optimizer], Batch, Config, int], dict[str, Tensor]]
    """(nets, optimizers, batch, config, step) -> losses, after one update."""
    validate: Callable[[N, Batch, Config], dict[str, Tensor]]
    """Sums over the batch's pictures, `count` among them; they are added over batches and workers."""
    summarise: Callable[[dict[str, Tensor]], dict[str, float]]
    """Those sums -> val/ metrics."""
    pictures: Callable[[N, Batch, Config, Sequence[str]], dict[str, bytes]]
    """PNG files to look at. The last argument: names of the classes 1..K."""
    phases: Callable[[Config], Mapping[str, int]] = lambda config: {}
    """Names and lengths in steps of the stage's phases, in order; steps of one phase do the same with other numbers.
    Default: one phase without a name."""
    shown_loss: str = "loss"
    """The loss of `step` that the line of progress shows."""
    headline: str
    """The main val/ metric of the stage, which decides the alias `best`."""
    higher_is_better: bool = True


def load_stage(name: str) -> Stage:
    """The stage's definition, imported by name, so that only its name travels to the workers."""
    return importlib.import_module(MODULES[name]).STAGE


def phases_of(stage: Stage, config: Config) -> list[Phase]:
    """The stage's phases that have steps, in order."""
    found: list[Phase] = []
    first = 0
    for name, steps in (stage.phases(config) or {"": stage.settings(config).steps}).items():
        if steps:
            found.append(Phase(name=name, first=first, steps=steps))
        first += steps
    return found


def phase_at(stage: Stage, config: Config, step: int) -> Phase:
    """The phase of the step with this index (0-based)."""
    return next(phase for phase in phases_of(stage, config) if step < phase.first + phase.steps)


def parents_of(name: str) -> tuple[str, ...]:
    """Stages whose artifacts the stage starts from."""
    return (MEASURED,) if name == EVALUATE else load_stage(name).parents


def groups(until: str = EVALUATE) -> list[tuple[str, ...]]:
    """`until` and all stages that it starts from, directly or not, in an order to run them in.

    Stages of one group do not depend on each other; they depend on stages of the groups before theirs.
    """
    parents: dict[str, tuple[str, ...]] = {}
    wanted = [until]
    while wanted:
        name = wanted.pop()
        parents[name] = parents_of(name)
        wanted += parents[name]
    sorter = TopologicalSorter(parents)
    sorter.prepare()
    found = []
    while sorter.is_active():
        ready = sorter.get_ready()
        found.append(tuple(sorted(ready, key=STAGES.index)))
        sorter.done(*ready)
    return found


def means(sums: dict[str, Tensor]) -> dict[str, float]:
    """Every sum divided by `count`."""
    count = sums["count"].item()
    return {name: value.item() / count for name, value in sums.items() if name != "count"}


def sources(stage: str) -> dict[str, str]:
    """The files of code that decide the stage's result, each with its digest."""
    if stage == EVALUATE:
        return code_files(*MEASURING)
    return code_files(*LEARNING, MODULES[stage].replace(".", "/") + ".py")


def ingredients(stage: Stage, config: Config, *, parents: Mapping[str, str], data: str, lpips: str) -> dict[str, Any]:
    """Everything that the stage's result depends on: settings, code, parents' digests, data digest, LPIPS backbone."""
    every = dataclasses.asdict(config) | {"discriminator": config.discriminator.recorded()}
    settings = {name: every[name] for name in stage.reads}
    return {
        "stage": stage.name,
        "config": settings,
        "code": code_digest(sources(stage.name)),
        "parents": dict(sorted(parents.items())),
        "data": data,
        "lpips": lpips if "lpips_weights" in stage.reads else "",
    }


def run_params(ingredients: Mapping[str, Any]) -> dict[str, object]:
    """The ingredients as parameters of the stage's MLflow run."""
    named = {name: ingredients[name] for name in ("code", "data", "lpips")}
    return {"key": stage_key(ingredients), **named, **ingredients["config"]}


def stage_key(ingredients: Mapping[str, object]) -> str:
    """16 hex digits that name the stage's run, its folder and its MLflow tag."""
    text = json.dumps(ingredients, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
