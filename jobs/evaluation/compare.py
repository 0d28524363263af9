"""`egic compare`: all evaluations of an MLflow experiment, in one report per set of pictures.

    egic compare --experiment egic

The runs of evaluations store their rows, means and pictures in MLflow. They are merged into an evaluation folder, for
which `egic.report.page` writes a report. Results on different pictures are not comparable and get separate reports.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from egic.errors import UserError, quiet
from egic.report import evaluation_folder
from egic.report.evaluation_folder import CODEC, Evaluation
from egic.report.page import write_report
from jobs.config.flags import option_names, parse_config
from jobs.storage import files
from jobs.tracking import runs, store
from jobs.training.stage import EVALUATE

log = logging.getLogger(__name__)

FILES = ("rows.parquet", "sets.json", "skipped.json", "pictures")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Write a report on all models that were evaluated in an MLflow experiment: plots of rate, distortion and realism,
    tables, pictures. Each set of pictures has a report of its own, with the newest evaluation of each model."""

    experiment: str = "egic"
    """MLflow experiment."""
    output: str = "outputs"
    """A local folder; reports are written to <output>/compare/, and to the experiment's runs `comparison`."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The files of a finished evaluation in MLflow."""

    run_id: str
    data: str
    """Digest of the pictures."""
    pipeline: str
    """Name of the pipeline's run; empty without a pipeline."""
    found: Evaluation

    @property
    def pictures(self) -> str:
        """An identifier of the evaluated pictures: the same for the same pictures."""
        names = sorted({row["name"] for row in self.found.rows})
        return hashlib.sha256(json.dumps([self.data, names]).encode()).hexdigest()[:12]


def options() -> list[str]:
    """The options of `egic compare`."""
    return option_names(CompareConfig())


def compare_runs(argv: Sequence[str]) -> None:
    """`egic compare [--experiment NAME]`. Raises UserError."""
    quiet("jobs")
    config = parse_config(CompareConfig, argv, prog="egic compare")
    if files.is_remote(config.output):
        raise UserError(f"--output {config.output} is no local folder; the reports are in MLflow, too")
    for path in compare(config):
        print(path)


def compare(config: CompareConfig) -> list[Path]:
    """Write a report for every set of pictures and log it to MLflow; returns their paths, the newest first.

    Raises UserError when nothing has been evaluated.
    """
    with tempfile.TemporaryDirectory(prefix="egic-compare-") as scratch:
        groups: dict[str, list[Result]] = {}
        for result in results(config.experiment, Path(scratch)):
            groups.setdefault(result.pictures, []).append(result)
        if not groups:
            raise UserError(
                f"the MLflow experiment {config.experiment!r} has no finished evaluation; run egic evaluate or the "
                "pipeline, or name another --experiment"
            )
        paths = []
        for pictures, members in groups.items():
            folder = Path(config.output).absolute() / "compare" / pictures
            labels = write_together(members, folder)
            paths.append(write_report(folder))
            publish(config.experiment, pictures, members, folder)
            names = sorted({row["name"] for row in members[0].found.rows})
            log.info("%d pictures, %s ... %s: %s", len(names), names[0], names[-1], ", ".join(labels))
        return paths


def results(experiment: str, scratch: Path) -> Iterator[Result]:
    """Finished evaluations, newest first; one whose files are missing is left out with a warning."""
    client, names = store.client(), {}
    with store.requests_accepted():
        if client.get_experiment_by_name(experiment) is None:
            return
    for run in runs.finished_runs(EVALUATE, experiment=experiment):
        folder = scratch / run.info.run_id
        folder.mkdir()
        try:
            there = {f.path for f in client.list_artifacts(run.info.run_id)}
            for name in (n for n in FILES if n in there):
                client.download_artifacts(run.info.run_id, name, str(folder))
            found = evaluation_folder.read(folder)
        except (ValueError, OSError, store.mlflow().MlflowException) as error:
            log.warning("run %s is left out: %s", run.info.run_id, error)
            continue
        parent = run.data.tags.get("mlflow.parentRunId", "")
        if parent and parent not in names:
            names[parent] = client.get_run(parent).info.run_name
        yield Result(
            run_id=run.info.run_id, data=run.data.params.get("data", ""), pipeline=names.get(parent, ""), found=found
        )


def write_together(members: Sequence[Result], folder: Path) -> list[str]:
    """Write one evaluation folder with all members, given newest first; returns its labels, the oldest first.

    It has the newest result of each model (by digest), and of each other codec.
    """
    shutil.rmtree(folder, ignore_errors=True)  # an earlier comparison's
    (folder / "pictures").mkdir(parents=True)
    rows: list[dict] = []
    sets: list[dict] = []
    seen: set[str] = set()
    taken: set[str] = set()
    for result in members:
        names = new_names(result, seen, taken)
        seen |= {identity(row) for row in result.found.rows}
        taken |= set(names.values())
        rows = renamed(result.found.rows, names) + rows
        sets = renamed(result.found.sets, names) + sets
        copy_pictures(result.found, names, folder / "pictures")
    rows.sort(key=lambda row: row["codec"] != CODEC)  # models before other codecs, as everywhere
    sets.sort(key=lambda entry: entry["codec"] != CODEC)
    evaluation_folder.write(folder, rows, sets)
    (folder / "skipped.json").write_text(json.dumps(members[0].found.skipped, indent=2) + "\n")
    return list(dict.fromkeys(row["label"] for row in rows))


def renamed(entries: Sequence[Mapping], names: Mapping[str, str]) -> list[dict]:
    """The entries whose label is in `names`, with their new labels."""
    return [{**entry, "label": names[entry["label"]]} for entry in entries if entry["label"] in names]


def identity(row: Mapping) -> str:
    """Identifier of what a row measures: a model's digest, or another codec's label."""
    return row.get("model_digest") or row["label"]


def new_names(result: Result, seen: Collection[str], taken: Collection[str]) -> dict[str, str]:
    """Labels of models and codecs not in `seen` -> their names in the comparison, which differ from those in `taken`.

    A pipeline's model has the pipeline's name as prefix. A name that another model already has (after an alias has
    moved) is extended by the run's id.
    """
    names = {}
    for row in result.found.rows:
        if row["label"] in names or identity(row) in seen:
            continue
        name = row["label"]
        if result.pipeline and row["codec"] == CODEC:
            name = f"{result.pipeline}, {name}"
        names[row["label"]] = f"{name} in run {result.run_id[:8]}" if name in taken else name
    return names


def copy_pictures(found: Evaluation, names: Mapping[str, str], place: Path) -> None:
    """Copy the decoded pictures of the codecs in `names`, with their originals."""
    for picture, (original, shown) in evaluation_folder.shown(found).items():
        folder = place / evaluation_folder.picture_folder(picture)
        for s in shown:
            if label := names.get(s.row["label"]):
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(original, folder / "original.png")
                shutil.copyfile(s.file, folder / evaluation_folder.decoded_file(label, s.row["point"]))


def publish(experiment: str, pictures: str, members: Sequence[Result], folder: Path) -> None:
    """Log the report and its plots to the experiment's run `comparison` of these pictures, created if missing."""
    tags = {"egic.compared": json.dumps([m.run_id for m in members])}
    run_id = runs.start_comparison(pictures, tags, experiment=experiment)
    with runs.ending(run_id):
        runs.log_paths(run_id, [folder / "report.html", folder / "plots"])
