"""Work in several processes: results in order, processes that die, exceptions, and no process left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from egic.cli.processes import in_processes
from egic.errors import UserError

ROOT = Path(__file__).resolve().parents[4]


def doubling(folder: Path | None = None):
    """The function of a process: 2 x, after 0.2 s for 0. For "kill" and "raise" it does that."""

    def work(x):
        if x == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if x == "raise":
            raise RuntimeError("a fault")
        if folder is not None:
            (folder / str(os.getpid())).touch()
        time.sleep(0.2 if x == 0 else 0)
        return 2 * x

    return work


def refusing():
    raise UserError("the model is missing")


def died(status: int) -> str:
    return f"ended with {status}"


def test_results_have_the_order_of_the_inputs_and_each_process_starts_once(tmp_path):
    assert list(in_processes(partial(doubling, tmp_path), range(7), 2, died)) == [0, 2, 4, 6, 8, 10, 12]
    assert 1 <= len(list(tmp_path.iterdir())) <= 2
    assert not multiprocessing.active_children()


def test_a_process_that_dies_costs_its_input_only():
    inputs = [1, "kill", 2, "kill", "kill", 3]
    assert list(in_processes(doubling, inputs, 2, died)) == [
        2,
        *["ended with -9" if x == "kill" else 2 * x for x in inputs[1:]],
    ]


@pytest.mark.parametrize(
    "start, kind, text", [(doubling, RuntimeError, "a fault"), (refusing, UserError, "the model is missing")]
)
def test_exceptions_are_raised_with_the_traceback_of_the_process(start, kind, text):
    with pytest.raises(kind, match=text) as caught:
        list(in_processes(start, [1, "raise", 0, 0, 0, 0], 2, died))
    assert "test_processes.py" in caught.value.__notes__[0]
    assert not multiprocessing.active_children()


SLOW = """
import signal, sys
from egic.cli.processes import in_processes
from tests.unit.egic.cli.test_processes import died, doubling
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell script, it is ignored
print("started", flush=True)
if __name__ == "__main__":
    print(list(in_processes(doubling, [0] * 1000, 2, died)))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_the_first_one_is_interrupted_or_killed(tmp_path, number):
    (tmp_path / "slow.py").write_text(SLOW)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [sys.executable, "slow.py"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    children = []
    for _ in range(3):  # the first process and two others
        run.stdout.readline()
        children = psutil.Process(run.pid).children(recursive=True)
    os.killpg(run.pid, number) if number == signal.SIGINT else run.kill()
    _, errors = run.communicate(timeout=60)
    assert errors.count(b"Traceback") == (number == signal.SIGINT), errors  # of the first one only
    assert not psutil.wait_procs(children, timeout=60)[1]
