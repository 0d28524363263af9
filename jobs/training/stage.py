"""What a stage is, and its key: the same key means the same result, so a finished stage is never run twice."""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from torch import Tensor

from egic import artifact
from egic.metrics.perceptual import LPIPS
from egic.training.steps import Batch, Nets
from jobs.config.schema import Config, Training
from jobs.training.code_version import LEARNING, MEASURING, code_digest, code_files

MODULES = {  # the one list of stages that train; what comes before what follows from their `parents`
    "segmentation": "jobs.segmentation",
    "mse-codec": "jobs.mse_codec",
    "gan": "jobs.gan",
    "orp": "jobs.orp",
}
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


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage as plain functions; the worker loop (`jobs.training.loop`) knows nothing else about it."""

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
    build: Callable[[Config, Components], Nets]
    """Networks from the parents' components; fresh ones take their initial weights from the global seed."""
    step: Callable[..., dict[str, Tensor]]
    """(nets, optimizers, batch, config, step) -> losses, after one update."""
    validate: Callable[[Nets, Batch, Config], dict[str, Tensor]]
    """Sums over the batch's pictures, `count` among them; they are added over batches and workers."""
    summarise: Callable[[dict[str, Tensor]], dict[str, float]]
    """Those sums -> val/ metrics."""
    pictures: Callable[[Nets, Batch, Config, Sequence[str]], dict[str, bytes]]
    """PNG files to look at. The last argument: names of the classes 1..K."""
    phase: Callable[[Config, int], str] = lambda config, step: ""
    """(config, step) -> a name; between steps of the same name, `step` does the same with other numbers."""
    headline: str
    """The val/ metric that stands for the stage, and by which alias `best` moves."""
    higher_is_better: bool = True


def load_stage(name: str) -> Stage:
    """The stage's definition, imported by name, so that only its name travels to the workers."""
    return importlib.import_module(MODULES[name]).STAGE


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
