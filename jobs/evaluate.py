"""Stage: encode every picture to a real file and decode it; one row per picture, quality and alpha.

In a pipeline it uses the prepared validation pictures. Alone it compares models on any folders of pictures:

    python -m jobs.evaluate workstation --model models:/egic-orp@best --images /data/kodak --alphas 0,0.5,1
    egic evaluate --model models:/egic-orp@best --images /data/kodak
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from egic.artifact import read_config
from egic.errors import UserError, quiet, run_main
from egic.report import anchors
from egic.report.evaluation_folder import slug
from egic.report.matched_rates import installed
from egic.shipped import shipped_model
from jobs.config import command_line
from jobs.config.flags import option_names, parse_config
from jobs.config.schema import ComputeConfig, Config, EvaluateConfig
from jobs.data.datasets import open_data
from jobs.evaluation import tables
from jobs.evaluation.evaluation import EvaluationJob, data_job, evaluate, short_name
from jobs.evaluation.listing import of_folders
from jobs.storage.files import check, check_spelling, join, read
from jobs.tracking import model_registry, runs
from jobs.tracking.model_registry import local_copy

T = TypeVar("T", int, float)

SHORT = {"psnr": "psnr_db", "fid": "fid256", "kid": "kid256"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    model: tuple[str, ...] = ()
    """Models to compare: folders, models:/egic-orp@best, models:/name/3 or runs:/ID. Tables and plots use the last part
    as name, or one that you give: --model mine=outputs/orp theirs=models:/egic-orp@best. Default: the model of the
    package."""
    images: tuple[str, ...] = ()
    """Folders with pictures, or picture files, on storage that every node reaches."""
    alphas: str = ""
    """Realism of the decoded pictures, e.g. 0,0.25,0.5,0.75,1 (default: evaluate.alphas)."""
    qualities: str = ""
    """Qualities of the files of a model with rates, e.g. 10,30,50,70,90 (default: evaluate.qualities)."""
    metrics: str = ""
    """Measures, e.g. psnr,ms_ssim,lpips_alex,lpips_vgg,dists,fid,kid,fid64,kid64 (default: evaluate.metrics)."""
    weights: str = ""
    """Folder with weights of the measures' networks (default: $EGIC_WEIGHTS, else downloaded)."""
    shown: int = -1
    """Pictures whose decoded versions are kept (default: evaluate.shown)."""
    anchors: str = ""
    """Other codecs at the sizes of the models' files: jpeg,webp,avif,jxl,bpg,vtm. Those that are not installed are
    left out with a warning."""

    def applied(self, config: EvaluateConfig) -> EvaluateConfig:
        """`config` with the values of these options. Raises UserError."""
        names = tuple(SHORT.get(name, name) for name in listed(self.metrics))
        return replace(
            config, alphas=numbers("alphas", self.alphas, float) or config.alphas,
            qualities=numbers("qualities", self.qualities, int) or config.qualities,
            metrics=names or config.metrics, weights=self.weights or config.weights,
            shown=config.shown if self.shown < 0 else self.shown,
        )  # fmt: skip


def listed(text: str) -> list[str]:
    """The parts of a list such as "jpeg,webp"."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(option: str, text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    """The sorted numbers of a list such as "0,0.5,1". Raises UserError for anything else."""
    try:
        return tuple(sorted(map(kind, listed(text))))
    except ValueError as error:
        example = "10,50,90" if kind is int else "0,0.5,1"
        raise UserError(f"--{option} {text} is not a list of numbers such as {example}") from error


def named_models(refs: Sequence[str]) -> dict[str, str]:
    """Models by the names they have in tables, from NAME=REF or REF.

    Raises UserError for two of one name, and for the name of another codec.
    """
    models: dict[str, str] = {}
    codecs = {slug(label) for label in anchors.LABELS.values()}
    for ref in refs:
        name, separator, rest = ref.partition("=")
        if not separator or "/" in name or Path(ref).exists():  # a path may contain a =
            name, rest = short_name(ref), ref
        if slug(name) in codecs:
            raise UserError(
                f"a model cannot be called {name}, as a codec is: --model another={rest} gives another name"
            )
        if slug(name) in map(slug, models):
            raise UserError(f"two models are called {name}: give them names, --model first={rest} second=...")
        models[name] = rest
    return models


@dataclass(frozen=True, kw_only=True)
class AloneConfig(Options, Config):
    """A preset's configuration, and the models to evaluate."""


@dataclass(frozen=True, kw_only=True)
class FoldersConfig(Options):
    """Compare models on folders of pictures: every picture is written to a file, decoded from it, and measured."""

    output: str = "outputs"
    """Results go to <output>/evaluate/; on a cluster, storage that every node reaches, such as s3://bucket/folder."""
    experiment: str = "egic"
    """MLflow experiment."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)


def main(argv: list[str] | None = None) -> None:
    """`python -m jobs.evaluate PRESET --model REF ... [--images FOLDER ... | --data FOLDER]`."""
    quiet("jobs")
    raise SystemExit(
        run_main(lambda: run_alone(command_line.read(AloneConfig, argv, prog="python -m jobs.evaluate").config))
    )


def options() -> list[str]:
    """The options of `egic evaluate`."""
    return option_names(FoldersConfig())


def evaluate_folders(argv: Sequence[str]) -> None:
    """`egic evaluate --model REF ... --images FOLDER ...`. Raises UserError."""
    quiet("jobs")
    config = parse_config(FoldersConfig, argv, prog="egic evaluate")
    if not config.images:
        raise UserError("no pictures to evaluate on; give --images FOLDER")
    run_alone(config)


def run_alone(config: AloneConfig | FoldersConfig) -> None:
    """Evaluate `config.model`, and print the table, the pictures left out, and the path of the rows."""
    from jobs.cluster.shutdown import interruptible

    check_spelling("output", config.output)
    refs = named_models(config.model or (f"small={shipped_model()}",))
    settings, output = config.applied(config.evaluate), config.output
    check(output, writable=True)
    models = {name: model_registry.resolve(ref) for name, ref in refs.items()}
    for name, artifact in models.items():
        if "codec" not in read_config(local_copy(artifact, output)):
            raise UserError(f"--model {refs[name]} has no codec; name an MSE-codec, GAN or ORP model")
    if config.images:
        pictures, skipped = of_folders(config.images, output)
        data = hashlib.sha256(json.dumps([(p.name, p.digest) for p in pictures]).encode()).hexdigest()
        job = EvaluationJob(
            models=models, pictures=pictures, skipped=skipped, evaluate=settings, compute=config.compute,
            output=output, experiment=config.experiment,
        )  # fmt: skip
    else:
        assert isinstance(config, AloneConfig)  # `egic evaluate` asks for pictures
        manifest = open_data(config.data, output)["val"]
        job, data = data_job(replace(config, evaluate=settings), models, manifest), manifest.digest
    codecs = installed(listed(config.anchors))  # an unknown name is an error now, not after hours
    job = replace(job, anchors=[each.codec for each in codecs], report=True)
    with interruptible(at_stop=runs.interrupt, after="the same command measures what is missing"):
        found = evaluate(job, data=data)
    folder = found["folder"]
    print(tables.text(json.loads(read(join(folder, "sets.json")))))
    for each in json.loads(read(join(folder, "skipped.json"))):
        print(f"left out: {each['name']}: {each['reason']}")
    print(f"{'reused, ' if found['reused'] else ''}MLflow run {found['run_id']}")
    print(join(folder, "report.html"))


if __name__ == "__main__":
    main()
