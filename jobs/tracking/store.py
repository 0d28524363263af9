"""The connection to MLflow: which store, whether it can be used, and how long to wait for it.

mlflow is imported inside a function: the import takes 3 s, and `--help` must not wait for it.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from egic.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
T = TypeVar("T")

interrupted = threading.Event()
"""Set when the program was told to stop: what then fails in its threads was killed, and did not fail by itself."""

EXPERIMENT = "egic"


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
