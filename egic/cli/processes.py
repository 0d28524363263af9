"""Work on many inputs in several processes, with the results in order."""

import multiprocessing
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_processes(
    start: Callable[[], Callable[[T], R]], inputs: Sequence[T], num: int, died: Callable[[int], R]
) -> Iterator[R]:
    """The result of each input, in their order.

    start: called once in each of `num` new processes; returns the function that is then called with one input after the
    other. It must be picklable, as must be inputs and results.
    died: makes the result of an input whose process died (killed for memory, for example) from the process's exit
    status. A new process takes over the other inputs.
    An exception in a process is raised here and ends all of them. If this process dies, they end after their input.
    """
    todo, at_work, done = deque(range(len(inputs))), dict[Connection, int](), dict[int, R]()
    processes = dict[Connection, SpawnProcess]()

    def begin() -> Connection:
        connection, process = _process(start)
        processes[connection] = process
        return connection

    def give(connection: Connection) -> None:
        number = at_work[connection] = todo.popleft()
        with suppress(BrokenPipeError):  # the process has died: its connection is at its end
            connection.send(inputs[number])

    try:
        for _ in range(num):
            give(begin())
        for number in range(len(inputs)):
            while number not in done:
                for connection in wait(list(at_work)):
                    assert isinstance(connection, Connection)
                    finished = at_work.pop(connection)
                    try:
                        result = connection.recv()
                    except (EOFError, OSError):
                        process = processes.pop(connection)
                        process.join()
                        done[finished] = died(process.exitcode or 0)
                        if todo:
                            give(begin())
                        continue
                    if isinstance(result, Exception):
                        raise result
                    done[finished] = result
                    if todo:
                        give(connection)
            yield done.pop(number)
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


def _process(start: Callable[[], Callable]) -> tuple[Connection, SpawnProcess]:
    """A new process that serves at the other end of the connection."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, start), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited: Ctrl-C is for this process only
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()
    return here, process


def _serve(connection: Connection, start: Callable[[], Callable]) -> None:
    """Answer each input with its result, or an exception, until the other end is closed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # removes a file that is being written
    work: Callable | None = None

    def answer(given: object) -> object:
        nonlocal work
        try:
            work = work or start()
            return work(given)
        except Exception as error:
            error.add_note(traceback.format_exc())  # a traceback itself cannot be pickled
            return error

    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the first process has ended
        while True:
            connection.send(answer(connection.recv()))
