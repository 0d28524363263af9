"""Mistakes of users that show in Ray's tasks."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray.exceptions

from egic.errors import UserError


@contextmanager
def raised_as_in_the_task() -> Iterator[None]:
    """Within this block, a UserError or OSError of a task is raised as a UserError of one line: Ray's own error has the
    task's traceback as its text. Tasks of Ray Data need `DataContext.raise_original_map_exception`."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, (UserError, OSError)):
            raise
        raise UserError(str(error.cause).splitlines()[0]) from error  # without the lines that Ray appends
