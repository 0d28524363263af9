"""Mistakes of users in Ray's tasks are one line; faults stay Ray's errors, with the task's traceback."""

import pytest
from ray.exceptions import RayTaskError

from egic.errors import UserError
from jobs.cluster.task_errors import raised_as_in_the_task


def failed(cause: Exception) -> None:
    raise RayTaskError("work", "Traceback (most recent call last):\n  many lines", cause).as_instanceof_cause()


@pytest.mark.parametrize("cause", [UserError("this node lacks avif\nand a line of Ray's"), OSError("disk is full")])
def test_a_mistake_is_one_line(cause):
    with pytest.raises(UserError) as error, raised_as_in_the_task():
        failed(cause)
    assert str(error.value) == str(cause).splitlines()[0]


def test_a_fault_keeps_its_traceback():
    with pytest.raises(RayTaskError, match="many lines"), raised_as_in_the_task():
        failed(KeyError("x"))
