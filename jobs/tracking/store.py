"""The connection to MLflow: which store is used, whether it can be used, and how long to wait for it.

mlflow is imported inside a function: the import takes 3 s, and `--help` must not wait for it.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from filelock import FileLock
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential,
)

from egic.errors import UserError, one_line
from jobs.tracking import moved_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
T = TypeVar("T")

interrupted = threading.Event()
"""Set when the program is asked to stop. Exceptions in its threads after that are effects of the stop, not errors."""

EXPERIMENT = "egic"
PAUSE = wait_exponential(max=15)
"""Seconds between two attempts to reach a server that is away: 1, 2, 4, 8, 15, 15, ..."""


def mlflow() -> ModuleType:
    """The mlflow module, imported when first needed, with defaults for the settings it reads from the environment.

    What the user has set stays. Two attempts: a call to a server that is down then takes 4 s instead of 246 s.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)  # otherwise a line for each table of a new sqlite file
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    return mlflow


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or `sqlite:///<working folder>/mlflow.db`; the path of an sqlite file is made absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_quoted(Path.cwd())}/mlflow.db"
    path = sqlite_path(uri)
    return f"sqlite:///{_quoted(path)}{''.join(uri.partition('?')[1:])}" if path else uri


def shown_uri() -> str:
    """The tracking URI as messages show it: without user name and password."""
    parts = urlsplit(tracking_uri())
    return tracking_uri().replace(parts.netloc, parts.netloc.rpartition("@")[2]) if parts.netloc else tracking_uri()


def sqlite_path(uri: str) -> Path | None:
    """The absolute path, without links, of the database file that `uri` names; None for a server and other stores."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])).resolve()


def _quoted(path: Path) -> str:
    """A path as part of an sqlite URI, where SQLAlchemy decodes %XX and ends the path at a question mark."""
    return str(path).replace("%", "%25").replace("?", "%3F")


def client() -> "MlflowClient":
    """A client of the tracking store and model registry.

    Raises UserError, within seconds, when the server does not answer or is too old, or the store can't be opened.
    """
    try:
        module = mlflow()
    except ModuleNotFoundError as error:
        raise UserError(f"reading from MLflow needs the package {error.name}: pip install 'egic[train]'") from error
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        check_server(uri)
        check_abilities(uri)
    path = sqlite_path(uri)
    if path and not os.access(path if path.exists() else path.parent, os.W_OK):  # MLflow would try for 100 s
        raise UserError(f"cannot write the MLflow store {path}; set MLFLOW_TRACKING_URI to one that can be written")
    try:
        if path is None:
            return module.MlflowClient(tracking_uri=uri, registry_uri=uri)
        with _locked(path):
            if path.exists():
                moved_folder.find_artifacts(path)
            return module.MlflowClient(tracking_uri=uri, registry_uri=uri)
    except Exception as error:
        raise UserError(f"cannot open the MLflow store {shown_uri()} ({error}); set MLFLOW_TRACKING_URI") from error


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    """One process, and one thread of it, at a time: MLflow fails when two create the tables of a database at once.

    Without the lock, the block runs as well: on disks that have none, and after a minute of waiting.
    """
    lock = FileLock(database.with_name(f".{database.name}.lock"))
    try:
        lock.acquire(timeout=60)
    except OSError as error:
        log.warning("opening %s without a lock: %s", database, error)
    try:
        yield
    finally:
        lock.release()


def check_server(uri: str) -> None:
    """Raise UserError unless the server at `uri` answers in 5 s."""
    try:
        status = _get(f"{uri.rstrip('/')}/health")[0]
        reason = f"status {status}" if status >= 500 else ""
    except OSError as error:  # those of requests are OSErrors, too
        reason = type(error).__name__
    if reason:
        raise UserError(
            f"the MLflow server {shown_uri()} does not answer ({reason}); start it, or unset MLFLOW_TRACKING_URI "
            "to track into ./mlflow.db"
        )


@cache
def check_abilities(uri: str) -> None:
    """Raise UserError unless the server at `uri` is an MLflow that has logged models. Asked once per process.

    A stage publishes its artifact as a logged model, at its end: this must not fail after days of training.
    """
    client = mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)
    with requests_accepted():
        try:
            client.search_logged_models(["0"], max_results=1)
        except mlflow().MlflowException as error:
            if error.error_code == "PERMISSION_DENIED":  # for experiment 0; the one that is used may be accessible
                return
            if error.error_code != "ENDPOINT_NOT_FOUND":
                raise
            status, version = _get(f"{uri.rstrip('/')}/version")
            if status != 200:
                raise UserError(
                    f"{shown_uri()} is not the address of an MLflow server (its page /version has status {status}); "
                    "correct MLFLOW_TRACKING_URI"
                ) from error
            raise UserError(
                f"the MLflow server {shown_uri()} runs MLflow {version}, which has no logged models; update it to "
                "MLflow 3, or unset MLFLOW_TRACKING_URI to track into ./mlflow.db"
            ) from error


@contextmanager
def requests_accepted() -> Iterator[None]:
    """Raise UserError in place of MLflow's own error: for a missing login or permission, a fault of the server, and an
    answer that is not MLflow's."""
    try:
        yield
    except mlflow().MlflowException as error:
        raise UserError(
            f"MLflow at {shown_uri()} refuses a request ({one_line(error)[:300]}). If it needs a login, set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; otherwise see its log, "
            "or correct MLFLOW_TRACKING_URI"
        ) from error


def _get(url: str) -> tuple[int, str]:
    """Status and first line of a page, within 5 s, with MLflow's settings for certificates. Raises OSError."""
    import requests  # MLflow's own HTTP client

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure
    answer = requests.get(url, timeout=5, verify=verify)
    return answer.status_code, answer.text.partition("\n")[0].strip()


@requests_accepted()
def experiment_id(name: str = EXPERIMENT) -> str:
    """Id of experiment `name`, created when missing; artifacts of an sqlite store are in `mlartifacts` beside it.

    Raises UserError for a deleted experiment, and for one that this user may not use.
    """
    store, path = client(), sqlite_path(tracking_uri())
    experiment = store.get_experiment_by_name(name)
    if experiment is None:
        try:
            if path is None:
                return store.create_experiment(name)
            place = moved_folder.artifacts_beside(path).as_uri()
            return store.create_experiment(name, artifact_location=place, tags={moved_folder.BESIDE: "true"})
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


def patiently(action: Callable[[], T], what: str) -> T:
    """`action()`, repeated while the MLflow server is not reachable, for at most EGIC_MLFLOW_PATIENCE_S (300) seconds.

    Then raises UserError, whose message begins with `what` and says how to continue.
    """
    patience_s = float(os.environ.get("EGIC_MLFLOW_PATIENCE_S", "300"))

    def report(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        left_s = patience_s - (state.seconds_since_start or 0)
        log.warning("%s, but MLflow does not accept it (%s); trying again for %.0f s", what, error, left_s)

    attempts = Retrying(
        retry=retry_if_exception(lambda error: bool(_away()) or is_transient(error)),
        stop=stop_after_delay(patience_s) | stop_when_event_set(interrupted),
        wait=PAUSE, sleep=sleep_using_event(interrupted), before_sleep=report, reraise=True,
    )  # fmt: skip
    try:
        return attempts(action)
    except Exception as error:  # MLflow, requests and the artifact stores raise errors of different types
        if away := _away():
            raise UserError(f"{what}, but {away}; then give the same command again") from error
        raise


def _away() -> str:
    """Why the server cannot be reached; empty when it can be, or the store is no server."""
    uri = tracking_uri()
    try:
        if uri.startswith("http"):
            check_server(uri)
    except UserError as error:
        return str(error)
    return ""


def is_transient(error: BaseException) -> bool:
    """Whether a retry may help: the server, or the server's database, stopped answering."""
    import requests

    if not tracking_uri().startswith("http"):
        return False
    passing = getattr(error, "error_code", "") in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
    return passing or isinstance(error, (requests.RequestException, ConnectionError))
