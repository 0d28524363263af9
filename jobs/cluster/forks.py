"""Ray's workers on this machine as forks of the driver: one takes a moment instead of 3 to 6 s of imports.

Before it has any thread, the driver forks a twin that does nothing but fork. Ray starts workers with a Python that is
this file as a script: it hands arguments, environment and standard streams to the twin through a socket, and ends; the
twin's child is the worker. The twin ends with the driver; where it is gone, the script becomes an ordinary worker. On a
cluster that runs already, nodes start workers by themselves.
"""

import json
import logging
import os
import select
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

log = logging.getLogger(__name__)

MAX_REQUEST = 1 << 20
FIRST_JOB = "01000000"
"""Ray's name of the first driver of a cluster."""

executable = ""
"""In place of Python: has the twin fork a worker, and is Python for all else. Empty without a twin."""


def start() -> None:
    """Import what workers need and fork the twin, if this process is going to start Ray; first of all things it does.

    As it is imported, Ray reads a worker's job and the process that it must not survive, from variables which it sets
    for workers; they are set here for all of them. And it draws from its random numbers, of which forks would all
    draw the same from there on: `os.urandom` stands in.
    """
    global executable
    if executable or os.environ.get("RAY_ADDRESS") or "ray" in sys.modules:
        return
    os.environ |= {"RAY_JOB_ID": FIRST_JOB, "RAY_RAYLET_PID": str(os.getpid())}
    import ray.actor
    from ray._raylet import ActorClassID

    class Drawn(ActorClassID):
        @classmethod
        def from_random(cls) -> ActorClassID:  # type: ignore[override]
            return ActorClassID(os.urandom(ActorClassID.size()))

    ray.actor.ActorClassID = Drawn  # type: ignore[misc]
    import jobs.training.trainer  # noqa: F401

    ray.actor.ActorClassID = ActorClassID  # type: ignore[misc]
    del os.environ["RAY_JOB_ID"], os.environ["RAY_RAYLET_PID"]
    if _drawn_in_a_fork() == _drawn_in_a_fork():
        log.warning("forks would draw the same random numbers: Ray starts its workers one by one, which takes longer")
        return
    executable = fork_twin(import_the_rest)


def _drawn_in_a_fork() -> bytes:
    from ray._raylet import UniqueID

    reading, writing = os.pipe()
    if (fork := os.fork()) == 0:
        os.write(writing, UniqueID.from_random().binary())
        os._exit(0)
    os.close(writing)
    os.waitpid(fork, 0)
    with open(reading, "rb") as file:
        return file.read()


@contextmanager
def in_use() -> Iterator[dict]:
    """While the block starts Ray, it gets to know of the forks; gives the runtime environment that its job needs."""
    python = sys.executable
    sys.executable = executable or python  # what Ray's node manager starts workers with
    try:
        yield {"py_executable": shlex.quote(executable)} if executable else {}
    finally:
        sys.executable = python


def fork_twin(prepare: Callable[[], object] = int) -> str:
    """The twin of this process as it is now, which calls `prepare` first; returns what to use in place of Python."""
    folder = tempfile.mkdtemp(prefix="egic-forks-")  # closed to other users, since who reaches the socket runs code
    path = os.path.join(folder, "socket")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(path)
    server.listen(128)
    driver_is_gone, driver_lives = os.pipe()  # the other end closes with this process, however it ends
    if os.fork() == 0:
        try:
            os.close(driver_lives)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the driver answers it
            prepare()
            serve(server, driver_is_gone)
        finally:  # whatever happens, nothing of the driver's own goes on here
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)
    server.close()
    os.close(driver_is_gone)
    python, command = os.path.join(folder, "python"), [sys.executable, "-I", "-S", os.path.abspath(__file__), path]
    with open(python, "w") as file:
        file.write(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    os.chmod(python, 0o700)
    return python


def serve(server: socket.socket, driver_is_gone: int) -> None:
    """The twin: a fork for every request, until the driver is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries the dead
    watched: list = [server, driver_is_gone]
    while driver_is_gone not in select.select(watched, [], [])[0]:
        connection, _ = server.accept()
        with connection:
            request, streams, _, _ = socket.recv_fds(connection, MAX_REQUEST, 3)
        if request and os.fork() == 0:
            server.close()
            os.close(driver_is_gone)
            become_worker(**json.loads(request), streams=streams)
        for stream in streams:
            os.close(stream)


def import_the_rest() -> None:
    """What workers use, but the driver at this moment does not: imported while it starts Ray."""
    import pydantic.v1.fields  # as each worker connects  # noqa: F401
    import torch._dynamo  # seconds, at the first optimizer  # noqa: F401

    from jobs.tracking import store

    store.mlflow()


def become_worker(
    argv: list[str], env: dict[str, str], folder: str, blocked: list[int], streams: list[int]
) -> NoReturn:
    """Run a script as a new Python would, but for what is imported already."""
    import runpy

    import torch
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    status = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)  # Ray blocks SIGINT: Ctrl-C is for the driver
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = argv
        logging.getLogger().handlers.clear()
        logging.getLogger("jobs").setLevel(logging.NOTSET)
        torch.set_num_threads(1)  # as Ray has it for workers, with a variable that torch has read by now
        Config.initialize(json.dumps({"AUTH_MODE": env.get("RAY_AUTH_MODE", "")}))
        AuthenticationTokenLoader.instance().reset_cache()
        runpy.run_path(argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        log.exception("worker")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(path: str, argv: list[str]) -> None:
    """What Ray runs: ask the twin for a worker, or be Python."""
    blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
    request = {"argv": argv, "env": dict(os.environ), "folder": os.getcwd(), "blocked": blocked}
    try:
        if not argv or not argv[0].endswith("_worker.py") or os.environ.get("RAY_JOB_ID") != FIRST_JOB:
            raise ConnectionError("not what the twin is made for")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(path)
            socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
    except OSError:
        os.execv(sys.executable, [sys.executable, *argv])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
