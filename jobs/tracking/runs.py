"""MLflow: the store, one parent run per pipeline and a child per stage, parameters, pictures, system metrics.

The only file that imports mlflow, and that inside a function: the import takes 3 s, and `--help` must not wait for it.
Curves are in jobs/tracking/metric_log.py, artifacts and the model registry in jobs/registry.py.
"""

import dataclasses
import fcntl
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from egic.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)
T = TypeVar("T")

interrupted = threading.Event()
"""Set when the program was told to stop: what then fails in its threads was killed, and did not fail by itself."""

EXPERIMENT = "egic"
PARAM_LIMIT = 6000  # characters of a value, MLflow's limit


def mlflow() -> ModuleType:
    """The mlflow module, imported when first needed, with the settings it reads from the environment.

    What the user has set stays. Two tries: a server that is down costs 4 s per call instead of the default's 246 s.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)  # a line per table when the sqlite file is made
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    return mlflow


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or `sqlite:///<working folder>/mlflow.db`; the path of an sqlite file is made absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = sqlite_path(uri)
    return f"sqlite:///{path}" if path else uri


def shown_uri() -> str:
    """The tracking URI as messages show it: without user name and password."""
    parts = urlsplit(tracking_uri())
    return tracking_uri().replace(parts.netloc, parts.netloc.rpartition("@")[2]) if parts.netloc else tracking_uri()


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of the database file that `uri` names; None for a server and other stores."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def client() -> "MlflowClient":
    """A client of the tracking store and model registry.

    Raises UserError, within seconds, when the server does not answer or the store can't be opened.
    """
    try:
        module = mlflow()
    except ModuleNotFoundError as error:
        raise UserError(f"what MLflow holds needs the package {error.name}: pip install 'egic[train]'") from error
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        check_server(uri)
    path = sqlite_path(uri)
    if path and not os.access(path if path.exists() else path.parent, os.W_OK):  # MLflow would try for 100 s
        raise UserError(f"cannot write the MLflow store {path}; set MLFLOW_TRACKING_URI to one that can be written")
    try:
        with _alone(path.parent) if path else nullcontext():
            return module.MlflowClient(tracking_uri=uri, registry_uri=uri)
    except Exception as error:
        raise UserError(f"cannot open the MLflow store {shown_uri()} ({error}); set MLFLOW_TRACKING_URI") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process, and one thread of it, at a time: two that made a database at once would stumble over its tables."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def check_server(uri: str) -> None:
    """Raise UserError unless the server at `uri` answers in 5 s."""
    import requests  # MLflow's own HTTP client

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure
    try:
        status = requests.get(uri.rstrip("/") + "/health", timeout=5, verify=verify).status_code
        reason = f"status {status}" if status >= 500 else ""
    except (requests.RequestException, OSError) as error:
        reason = type(error).__name__
    if reason:
        raise UserError(
            f"the MLflow server {shown_uri()} does not answer ({reason}); start it, or unset MLFLOW_TRACKING_URI "
            "to track into ./mlflow.db"
        )


def experiment_id(name: str = EXPERIMENT) -> str:
    """Id of experiment `name`, made when missing. With an sqlite store its artifacts lie in `mlartifacts` beside it."""
    store, path = client(), sqlite_path(tracking_uri())
    experiment = store.get_experiment_by_name(name)
    if experiment is None:
        try:
            return store.create_experiment(name, artifact_location=str(path.parent / "mlartifacts") if path else None)
        except mlflow().MlflowException:  # another process was first
            experiment = store.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"experiment {name!r} is deleted in MLflow; choose another name or restore it: "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    return experiment.experiment_id


def start_pipeline(
    name: str, params: Mapping[str, Any], tags: Mapping[str, str], *, experiment: str = EXPERIMENT
) -> str:
    """Start the parent run of a pipeline called `name` (the preset); returns its run id."""
    run = client().create_run(experiment_id(experiment), run_name=name, tags={"egic.kind": "pipeline", **tags})
    log_params(run.info.run_id, params)
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
    """Start the run of `stage` below its pipeline (None: alone); returns its run id.

    An unfinished run of the same key (a killed one, say) is opened again, moved below the new parent, and its curves go
    on; so a stage that was interrupted is one run.
    """
    store, where = client(), experiment_id(experiment)
    tags = {"egic.kind": "stage", "egic.stage": stage, "egic.key": key, **tags}
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    found = [run for run in runs_of(stage, key, experiment=experiment) if run.info.status != "FINISHED"]
    if found:
        run_id = found[0].info.run_id
        store.update_run(run_id, status="RUNNING")
        set_tags(run_id, tags)
        log.info("%s: its unfinished MLflow run %s goes on", stage, run_id)
    else:
        run_id = store.create_run(where, run_name=stage, tags=tags).info.run_id
        log.info("%s starts in MLflow run %s", stage, run_id)
    log_params(run_id, params)
    if parent_run_id:
        set_tags(parent_run_id, {f"egic.stage.{stage}": run_id})
    return run_id


def runs_of(stage: str, key: str, *, experiment: str = EXPERIMENT) -> "list[Run]":
    """Runs of `stage` with `key`, whatever their status, newest first."""
    where = f"tags.`egic.key` = '{key}' and tags.`egic.stage` = '{stage}'"
    return list(client().search_runs([experiment_id(experiment)], where, order_by=["attributes.start_time DESC"]))


def finished_runs(stage: str, *, experiment: str = EXPERIMENT) -> "list[Run]":
    """All FINISHED runs of `stage`, newest first."""
    where = f"tags.`egic.stage` = '{stage}' and attributes.status = 'FINISHED'"
    found: list[Run] = []
    token = None
    while True:  # MLflow gives a thousand at a time
        page = client().search_runs(
            [experiment_id(experiment)], where, order_by=["attributes.start_time DESC"], page_token=token
        )
        found += page
        if not (token := page.token):
            return found


def start_comparison(key: str, tags: Mapping[str, str], *, experiment: str = EXPERIMENT) -> str:
    """Open the run that holds the comparison of evaluations with this key again, or start it; returns its run id."""
    store, where = client(), f"tags.`egic.kind` = 'comparison' and tags.`egic.key` = '{key}'"
    tags = {"egic.kind": "comparison", "egic.key": key, **tags}
    for run in store.search_runs([experiment_id(experiment)], where):
        store.update_run(run.info.run_id, status="RUNNING")
        set_tags(run.info.run_id, tags)
        return run.info.run_id
    return store.create_run(experiment_id(experiment), run_name="comparison", tags=tags).info.run_id


def reuse_stage(parent_run_id: str, stage: str, run_id: str) -> None:
    """Say on a pipeline's run that it took `stage` from the finished run `run_id`."""
    set_tags(parent_run_id, {f"egic.stage.{stage}": run_id, f"egic.reused.{stage}": run_id})
    log.info("%s is finished already, in MLflow run %s", stage, run_id)


def finish(run_id: str, status: str = "FINISHED") -> None:
    """End a run as FINISHED, FAILED or KILLED. Only a FINISHED one is reused."""
    if status not in ("FINISHED", "FAILED", "KILLED"):
        raise ValueError(f"status must be FINISHED, FAILED or KILLED, not {status!r}")
    client().set_terminated(run_id, status)


_open_runs: list[str] = []


@contextmanager
def ending(run_id: str) -> Iterator[None]:
    """End the run with the block: FINISHED, KILLED when interrupted, FAILED with anything else that is raised."""
    _open_runs.append(run_id)
    try:
        yield
    except BaseException as error:
        try:
            finish(run_id, "KILLED" if interrupted.is_set() or isinstance(error, KeyboardInterrupt) else "FAILED")
        except Exception as away:  # the error itself matters more
            log.warning("run %s could not be ended in MLflow: %s", run_id, away)
        raise
    finally:
        _open_runs.remove(run_id)
    patiently(lambda: finish(run_id), f"run {run_id} has finished")


def kill_open_runs() -> None:
    """Mark the runs that `ending` has open as KILLED, before what they do has ended."""
    for run_id in list(_open_runs):
        try:
            finish(run_id, "KILLED")
        except Exception as away:
            log.warning("run %s could not be ended in MLflow: %s", run_id, away)


def patiently(action: Callable[[], T], what: str) -> T:
    """`action()`, tried again while the MLflow server is away, for at most EGIC_MLFLOW_PATIENCE_S seconds (300).

    Raises UserError then: `what` happened, and how to go on.
    """
    deadline, pause_s = time.monotonic() + float(os.environ.get("EGIC_MLFLOW_PATIENCE_S", "300")), 1.0
    while True:
        try:
            return action()
        except Exception as error:  # MLflow, requests and the artifact stores each have their own
            if not tracking_uri().startswith("http"):
                raise
            try:
                check_server(tracking_uri())
            except UserError as away:
                if time.monotonic() > deadline or interrupted.is_set():
                    raise UserError(f"{what}, but {away}; then give the same command again") from error
                log.warning("%s; trying again for %.0f s", away, deadline - time.monotonic())
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 15.0)
            else:
                if time.monotonic() > deadline or not is_transient(error):
                    raise
                time.sleep(pause_s)


def is_transient(error: Exception) -> bool:
    """Whether trying again may help: a server that stopped answering, or one whose database did."""
    import requests

    passing = getattr(error, "error_code", "") in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
    return passing or isinstance(error, (requests.RequestException, ConnectionError))


def flatten(params: Any, prefix: str = "") -> dict[str, str]:
    """Nested dataclasses and mappings as {"gan.lam": "2.0", ...}; sequences as JSON, anything else as `str` has it."""
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


def log_params(run_id: str, params: Mapping[str, Any] | Any) -> None:
    """Log a config (flattened). A value over MLflow's limit is cut, and says so.

    MLflow can't change a parameter: where a reopened run has another value, the new one becomes the tag
    `changed.<name>` and the log says so.
    """
    store = client()
    had = store.get_run(run_id).data.params
    fresh, changed = [], {}
    for name, value in flatten(params).items():
        if len(value) > PARAM_LIMIT:
            note = f" ... (cut, {len(value)} characters)"
            log.warning("parameter %s is cut in MLflow: %d characters", name, len(value))
            value = value[: PARAM_LIMIT - len(note)] + note
        if name not in had:
            fresh.append(mlflow().entities.Param(name, value))
        elif had[name] != value:
            changed[f"changed.{name}"] = value
            log.warning("parameter %s was %s when run %s began, now %s", name, had[name], run_id, value)
    if fresh:
        store.log_batch(run_id, params=fresh)
    set_tags(run_id, changed)


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    if tags:
        client().log_batch(run_id, tags=[mlflow().entities.RunTag(name, str(value)) for name, value in tags.items()])


def log_pictures(run_id: str, step: int, pictures: Mapping[str, bytes]) -> None:
    """Store PNG bytes by name as `pictures/<name>/step_000100.png`. A failure is logged, and training goes on."""
    with tempfile.TemporaryDirectory() as folder:
        for name, png in pictures.items():
            path = Path(folder, "pictures", name, f"step_{step:06d}.png")
            path.parent.mkdir(parents=True)
            path.write_bytes(png)
        try:
            client().log_artifacts(run_id, folder)
        except Exception as error:  # whatever transport the artifact store uses has its own exceptions
            log.warning("pictures of step %d did not reach MLflow: %s", step, error)


def log_folder(run_id: str, folder: Path, metrics: Mapping[str, float]) -> None:
    """Store a folder's files on the run, and final values beside them."""
    store = client()
    store.log_artifacts(run_id, str(folder))
    for name, value in metrics.items():
        store.log_metric(run_id, name, value)


def log_rows(run_id: str, rows: Iterable[Mapping[str, float]]) -> None:
    """Store rows of numbers, each with its int `step`, at once (metric_log.py is for those of training)."""
    now_ms, entity = int(time.time() * 1000), mlflow().entities.Metric
    values = [entity(k, float(v), now_ms, int(row["step"])) for row in rows for k, v in row.items() if k != "step"]
    client().log_batch(run_id, metrics=values)


def log_paths(run_id: str, paths: Iterable[Path]) -> None:
    """Store files, and folders under their own names, on the run."""
    store = client()
    for path in paths:
        if path.is_dir():
            store.log_artifacts(run_id, str(path), path.name)
        else:
            store.log_artifact(run_id, str(path))


@contextmanager
def system_metrics(run_id: str, *, interval_s: float = 5) -> Iterator[None]:
    """Log this machine's CPU, memory, disk, network and GPU to the run as `system/...` while the block runs."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(
        run_id, sampling_interval=interval_s, resume_logging=True, tracking_uri=tracking_uri()
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
