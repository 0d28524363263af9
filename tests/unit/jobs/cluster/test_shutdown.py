"""Signals and failed stages end a run: first a checkpoint if there is time, at last Ray."""

import os
import signal
import threading

import pytest

from egic.errors import UserError, run_main
from jobs.cluster import shutdown


@pytest.fixture(autouse=True)
def ended(monkeypatch) -> list[str]:
    """Names of what was ended, in order. Ray is replaced."""
    order: list[str] = []
    monkeypatch.setattr(shutdown.ray, "shutdown", lambda: order.append("ray"))
    return order


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_checkpoint_and_the_second_ends(number, ended, capsys):
    asked, closed = threading.Event(), threading.Event()

    def main():
        with shutdown.interruptible(60, closed.set), shutdown.stoppable(asked.set):
            os.kill(os.getpid(), number)
            assert asked.wait(10) and closed.wait(10)
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    assert run_main(main) == 130
    assert ended == ["ray"] and signal.getsignal(number) is before
    *messages, last = capsys.readouterr().err.splitlines()
    assert last == "stopped; the same command continues from the last checkpoint"
    assert messages == ["stopping, with a checkpoint first; Ctrl-C again stops at once"] * (number == signal.SIGINT)


def test_the_second_signal_does_not_wait_for_a_stage(ended):
    """The main thread waits for the stage's thread, as a thread pool does when it closes."""
    asked, never = threading.Event(), threading.Event()

    def stage() -> None:
        with pytest.raises(KeyboardInterrupt), shutdown.stoppable(asked.set):
            shutdown.run_until_left(lambda: never.wait(60))
        ended.append("stage")

    thread = threading.Thread(target=stage)
    with pytest.raises(KeyboardInterrupt), shutdown.interruptible(60):
        try:
            thread.start()
            while not shutdown._running:
                pass
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.wait(10)
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            thread.join()
    assert ended == ["stage", "ray"]
    never.set()


def test_a_failing_stage_stops_the_one_in_parallel_and_then_ray(ended):
    never = threading.Event()

    def stage() -> None:
        with pytest.raises(KeyboardInterrupt), shutdown.stoppable(lambda: None):
            shutdown.run_until_left(lambda: never.wait(60))
        ended.append("stage")

    beside = threading.Thread(target=stage)
    with pytest.raises(UserError, match="as it must"), shutdown.interruptible():
        beside.start()
        while not shutdown._running:
            pass
        raise UserError("as it must")
    beside.join()
    assert ended == ["stage", "ray"]
    with shutdown.interruptible(), shutdown.stoppable(lambda: None):  # the next run is not stopped
        assert shutdown.run_until_left(lambda: 42) == 42
    never.set()


def test_work_in_the_background_returns_or_raises():
    assert shutdown.in_background(lambda: 5).result(timeout=10) == 5
    with pytest.raises(ZeroDivisionError):
        shutdown.in_background(lambda: 1 / 0).result(timeout=10)


def test_an_error_of_background_work_is_raised_by_result():
    with pytest.raises(UserError, match="no room"):
        shutdown.run_until_left(lambda: (_ for _ in ()).throw(UserError("no room")))
