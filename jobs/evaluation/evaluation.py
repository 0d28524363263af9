"""An evaluation: every picture is encoded to a real file and decoded, on the whole cluster with Ray Data.

The result is one row per codec, picture, quality and alpha, written to a folder and to MLflow, and reused by its key.
"""

import dataclasses
import io
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from egic.artifact import read_config
from egic.errors import UserError
from egic.metrics.measures import Measures, find_measures
from egic.report import anchors
from egic.report.evaluation_folder import slug
from egic.report.page import write_report
from jobs.config.schema import ComputeConfig, Config, EvaluateConfig
from jobs.data.shards import MANIFEST, Manifest
from jobs.evaluation import tables
from jobs.evaluation.coder import Worker
from jobs.evaluation.listing import Picture, first_readable, of_data
from jobs.evaluation.parts import Parts, Task
from jobs.storage import lease
from jobs.storage.files import Folder, Place, absolute, exists, fetched, filled, join, read, write
from jobs.tracking import model_registry, runs
from jobs.tracking.model_registry import Artifact, local_copy
from jobs.training.code_version import code_digest, code_tag
from jobs.training.stage import EVALUATE as NAME
from jobs.training.stage import sources, stage_key

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """One evaluation: which models on which pictures, and where it runs."""

    models: Mapping[str, Artifact]
    """Artifacts by label."""
    pictures: Sequence[Picture]
    evaluate: EvaluateConfig
    compute: ComputeConfig
    output: str
    experiment: str
    skipped: Sequence[Mapping[str, str]] = ()
    """Pictures that could not be opened: name and reason."""
    manifest: Manifest | None = None
    anchors: Sequence[str] = ()
    """Other codecs to compare the models with, at the sizes of their files. All are installed."""
    report: bool = False
    """Whether to write report.html as well."""


def task_of(job: EvaluationJob, measures: Measures) -> tuple[Task, dict[str, int]]:
    """The task for every picture, and the `rates` of each model by its digest."""
    codecs = {a.sha256: read_config(local_copy(a, job.output))["codec"] for a in job.models.values()}
    rates = {digest: getattr(codec, "rates", 0) for digest, codec in codecs.items()}
    task = Task(
        labels={label: a.sha256 for label, a in job.models.items()},
        qualities={digest: job.evaluate.qualities if num else (None,) for digest, num in rates.items()},
        anchors=job.anchors,
        patches=measures.patches,
    )
    return task, rates


def code_pictures(
    job: EvaluationJob, parts: Parts, task: Task, measures: Measures, shown: frozenset[str]
) -> tuple[list[dict], float]:
    """Compute the parts that are missing; returns {name, reason} of the pictures that could not be finished, and
    seconds of work per worker."""
    digests = {artifact.sha256: artifact for artifact in job.models.values()}
    with fetched(parts.folder) as folder:
        near = Parts(folder=folder)
        missing = [p for p in job.pictures if not near.is_done(task, p, p.name in shown)]
    log.info("%d pictures, %d of them to code", len(job.pictures), len(missing))
    if not missing:
        return [], 0.0
    import ray
    import ray.data

    from jobs.cluster.resources import check_shared, threads
    from jobs.cluster.start import start_ray
    from jobs.cluster.task_errors import raised_as_in_the_task

    start_ray()
    gpus, wanted = ray.cluster_resources().get("GPU", 0.0), job.compute.min_workers
    if job.compute.use_gpu and gpus < wanted:  # Ray would wait for them without a message
        raise UserError(
            f"{wanted} workers need {wanted} GPU, the cluster has {gpus:g}; lower compute.workers, or evaluate on CPUs "
            "with --compute.no-use-gpu"
        )
    first = join(job.manifest.folder, MANIFEST) if job.manifest else missing[0].path
    check_shared(job.output, first)
    files = {}
    for digest, artifact in digests.items():
        folder = local_copy(artifact, job.output)
        content = {p.name: p.read_bytes() for p in folder.iterdir() if p.stem in ("codec", "orp", "config")}
        files[digest] = ray.put(content)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.raise_original_map_exception = False, True
    compute, num = job.compute, len(missing)
    settings = {
        "num_threads": compute.threads or threads(compute, 1), "gpu": compute.use_gpu, "pictures": missing,
        "task": task, "parts": parts, "alphas": job.evaluate.alphas, "shown": shown, "manifest": job.manifest,
    }  # fmt: skip
    # from_items needs no task, so that workers may reserve all CPUs; ray.data.range would wait for one forever
    items = ray.data.from_items([{"id": n} for n in range(num)], override_num_blocks=min(num, 32 * compute.max_workers))
    dataset = items.map_batches(
        Worker, fn_constructor_args=(files, ray.put(measures)), fn_constructor_kwargs=settings, batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=compute.min_workers, max_size=compute.max_workers),
        num_cpus=compute.cpus_per_worker,
        num_gpus=1 if compute.use_gpu else None,
    )  # fmt: skip
    failed, busy_s, logged = [], 0.0, time.monotonic()
    with raised_as_in_the_task():
        for done, row in enumerate(dataset.iter_rows(), 1):
            busy_s += row["time_s"] / compute.max_workers
            if row["notes"]:
                log.warning("%s: %s", row["name"], row["notes"])
            if row["reason"]:
                failed.append({"name": row["name"], "reason": row["reason"]})
            if time.monotonic() - logged > 30 and done < num:
                logged = time.monotonic()
                log.info("%d of %d pictures", done, num)
    return failed, busy_s


def run(config: Config, artifact: Artifact, manifest: Manifest, *, parent_run: str | None = None) -> dict:
    """Evaluate an artifact on validation pictures, or reuse an earlier run with the same key."""
    return evaluate(pipeline_job(config, artifact, manifest), data=manifest.digest, parent_run=parent_run)


def pipeline_job(config: Config, artifact: Artifact, manifest: Manifest) -> EvaluationJob:
    """The evaluation of the model that a pipeline trained."""
    label = f"egic-orp/{artifact.model_version}" if artifact.model_version else short_name(artifact.uri)
    return data_job(config, {label: artifact}, manifest)


def short_name(ref: str) -> str:
    """A model's name in tables and plots: models:/egic-orp@best -> egic-orp@best, outputs/orp/ -> orp."""
    if ref.startswith("models:/"):
        return ref.removeprefix("models:/").strip("/")
    return ref.rstrip("/").rpartition("/")[2] or ref


def data_job(config: Config, models: Mapping[str, Artifact], manifest: Manifest) -> EvaluationJob:
    """A job on prepared validation pictures."""
    return EvaluationJob(
        models=models, pictures=of_data(manifest, config.evaluate.max_pictures), evaluate=config.evaluate,
        compute=config.compute, output=config.output, experiment=config.experiment, manifest=manifest,
    )  # fmt: skip


def ingredients(job: EvaluationJob, measures: Measures, data: str) -> dict:
    """Everything that the results depend on, for the key. data: digest of the pictures."""
    config = dataclasses.asdict(job.evaluate) | {"metrics": measures.names, "weights": measures.sources}
    facts = {"stage": NAME, "config": config, "code": code_digest(sources(NAME)), "data": data}
    facts |= {"parents": {label: a.sha256 for label, a in job.models.items()}}
    return facts | {"skipped": [s["name"] for s in job.skipped], "anchors": job.anchors, "report": job.report}


def evaluate(job: EvaluationJob, *, data: str, parent_run: str | None = None) -> dict:
    """Evaluate, or reuse an earlier run with the same key. data: digest of the pictures.

    Writes rows.parquet, sets.json, skipped.json, pictures/, sheet.png and summary.json to <output>/evaluate/<key>/ and
    logs them; returns the summary with `folder`, `run_id` and `reused`. A picture on which one model fails is left out
    for all models, so that their means are comparable. Raises UserError when no picture is left.
    """
    measures = find_measures(job.evaluate.metrics, job.evaluate.weights)
    facts = ingredients(job, measures, data)
    key = stage_key(facts)
    output = absolute(job.output)
    folder = join(output, NAME, key)
    with lease.held(Folder(join(output, NAME, "locks", key)), NAME):
        found = reused(job, key, folder, parent_run) or measure(job, measures, facts, folder, parent_run)
    if parent_run:  # the parent's curves can be compared in MLflow's list of runs, which folds stages
        runs.log_rows(parent_run, curve_of(folder))
    return found


def curve_of(folder: Place) -> list[dict]:
    """The evaluation's curve as rows for MLflow."""
    return tables.curve_rows(json.loads(read(join(folder, "sets.json"))))


def reused(job: EvaluationJob, key: str, folder: str, parent_run: str | None) -> dict | None:
    """The summary of a finished evaluation with this key, or None."""
    done = [r for r in runs.runs_of(NAME, key, experiment=job.experiment) if r.info.status == "FINISHED"]
    if done and exists(join(folder, "summary.json")):
        if parent_run:
            runs.reuse_stage(parent_run, NAME, done[0].info.run_id)
        found = json.loads(read(join(folder, "summary.json")))
        return found | {"folder": folder, "run_id": done[0].info.run_id, "reused": True}
    return None


def measure(job: EvaluationJob, measures: Measures, facts: dict, folder: str, parent_run: str | None) -> dict:
    """Compute what is missing and write everything to `folder`; returns the summary."""
    key, output = stage_key(facts), absolute(job.output)
    content = {"alphas": job.evaluate.alphas, "measures": measures.names, "sources": measures.sources}
    parts_key = stage_key(content | {"code": facts["code"]})
    parts = Parts(folder=join(output, NAME, "parts", parts_key))
    params = facts | {"parents": {slug(k): sha256 for k, sha256 in facts["parents"].items()}}  # no @ in names
    run_id = runs.start_stage(parent_run, NAME, key, params, code_tag(sources(NAME)), experiment=job.experiment)
    with runs.ending(run_id), filled(folder, last="summary.json") as here:
        parents = {"model" if len(job.models) == 1 else slug(k): a for k, a in job.models.items()}
        model_registry.log_parents(run_id, parents)
        start = time.perf_counter()
        found = write_results(job, here, parts, measures)
        found["time_s"] = time.perf_counter() - start
        if job.report:
            write_report(here)
        write(here / "summary.json", (json.dumps(found, indent=2) + "\n").encode())
        runs.log_folder(run_id, here, {f"val/{k}": v for k, v in found.items()})
        runs.log_rows(run_id, curve_of(here))
    return found | {"folder": folder, "run_id": run_id, "reused": False}


def write_results(job: EvaluationJob, folder: Path, parts: Parts, measures: Measures) -> dict[str, float]:
    """Code what is missing and write the tables and pictures; returns the summary."""
    candidates = first_readable(job.pictures, job.evaluate.shown, job.manifest)
    task, rates = task_of(job, measures)
    failed, busy_s = code_pictures(job, parts, task, measures, frozenset(p.name for p in candidates))
    skipped = sorted([*map(dict, job.skipped), *failed], key=lambda s: s["name"])
    for each in skipped:
        log.warning("%s is left out: %s", each["name"], each["reason"])
    names = {s["name"] for s in skipped}
    listed = [p for p in job.pictures if p.name not in names]
    if not listed:
        raise UserError(f"no picture could be evaluated; the first, {skipped[0]['name']}: {skipped[0]['reason']}")
    with fetched(parts.folder) as near:
        parts = Parts(folder=near)
        found = tables.rows(parts, task, rates, anchors.find(task.anchors)[0], listed)
        sets = tables.sets(found, parts, listed, measures.names)
        shown = [p for p in candidates if p.name not in names]
        tables.write_shown(folder, found, shown, [p.read(job.manifest) for p in shown])
    rows = [row for row, _ in found]
    pq.write_table(pa.Table.from_pylist(rows, schema=tables.SCHEMA), file := io.BytesIO())
    write(folder / "rows.parquet", file.getvalue())
    write(folder / "sets.json", (json.dumps(sets, indent=2) + "\n").encode())
    write(folder / "skipped.json", (json.dumps(skipped, indent=2) + "\n").encode())
    return tables.summarise(sets, rows) | {"busy_s": busy_s}
