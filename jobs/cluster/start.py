"""Connect to the Ray cluster that RAY_ADDRESS names, or start Ray on this machine."""

import atexit
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import joblib
import ray

from egic.errors import UserError
from jobs.cluster import ray_internals
from jobs.cluster.shutdown import end_ray

log = logging.getLogger(__name__)

BUSY = "Ray did not start on this machine"
CONNECT_S = 10.0
"""Time limit for a connection to the cluster's address."""
ANSWER_S = 25.0
"""Time limit for the cluster's answer."""
MAX_SOCKET = 107
"""Largest length of a Unix socket's path, in bytes."""
RAY_SOCKETS = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store") + 2
"""Bytes that Ray appends to the temporary folder's path."""


def start_ray() -> None:
    """Connect to the cluster that RAY_ADDRESS names (`ray job submit` sets it), else start Ray on this machine.

    Without RAY_ADDRESS, a Ray that already runs on this machine is not joined. Raises UserError.
    """
    if ray.is_initialized():
        return
    root = str(Path(__file__).resolve().parents[2])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *(p for p in paths if p and p != root)])
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # interval for reading reports; Ray: 2 s
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else every printed line is shown twice
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # no colours in files and `ray job logs`
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS", "").strip()
    with handlers_kept():
        if address and address != "local":
            _connect(address)
        else:
            _start()
    quiet_ray()


def _start() -> None:
    temp = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(temp)) + RAY_SOCKETS > MAX_SOCKET:
        raise UserError(
            f"the temporary folder's path {temp} is too long for Ray's sockets, whose paths have at most {MAX_SOCKET} "
            f"bytes; set RAY_TMPDIR to a folder with a path of at most {MAX_SOCKET - RAY_SOCKETS} bytes, such as /tmp"
        )
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # this machine is never preempted
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # Ray Train's workers cannot use them
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")  # for the dashboard, which does not run
    if "RAY_AUTH_MODE" not in os.environ:
        ray_internals.use_token()  # Ray's own default, but without its warning at every start
    log.info("starting Ray")
    for last in (False, True):
        try:
            ray.init("local", num_cpus=joblib.cpu_count(), logging_level=logging.WARNING, include_dashboard=False)
            atexit.register(end_ray)  # runs before Ray's own
            return
        except Exception as error:  # on a machine that is too slow, Ray raises a plain Exception
            ray.shutdown()
            reason = _first_line(error)
            if last:
                raise UserError(
                    f"{BUSY} ({reason}). It waits 30 s for its processes, and was started twice: if the machine is "
                    "busy, repeat the command when the load is lower. The logs are in "
                    f"{temp}/ray/session_latest/logs; RAY_TMPDIR sets another folder than {temp}"
                ) from error
        log.warning("Ray did not start (%s); trying once more", reason)


def _connect(address: str) -> None:
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS={address} is the address of a Ray Client, which cannot train; give the cluster's own "
            "address, such as 127.0.0.1:6379, or use `ray job submit`"
        )
    start_own = "unset RAY_ADDRESS to have the command start a Ray of its own"
    if address != "auto":  # Ray's name for the Ray on this machine
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal() and int(port) < 65536):
            raise UserError(
                f"RAY_ADDRESS={address} is not HOST:PORT, such as 127.0.0.1:6379; correct it, or {start_own}"
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except (OSError, UnicodeError) as error:  # UnicodeError: a part of the host's name is empty or too long
            reason = getattr(error, "strerror", "") or str(error)
            raise UserError(f"no Ray runs at RAY_ADDRESS={address} ({reason}); start it, or {start_own}") from error
    if token := _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if token and os.environ["RAY_AUTH_MODE"] == "token":
        ray_internals.use_token()
    log.info("connecting to the Ray at %s", address)
    advice = (
        "the token on this machine may be wrong" if token else "if it needs a token, this machine has none"
    ) + f": copy the head's ~/.ray/auth_token to this home, or set RAY_AUTH_TOKEN; or {start_own}"
    where = f"the Ray at RAY_ADDRESS={address}"
    try:
        with ended_after(ANSWER_S, f"{where} does not answer within {ANSWER_S:.0f} s; restart it. Or {advice}"):
            ray.init(address, logging_level=logging.WARNING)
    except Exception as error:
        raise UserError(f"no connection to {where} ({_first_line(error)}); {advice}") from error


def _has_token() -> bool:
    """Whether one of the environment variables and files that Ray reads has a token."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or (Path(path) if path else Path.home() / ".ray/auth_token").is_file()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def ended_after(time_s: float, message: str) -> Iterator[None]:
    """End the program with a message and status 2 when the block takes longer, since Ray's calls cannot be
    interrupted."""

    def end() -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(time_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Keep the program's own signal handlers: `ray.init` replaces the one of SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)


def quiet_ray() -> None:
    """Hide Ray's log lines about every dataset and report: Ray Data logs errors only, the rest warnings and errors."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns about disabled progress bars and its own actors
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train's workers set INFO, and log every report
