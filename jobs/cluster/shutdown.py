"""How a run ends: Ctrl-C, SIGTERM or a failed stage end the stages that are running, and then Ray."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from typing import TypeVar

import ray

T = TypeVar("T")

LEAVE_S = 20.0
"""How long the end of Ray waits for stages to notice that they shall end."""

stopping = threading.Event()
"""Set when the program shall end: by a signal, or since a stage failed."""
_leaving = threading.Event()
"""Set when nothing is waited for any more."""
_running: list[Callable[[], None]] = []


def in_background(work: Callable[[], T]) -> "Future[T]":
    """Do it in a thread that does not keep an interrupted program from ending."""
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
    """While the block runs, Ctrl-C or SIGTERM calls `ask`, which asks for an early end; the block shall end then."""
    _running.append(ask)
    try:
        if stopping.is_set():
            raise KeyboardInterrupt
        yield
    finally:
        _running.remove(ask)


def run_until_left(work: Callable[[], T]) -> T:
    """The result of `work`, which waits for Ray. Raises KeyboardInterrupt when the program does not wait any more.

    The work is done in a thread of its own, so that this one is free to end: `ray.get` returns only as Ray shuts down.
    Ray Train installs its own answer to Ctrl-C in the main thread only, so it does not take over `interruptible`'s.
    """
    future = in_background(work)
    while not wait_for([future], timeout=0.2).done:
        if _leaving.is_set():
            raise KeyboardInterrupt
    return future.result()


def leave() -> None:
    """End what runs beside a failed stage, and shut Ray down."""
    stopping.set()
    _leaving.set()
    deadline = time.monotonic() + LEAVE_S
    while _running and time.monotonic() < deadline:
        time.sleep(0.05)
    ray.shutdown()


class interruptible:
    """Ctrl-C and SIGTERM (`ray job stop`, a spot node's notice) end a run: Ray stops, and `at_stop` is called.

    On the first one the stages that train write a checkpoint first, for which they have `grace_s`; the second ends at
    once. `at_stop` closes the books at the start of that time, since `ray job stop` kills after 3 s.
    """

    def __init__(self, grace_s: float = 0.0, at_stop: Callable[[], None] = lambda: None):
        self.grace_s, self.at_stop, self.over = grace_s, at_stop, threading.Event()

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
        threading.Thread(target=self._wind_down, name="stop", daemon=True).start()  # a handler must not wait

    def _wind_down(self) -> None:
        for ask in list(_running):
            ask()
        self.at_stop()
        if not self.over.wait(self.grace_s):
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, kind, error, _) -> None:
        self.over.set()
        if kind is not None:
            if issubclass(kind, KeyboardInterrupt):
                self.at_stop()
                error.args = ("the same command goes on from the last checkpoint",)
            leave()
        for number, handler in self.before.items():
            signal.signal(number, handler)
