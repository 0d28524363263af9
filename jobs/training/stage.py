"""What a stage is, and its key: the same key means the same result, so a finished stage is never run twice."""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from egic import artifact
from egic.metrics.perceptual import LPIPS
from egic.training.steps import Batch, Nets
from jobs.config.schema import Config, Training

MODULES = {
    "segmentation": "jobs.segmentation",
    "mse-codec": "jobs.mse_codec",
    "gan": "jobs.gan",
    "orp": "jobs.orp",
}
EVALUATE = "evaluate"
CODE_TAG = "egic.code"

# What decides a result, beside the stage's own module: a change anywhere here retrains.
CODE = (
    "egic/metrics/perceptual.py", "egic/networks/attention.py", "egic/networks/charm.py", "egic/networks/codec.py",
    "egic/networks/discriminator.py", "egic/networks/entropy.py", "egic/networks/linear.py", "egic/networks/orp.py",
    "egic/networks/swin.py", "egic/networks/tiled_inference.py", "egic/networks/transforms.py",
    "egic/training/crops.py", "egic/training/losses.py", "egic/training/steps.py", "jobs/config/schema.py",
    "jobs/data/shards.py", "jobs/data/stream.py", "jobs/training/cuda_graphs.py", "jobs/training/loop.py",
)  # fmt: skip
# What evaluation reads on top: everything that turns a picture into a file and back.
CODE_OF_FILES = (
    "egic/coding/bitstream.py", "egic/coding/frequency_tables.py", "egic/coding/latent_coder.py",
    "egic/coding/range_coder.py", "egic/coding/robust_rounding.py", "egic/metrics/distortion.py",
    "egic/metrics/fid_kid.py", "egic/metrics/pretrained.py", "egic/metrics/quality.py", "egic/model.py",
    "egic/pictures.py", "jobs/evaluate.py", "jobs/evaluation/parts.py", "jobs/evaluation/tables.py",
)  # fmt: skip


class Components(artifact.Components, total=False):
    """What a stage starts from: networks of its parents' artifacts, and LPIPS."""

    lpips: LPIPS


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


def means(sums: dict[str, Tensor]) -> dict[str, float]:
    """Every sum divided by `count`."""
    count = sums["count"].item()
    return {name: value.item() / count for name, value in sums.items() if name != "count"}


def code_files(stage: str) -> dict[str, str]:
    """The sources that decide what a stage learns, each with its sha256 (hex)."""
    root = Path(__file__).resolve().parents[2]
    own = CODE_OF_FILES if stage == EVALUATE else (MODULES[stage].replace(".", "/") + ".py",)
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in (*CODE, *own)}


def code_digest(stage: str) -> str:
    """sha256 (hex) over those sources."""
    total = hashlib.sha256()
    for name, digest in code_files(stage).items():
        total.update(f"{name} {digest}\n".encode())
    return total.hexdigest()


def code_tag(stage: str) -> dict[str, str]:
    """The sources as a tag of the stage's run, by which `--status` tells which of them changed since."""
    return {CODE_TAG: json.dumps({name: digest[:12] for name, digest in code_files(stage).items()})}


def ingredients(stage: Stage, config: Config, *, parents: Mapping[str, str], data: str, lpips: str) -> dict[str, Any]:
    """Everything that the stage's result depends on: settings, code, parents' digests, data digest, LPIPS backbone."""
    every = dataclasses.asdict(config)
    settings = {name: every[name] for name in stage.reads}
    return {
        "stage": stage.name,
        "config": settings,
        "code": code_digest(stage.name),
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
