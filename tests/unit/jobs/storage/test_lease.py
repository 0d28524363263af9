"""The lease of a folder: one driver works, the other waits, and a dead driver's lease is taken over."""

import json
import os
import subprocess
import sys
import threading

import pytest

from jobs.storage import lease
from jobs.storage.files import Folder


@pytest.fixture
def place(tmp_path, monkeypatch) -> Folder:
    monkeypatch.setattr(lease, "SETTLE_S", 0.05)
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    return Folder(str(tmp_path))


def test_the_second_driver_waits_for_the_first(place, caplog):
    caplog.set_level("INFO", "jobs.storage.lease")
    order, holds = [], threading.Event()

    def other():
        holds.wait()
        with lease.held(place, "gan"):
            order.append("second")

    thread = threading.Thread(target=other)
    thread.start()
    with lease.held(place, "gan"):
        holds.set()
        thread.join(1.5)
        assert thread.is_alive(), "it waits"
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "gan: another run works on it, waiting" in caplog.text
    assert place.names() == []


def test_only_one_of_several_simultaneous_drivers_has_the_lease(place):
    inside, seen, start = [], [], threading.Barrier(4)

    def work():
        start.wait()
        with lease.held(place, "gan"):
            inside.append(1)
            threading.Event().wait(0.3)
            seen.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1, 1, 1, 1]


def test_the_lease_of_a_dead_local_process_is_taken_over(place, monkeypatch):
    monkeypatch.setattr(lease, "DEAD_S", 1e9)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    holder = {"owner": "x", "host": lease.socket.gethostname(), "boot": lease._boot(), "pid": gone.pid}
    place.write(lease.NAME, json.dumps(holder).encode())
    with lease.held(place, "gan"):
        assert json.loads(place.read(lease.NAME))["pid"] == os.getpid()


def test_a_remote_lease_without_heartbeat_is_taken_over(place, monkeypatch):
    monkeypatch.setattr(lease, "DEAD_S", 0.2)
    holder = {"owner": "x", "host": "elsewhere", "boot": "", "pid": 1, "beat": 7}
    place.write(lease.NAME, json.dumps(holder).encode())
    with lease.held(place, "gan"):
        assert b"elsewhere" not in place.read(lease.NAME)


def test_a_process_whose_lease_was_taken_over_stops(place, monkeypatch):
    told = threading.Event()
    monkeypatch.setattr(lease._thread, "interrupt_main", told.set)
    with lease.held(place, "gan"):
        place.write(lease.NAME, b'{"owner": "another"}')
        assert told.wait(10)
    assert place.read(lease.NAME) == b'{"owner": "another"}', "the other's lease is kept"


def test_a_waiting_process_stops_when_it_is_asked_to(place):
    with lease.held(place, "gan"), pytest.raises(KeyboardInterrupt), lease.held(place, "gan", lambda: True):
        pass
