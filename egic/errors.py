"""Manners of command-line tools: a user's mistake is one clear line and exit status 2, and packages keep quiet."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; the weights are still those of the step before."""

    step: int | None = None
    """Index of the step, where it was not the latest one."""


def run_main(main: Callable[[], object]) -> int | None:
    """Run a tool's main function and return its exit status: `raise SystemExit(run_main(lambda: main(config)))`.

    ValueError (the type for everything a user can cause) and OSError (missing file, no permission, disk full) print
    `error: ...` on stderr and give 2; their traceback goes to the debug log. Any other exception is our own bug and
    keeps its traceback. None means success; an integer returned by `main` is passed through.
    """
    try:
        status = main()
    except (ValueError, OSError) as error:
        logging.getLogger(__name__).debug("traceback", exc_info=True)
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("; ".join(("stopped", *map(str, error.args))), file=sys.stderr)
        return 130
    return status if isinstance(status, int) else None


def out_of_memory(error: Exception) -> bool:
    """torch has a type for this on GPUs only."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


def reason(error: Exception) -> str:
    """An error in one line, without the file's name, which stands before it."""
    if out_of_memory(error):
        return "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())


def quiet(*loggers: str) -> None:
    """Show warnings, and from the named loggers what they are doing; hide deprecations inside packages.

    The latter through the environment, so that processes which this one starts keep quiet, too.
    """
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name in loggers:
        logging.getLogger(name).setLevel(logging.INFO)
