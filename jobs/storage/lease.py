"""A lock: one driver at a time works on a stage's folder, and others that need the same result wait.

A lease is a small file that its holder rewrites every `BEAT_S` seconds. It works on any storage, object stores
included, and compares no clocks of different machines: a lease has expired when the waiting process sees no change for
`DEAD_S` seconds, or at once when its holder was a process of this machine that has ended.
"""

import _thread
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from jobs.storage.files import Folder

log = logging.getLogger(__name__)

NAME = "lease.json"
BEAT_S = 5.0
DEAD_S = 30.0
SETTLE_S = 0.5
"""Two processes may take an expired lease at the same moment: each waits this long, and the one whose id is then in the
file holds it."""


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _local_pid(content: bytes) -> int | None:
    """The holder's process id, if it ran on this machine since the last boot; else None."""
    try:
        holder = json.loads(content)
        return int(holder["pid"]) if (holder["host"], holder["boot"]) == (socket.gethostname(), _boot()) else None
    except (ValueError, KeyError, TypeError):
        return None


def _dead(content: bytes) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    pid = _local_pid(content)
    return pid is not None and not psutil.pid_exists(pid)


def is_held(place: Folder) -> bool:
    """Whether a run works on `place` now. For a holder on another machine this takes up to two beats."""
    content = place.read(NAME)
    if content is None or _local_pid(content) is not None:
        return content is not None and not _dead(content)
    deadline = time.monotonic() + 2 * BEAT_S
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if place.read(NAME) != content:
            return True
    return False


class held:
    """Context manager that holds the lease of `place`; it waits until the lease is free, and logs that once.

    stopped: asked while waiting; when it returns True, the wait ends with KeyboardInterrupt.
    """

    def __init__(self, place: Folder, what: str, stopped: Callable[[], bool] = lambda: False):
        self.place, self.what, self.stopped, self.owner = place, what, stopped, uuid.uuid4().hex
        self.beat, self.done = 0, threading.Event()

    def _write(self) -> None:
        self.beat += 1
        holder = {"owner": self.owner, "host": socket.gethostname(), "boot": _boot(), "pid": os.getpid()}
        self.place.write(NAME, json.dumps(holder | {"beat": self.beat}).encode())

    def _mine(self) -> bool:
        content = self.place.read(NAME)
        return content is not None and self.owner.encode() in content

    def __enter__(self) -> None:
        seen, since, logged = None, time.monotonic(), False
        while True:
            content = self.place.read(NAME)
            if content != seen:
                seen, since = content, time.monotonic()
            if content is None or _dead(content) or time.monotonic() - since > DEAD_S:
                self._write()
                time.sleep(SETTLE_S)
                if self._mine():
                    break
                continue
            if not logged:
                logged = True
                log.info("%s: another run works on it, waiting (%s/%s)", self.what, self.place.path, NAME)
            if self.stopped():
                raise KeyboardInterrupt
            time.sleep(1.0)
        self.thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self.thread.start()

    def _keep(self) -> None:
        while not self.done.wait(BEAT_S):
            try:
                if not self._mine():
                    log.error("%s: another run has taken the lease, ending this run", self.what)
                    _thread.interrupt_main()
                    return
                self._write()
            except OSError as error:
                log.warning("%s: cannot renew %s/%s (%s)", self.what, self.place.path, NAME, error)

    def __exit__(self, *_) -> None:
        self.done.set()
        self.thread.join()
        if self._mine():
            self.place.remove(NAME)
