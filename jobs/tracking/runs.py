"""Runs in MLflow: one per pipeline, a child per stage, their parameters, tags, pictures and system metrics."""

import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egic.errors import UserError, reason
from jobs.tracking import store
from jobs.tracking.store import EXPERIMENT

if TYPE_CHECKING:
    from mlflow.entities import Run

log = logging.getLogger(__name__)
PARAM_LIMIT = 6000  # characters of a value, MLflow's limit


def start_pipeline(
    name: str, params: Mapping[str, Any], tags: Mapping[str, str], *, experiment: str = EXPERIMENT
) -> str:
    """Start the parent run of a pipeline called `name` (the preset); returns its run id.

    Raises UserError when its artifacts could not be stored.
    """
    where, tags = store.experiment_id(experiment), {"egic.kind": "pipeline", **tags}
    run = store.client().create_run(where, run_name=name, tags=tags)
    log_config(run.info.run_id, params)
    return run.info.run_id


def start_stage(
    parent_run_id: str | None,
    stage: str,
    key: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    *,
    experiment: str = EXPERIMENT,
) -> str:
    """Start the run of `stage` as a child of its pipeline's run (None: without a parent); returns its run id.

    An unfinished run of the same key, such as a killed one, is reopened and moved below the new parent, and its curves
    continue; so an interrupted stage stays one run. Raises UserError when its artifacts could not be stored.
    """
    client, where = store.client(), store.experiment_id(experiment)
    tags = {"egic.kind": "stage", "egic.stage": stage, "egic.key": key, **tags}
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    found = [run for run in runs_of(stage, key, experiment=experiment) if run.info.status != "FINISHED"]
    if found:
        run_id = found[0].info.run_id
        client.update_run(run_id, status="RUNNING")
        set_tags(run_id, tags)
        log.info("%s continues in its unfinished MLflow run %s", stage, run_id)
    else:
        run_id = client.create_run(where, run_name=stage, tags=tags).info.run_id
        log.info("%s starts in MLflow run %s", stage, run_id)
    log_config(run_id, params)
    if parent_run_id:
        set_tags(parent_run_id, {f"egic.stage.{stage}": run_id})
    return run_id


def runs_of(stage: str, key: str, *, experiment: str = EXPERIMENT) -> "list[Run]":
    """Runs of `stage` with `key`, whatever their status, newest first."""
    ids, where = [store.experiment_id(experiment)], f"tags.`egic.key` = '{key}' and tags.`egic.stage` = '{stage}'"
    return list(store.client().search_runs(ids, where, order_by=["attributes.start_time DESC"]))


def finished_runs(stage: str, *, experiment: str = EXPERIMENT) -> "list[Run]":
    """All FINISHED runs of `stage`, newest first."""
    where = f"tags.`egic.stage` = '{stage}' and attributes.status = 'FINISHED'"
    found: list[Run] = []
    token = None
    while True:  # MLflow gives a thousand at a time
        page = store.client().search_runs(
            [store.experiment_id(experiment)], where, order_by=["attributes.start_time DESC"], page_token=token
        )
        found += page
        if not (token := page.token):
            return found


def start_comparison(key: str, tags: Mapping[str, str], *, experiment: str = EXPERIMENT) -> str:
    """Reopen the run with the comparison of evaluations that has this key, or start it; returns its run id."""
    client, where = store.client(), f"tags.`egic.kind` = 'comparison' and tags.`egic.key` = '{key}'"
    tags = {"egic.kind": "comparison", "egic.key": key, **tags}
    for run in client.search_runs([store.experiment_id(experiment)], where):
        client.update_run(run.info.run_id, status="RUNNING")
        set_tags(run.info.run_id, tags)
        return run.info.run_id
    return client.create_run(store.experiment_id(experiment), run_name="comparison", tags=tags).info.run_id


def reuse_stage(parent_run_id: str, stage: str, run_id: str) -> None:
    """Record in a pipeline's run that it reuses `stage` from the finished run `run_id`."""
    set_tags(parent_run_id, {f"egic.stage.{stage}": run_id, f"egic.reused.{stage}": run_id})
    log.info("%s is finished already, in MLflow run %s", stage, run_id)


def finish(run_id: str, status: str = "FINISHED") -> None:
    """End a run with the status FINISHED, FAILED or KILLED. Only FINISHED runs are reused."""
    if status not in ("FINISHED", "FAILED", "KILLED"):
        raise ValueError(f"status must be FINISHED, FAILED or KILLED, not {status!r}")
    store.client().set_terminated(run_id, status)


_open_runs: list[str] = []


@contextmanager
def ending(run_id: str) -> Iterator[None]:
    """Context manager that ends the run: as FINISHED, KILLED when interrupted, or FAILED after any other exception."""
    _open_runs.append(run_id)
    try:
        yield
    except BaseException as error:
        try:
            finish(run_id, "KILLED" if store.interrupted.is_set() or isinstance(error, KeyboardInterrupt) else "FAILED")
        except Exception as away:  # the error itself matters more
            log.warning("run %s could not be ended in MLflow: %s", run_id, away)
        raise
    finally:
        _open_runs.remove(run_id)
    store.patiently(lambda: finish(run_id), f"run {run_id} has finished")


def interrupt() -> None:
    """Mark all runs inside `ending` as KILLED at once, while their work still ends, without waiting for a server."""
    store.interrupted.set()
    for run_id in list(_open_runs):
        try:
            finish(run_id, "KILLED")
        except Exception as away:
            log.warning("run %s could not be ended in MLflow: %s", run_id, away)


def flatten(params: Any, prefix: str = "") -> dict[str, str]:
    """Nested dataclasses and mappings as {"gan.lam": "2.0", ...}; sequences as JSON, other values by `str`."""
    if dataclasses.is_dataclass(params) and not isinstance(params, type):
        params = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    if isinstance(params, Mapping):
        flat: dict[str, str] = {}
        for name, value in params.items():
            flat |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
        return flat
    if isinstance(params, (list, tuple)):
        return {prefix: json.dumps(params, default=str)}
    return {prefix: str(params)}


def log_config(run_id: str, params: Mapping[str, Any]) -> None:
    """Log a config as parameters, and as the artifact config.json, with whole values.

    The artifact also shows that artifacts can be stored, so that a stage does not fail when it publishes its own after
    days of training. Otherwise the run ends as FAILED. Raises UserError.
    """
    client = store.client()
    try:
        client.log_dict(run_id, flatten(params), "config.json")
    except Exception as error:  # each kind of artifact store raises its own errors
        finish(run_id, "FAILED")
        experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
        raise UserError(
            f"MLflow's experiment {experiment.name!r} keeps its artifacts in {experiment.artifact_location}, where "
            f"nothing can be written ({reason(error)}); choose another experiment with --experiment NAME, or another "
            "store with MLFLOW_TRACKING_URI"
        ) from error
    log_params(run_id, params)


def log_params(run_id: str, params: Mapping[str, Any] | Any) -> None:
    """Log a config (flattened). A value over MLflow's limit is cut, with a note at its end.

    MLflow can't change a parameter: when a reopened run has another value, the new one is stored as the tag
    `changed.<name>`, with a warning.
    """
    client = store.client()
    had = client.get_run(run_id).data.params
    fresh, changed = [], {}
    for name, value in flatten(params).items():
        if len(value) > PARAM_LIMIT:
            note = f" ... (cut, {len(value)} characters)"
            log.warning("parameter %s is cut in MLflow: %d characters", name, len(value))
            value = value[: PARAM_LIMIT - len(note)] + note
        if name not in had:
            fresh.append(store.mlflow().entities.Param(name, value))
        elif had[name] != value:
            changed[f"changed.{name}"] = value
            log.warning("parameter %s was %s when run %s began, now %s", name, had[name], run_id, value)
    if fresh:
        client.log_batch(run_id, params=fresh)
    set_tags(run_id, changed)


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    if tags:
        tag = store.mlflow().entities.RunTag
        store.client().log_batch(run_id, tags=[tag(name, str(value)) for name, value in tags.items()])


def log_pictures(run_id: str, step: int, pictures: Mapping[str, bytes]) -> None:
    """Store PNG bytes by name as `pictures/<name>/step_000100.png`. A failure is logged, and training continues."""
    with tempfile.TemporaryDirectory() as folder:
        for name, png in pictures.items():
            path = Path(folder, "pictures", name, f"step_{step:06d}.png")
            path.parent.mkdir(parents=True)
            path.write_bytes(png)
        try:
            store.client().log_artifacts(run_id, folder)
        except Exception as error:  # each kind of artifact store raises its own errors
            log.warning("pictures of step %d did not reach MLflow: %s", step, error)


def log_folder(run_id: str, folder: Path, metrics: Mapping[str, float]) -> None:
    """Store a folder's files in the run, and its final metrics."""
    client = store.client()
    client.log_artifacts(run_id, str(folder))
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)


def log_rows(run_id: str, rows: Iterable[Mapping[str, float]]) -> None:
    """Store rows of numbers, each with its int `step`, in one call (for training, see metric_log.py)."""
    now_ms, entity = int(time.time() * 1000), store.mlflow().entities.Metric
    values = [entity(k, float(v), now_ms, int(row["step"])) for row in rows for k, v in row.items() if k != "step"]
    store.client().log_batch(run_id, metrics=values)


def log_paths(run_id: str, paths: Iterable[Path]) -> None:
    """Store files and folders, under their own names, in the run."""
    client = store.client()
    for path in paths:
        if path.is_dir():
            client.log_artifacts(run_id, str(path), path.name)
        else:
            client.log_artifact(run_id, str(path))
