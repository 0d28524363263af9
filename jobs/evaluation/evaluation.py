"""An evaluation: every picture goes through a real file and back, spread over the cluster by Ray Data.

One row per picture and alpha. The results are written to a folder, logged to MLflow, and reused by their key.
"""

import dataclasses
import io
import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from egic.errors import UserError
from egic.metrics import fid_kid, quality
from egic.report import matched_rates
from egic.report.page import write_report
from jobs.config.schema import ComputeConfig, Config, EvaluateConfig
from jobs.data.shards import MANIFEST, Manifest
from jobs.evaluation import tables
from jobs.evaluation.measures import Measures, find_measures
from jobs.evaluation.parts import Coder, Parts, Picture, first_readable, of_data
from jobs.storage import lease
from jobs.storage.files import Folder, Place, absolute, exists, fetched, filled, join, read, write
from jobs.tracking import model_registry, runs
from jobs.tracking.model_registry import Artifact, local_copy
from jobs.training.code_version import code_digest, code_tag
from jobs.training.stage import EVALUATE as NAME
from jobs.training.stage import sources, stage_key

if TYPE_CHECKING:
    import ray  # takes seconds to import: not to print a configuration

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """One evaluation: which models on which pictures, and where it runs."""

    models: Mapping[str, Artifact]
    """By label."""
    pictures: Sequence[Picture]
    evaluate: EvaluateConfig
    compute: ComputeConfig
    output: str
    experiment: str
    skipped: Sequence[Mapping[str, str]] = ()
    """Pictures that could not even be opened."""
    manifest: Manifest | None = None
    anchors: Sequence[str] = ()
    """Other codecs to put beside the models, at their rates."""
    report: bool = False
    """Whether to write report.html, too."""


class Worker:
    """A `Coder` in one process of the cluster."""

    def __init__(
        self, files: Mapping[str, "ray.ObjectRef"], states: "ray.ObjectRef", num_threads: int, gpu: bool, **coder
    ):  # fmt: skip
        import ray
        import torch

        from egic.model import load

        torch.set_num_threads(num_threads)
        device, measured, models = "cuda" if gpu else "cpu", coder.pop("names"), {}
        for digest, ref in files.items():
            with tempfile.TemporaryDirectory() as folder:
                for name, content in ray.get(ref).items():
                    Path(folder, name).write_bytes(content)
                models[digest] = load(folder, device)
        given = ray.get(states)
        features = (
            fid_kid.Features(given[fid_kid.NETWORK], device) if any(n in measured for n in fid_kid.NAMES) else None
        )
        measures = quality.Quality([n for n in quality.NAMES if n in measured], given, device)
        self.pictures = coder.pop("pictures")
        self.coder = Coder(models=models, quality=measures, features=features, **coder)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        chosen, began = [self.pictures[int(i)] for i in batch["id"]], time.perf_counter()
        reasons = [self.coder(p) for p in chosen]
        return {"name": [p.name for p in chosen], "reason": reasons, "time_s": [time.perf_counter() - began]}


def code_pictures(
    job: EvaluationJob, parts: Parts, measures: Measures, shown: frozenset[str]
) -> tuple[list[dict], float]:
    """Make the parts that are missing; returns {name, reason} of the pictures that could not be finished, and seconds
    of work per worker."""
    digests = {artifact.sha256: artifact for artifact in job.models.values()}
    with fetched(parts.folder) as folder:
        near = Parts(folder=folder)
        missing = [p for p in job.pictures if not all(near.is_done(d, p, p.name in shown) for d in digests)]
    log.info("%d pictures, %d of them to code", len(job.pictures), len(missing))
    if not missing:
        return [], 0.0
    import ray
    import ray.data

    from jobs.cluster.start import check_shared, start_ray, threads

    start_ray()
    first = join(job.manifest.folder, MANIFEST) if job.manifest else missing[0].path
    check_shared(job.output, first)
    files = {}
    for digest, artifact in digests.items():
        folder = local_copy(artifact, job.output)
        content = {p.name: p.read_bytes() for p in folder.iterdir() if p.stem in ("codec", "orp", "config")}
        files[digest] = ray.put(content)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    compute, num = job.compute, len(missing)
    settings = {
        "num_threads": compute.threads or threads(compute, 1), "gpu": compute.use_gpu, "names": measures.names,
        "pictures": missing, "parts": parts, "alphas": job.evaluate.alphas, "shown": shown, "manifest": job.manifest,
    }  # fmt: skip
    dataset = ray.data.range(num, override_num_blocks=max(1, min(num, 32 * compute.max_workers))).map_batches(
        Worker, fn_constructor_args=(files, ray.put(measures.states)), fn_constructor_kwargs=settings, batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=compute.min_workers, max_size=compute.max_workers),
        num_cpus=compute.cpus_per_worker,
        num_gpus=1 if compute.use_gpu else None,
    )  # fmt: skip
    failed, busy_s, told = [], 0.0, time.monotonic()
    for done, row in enumerate(dataset.iter_rows(), 1):
        busy_s += row["time_s"] / compute.max_workers
        if row["reason"]:
            failed.append({"name": row["name"], "reason": row["reason"]})
        if time.monotonic() - told > 30 and done < num:
            told = time.monotonic()
            log.info("%d of %d pictures", done, num)
    return failed, busy_s


def run(config: Config, artifact: Artifact, manifest: Manifest, *, parent_run: str | None = None) -> dict:
    """Evaluate an artifact on validation pictures, or take what an earlier run with the same key found."""
    return evaluate(pipeline_job(config, artifact, manifest), data=manifest.digest, parent_run=parent_run)


def pipeline_job(config: Config, artifact: Artifact, manifest: Manifest) -> EvaluationJob:
    """The job of a pipeline on what it trained."""
    label = f"models:/egic-orp/{artifact.model_version}" if artifact.model_version else artifact.uri
    return data_job(config, {label: artifact}, manifest)


def data_job(config: Config, models: Mapping[str, Artifact], manifest: Manifest) -> EvaluationJob:
    """A job on prepared validation pictures."""
    return EvaluationJob(
        models=models, pictures=of_data(manifest, config.evaluate.max_pictures), evaluate=config.evaluate,
        compute=config.compute, output=config.output, experiment=config.experiment, manifest=manifest,
    )  # fmt: skip


def ingredients(job: EvaluationJob, measures: Measures, data: str) -> dict:
    """Everything that the results depend on. data: digest of the pictures."""
    config = dataclasses.asdict(job.evaluate) | {"metrics": measures.names, "weights": measures.sources}
    facts = {"stage": NAME, "config": config, "code": code_digest(sources(NAME)), "data": data}
    facts |= {"parents": {label: a.sha256 for label, a in job.models.items()}}
    return facts | {"skipped": [s["name"] for s in job.skipped], "anchors": job.anchors, "report": job.report}


def evaluate(job: EvaluationJob, *, data: str, parent_run: str | None = None) -> dict:
    """Evaluate, or take what an earlier run with the same key found. data: digest of the pictures.

    Writes rows.parquet, sets.json, skipped.json, pictures/, sheet.png and summary.json to <output>/evaluate/<key>/ and
    logs them; returns the summary with `folder`, `run_id` and `reused`. A picture that one model fails on is left out
    of all, so that means and sets compare. Raises UserError when no picture is left.
    """
    measures = find_measures(job.evaluate)
    facts = ingredients(job, measures, data)
    key = stage_key(facts)
    output = absolute(job.output)
    folder = join(output, NAME, key)
    with lease.held(Folder(folder), NAME):
        found = reused(job, key, folder, parent_run) or measure(job, measures, facts, folder, parent_run)
    if parent_run:  # MLflow's list shows pipelines and hides their stages: their curves are to be compared there
        runs.log_rows(parent_run, curve_of(folder))
    return found


def curve_of(folder: Place) -> list[dict]:
    """The evaluation's curve as rows for MLflow."""
    return tables.curve_rows(json.loads(read(join(folder, "sets.json"))))


def reused(job: EvaluationJob, key: str, folder: str, parent_run: str | None) -> dict | None:
    """What a finished evaluation with this key found."""
    done = [r for r in runs.runs_of(NAME, key, experiment=job.experiment) if r.info.status == "FINISHED"]
    if done and exists(join(folder, "summary.json")):
        if parent_run:
            runs.reuse_stage(parent_run, NAME, done[0].info.run_id)
        found = json.loads(read(join(folder, "summary.json")))
        return found | {"folder": folder, "run_id": done[0].info.run_id, "reused": True}
    return None


def measure(job: EvaluationJob, measures: Measures, facts: dict, folder: str, parent_run: str | None) -> dict:
    """Measure what is missing and write everything to `folder`; returns the summary."""
    key, output = stage_key(facts), absolute(job.output)
    content = {"alphas": job.evaluate.alphas, "measures": measures.names, "sources": measures.sources}
    parts_key = stage_key(content | {"code": facts["code"]})
    parts = Parts(folder=join(output, NAME, "parts", parts_key))
    params = facts | {"parents": {tables.slug(k): sha256 for k, sha256 in facts["parents"].items()}}  # no @ in names
    run_id = runs.start_stage(parent_run, NAME, key, params, code_tag(sources(NAME)), experiment=job.experiment)
    with runs.ending(run_id), filled(folder, last="summary.json") as here:
        parents = {"model" if len(job.models) == 1 else tables.slug(k): a for k, a in job.models.items()}
        model_registry.log_parents(run_id, parents)
        start = time.perf_counter()
        found = write_results(job, here, parts, measures)
        found["time_s"] = time.perf_counter() - start
        if job.anchors:
            add_anchors(job, here, measures)
        if job.report:
            write_report(here)
        write(here / "summary.json", (json.dumps(found, indent=2) + "\n").encode())
        runs.log_folder(run_id, here, {f"val/{k}": v for k, v in found.items()})
        runs.log_rows(run_id, curve_of(here))
    return found | {"folder": folder, "run_id": run_id, "reused": False}


def write_results(job: EvaluationJob, folder: Path, parts: Parts, measures: Measures) -> dict[str, float]:
    """Code what is missing and write the tables and pictures; returns the summary."""
    candidates = first_readable(job.pictures, job.evaluate.shown, job.manifest)
    failed, busy_s = code_pictures(job, parts, measures, frozenset(p.name for p in candidates))
    skipped = sorted([*map(dict, job.skipped), *failed], key=lambda s: s["name"])
    for each in skipped:
        log.warning("%s is left out: %s", each["name"], each["reason"])
    names = {s["name"] for s in skipped}
    listed = [p for p in job.pictures if p.name not in names]
    if not listed:
        raise UserError(f"no picture could be evaluated; the first, {skipped[0]['name']}: {skipped[0]['reason']}")
    with fetched(parts.folder) as near:
        parts = Parts(folder=near)
        table = tables.rows_table(parts, {label: a.sha256 for label, a in job.models.items()}, listed)
        found = tables.set_rows(table, parts, listed, measures.names)
        shown = [p for p in candidates if p.name not in names]
        tables.write_shown(folder, table, parts, shown, [p.read(job.manifest) for p in shown])
    pq.write_table(table, file := io.BytesIO())
    write(folder / "rows.parquet", file.getvalue())
    write(folder / "sets.json", (json.dumps(found, indent=2) + "\n").encode())
    write(folder / "skipped.json", (json.dumps(skipped, indent=2) + "\n").encode())
    return tables.summarise(table, found) | {"busy_s": busy_s}


def add_anchors(job: EvaluationJob, folder: Path, measures: Measures) -> None:
    """Rows of other codecs at the models' rates, made here: they take CPUs, and no network but the measures'."""
    by_name = {p.name: p for p in job.pictures}
    measure = quality.Quality([n for n in quality.NAMES if n in measures.names], measures.states)
    matched_rates.add(folder, lambda name: by_name[name].read(job.manifest), job.anchors, measure, told=log.info)
