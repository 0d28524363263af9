"""The end of a run: Ctrl-C, SIGTERM or a failed stage stop the running stages, and then Ray."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from typing import TypeVar

import psutil
import ray

log = logging.getLogger(__name__)

T = TypeVar("T")

LEAVE_S = 20.0
"""How long `leave` waits for the running stages before it shuts Ray down."""
EXIT_S = 5.0
"""How long `end_ray` waits for the end of Ray's processes."""

stopping = threading.Event()
"""Set when the program must end: after a signal, or because a stage failed."""
_leaving = threading.Event()
"""Set when the program ends without waiting for its stages any longer."""
_running: list[Callable[[], None]] = []


def in_background(work: Callable[[], T]) -> "Future[T]":
    """Call `work` in a daemon thread, which does not prevent an interrupted program from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@contextmanager
def stoppable(ask: Callable[[], None]) -> Iterator[None]:
    """While the block runs, Ctrl-C or SIGTERM calls `ask`, which must make the block end early."""
    _running.append(ask)
    try:
        if stopping.is_set():
            raise KeyboardInterrupt
        yield
    finally:
        _running.remove(ask)


def run_until_left(work: Callable[[], T]) -> T:
    """The result of `work`, which waits for Ray. Raises KeyboardInterrupt when the program ends without waiting for it.

    `work` runs in a thread, since `ray.get` cannot be interrupted before Ray shuts down. In the main thread, Ray Train
    would also replace the handler of Ctrl-C that `interruptible` has installed.
    """
    future = in_background(work)
    while not wait_for([future], timeout=0.2).done:
        if _leaving.is_set():
            raise KeyboardInterrupt
    return future.result()


def leave() -> None:
    """Stop the other stages after one failed or the user interrupted, and shut Ray down."""
    stopping.set()
    _leaving.set()
    deadline = time.monotonic() + LEAVE_S
    while _running and time.monotonic() < deadline:
        time.sleep(0.05)
    end_ray()


def end_ray() -> None:
    """Shut Ray down, and kill those processes of a Ray that this program started which do not end.

    The exit of a process of Ray 2.60, most often Ray Train's controller, can wait forever for a lock that its own
    thread holds. The process would stay with its gigabyte of memory.
    """
    processes: list[psutil.Process] = []
    with suppress(psutil.Error):  # a process ended just now
        for child in psutil.Process().children():
            if child.name() == "raylet":
                processes += child.children(recursive=True)
    ray.shutdown()
    for process in psutil.wait_procs(processes, timeout=EXIT_S)[1]:
        with suppress(psutil.Error):
            process.kill()


class interruptible:
    """Context manager in which Ctrl-C and SIGTERM (`ray job stop`, a spot node's notice) end the run and stop Ray.

    After the first signal, training stages have `grace_s` seconds to write a checkpoint; a second one ends the run at
    once. `at_stop` is called at the start of that time, since `ray job stop` kills the process after 3 s. `after` ends
    the message about the interruption.
    """

    def __init__(
        self, grace_s: float = 0.0, at_stop: Callable[[], None] = lambda: None,
        after: str = "the same command continues from the last checkpoint",
    ):  # fmt: skip
        self.grace_s, self.at_stop, self.after, self.over = grace_s, at_stop, after, threading.Event()

    def __enter__(self) -> None:
        stopping.clear()
        _leaving.clear()
        self.before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def _stop(self, number: int, _) -> None:
        if stopping.is_set() or not _running:
            _leaving.set()
            raise KeyboardInterrupt
        stopping.set()
        if number == signal.SIGINT:
            print("stopping, with a checkpoint first; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        threading.Thread(target=self._wind_down, name="stop", daemon=True).start()  # a signal handler must not block

    def _wind_down(self) -> None:
        for ask in list(_running):
            try:
                ask()
            except Exception as error:  # the others must still be asked, and the time limit set
                log.warning("a stage cannot be asked to stop (%s); it ends without a last checkpoint", error)
        self.at_stop()
        if not self.over.wait(self.grace_s):
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, kind, error, _) -> None:
        self.over.set()
        if kind is not None:
            if issubclass(kind, KeyboardInterrupt):
                self.at_stop()
                error.args = (self.after,)
            leave()
        for number, handler in self.before.items():
            signal.signal(number, handler)
