"""Errors by who can mend them, and how command-line tools show each: one line for the user's, a traceback for ours."""

from __future__ import annotations

import io
import logging
import os
import re
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable

REPORT = (
    "This is a fault of EGIC, not of your input. Please report it with the lines above, your command, and what "
    "`egic --version` prints."
)


HIDDEN = ("`torch.jit.script` is deprecated",)
"""How warnings begin that packages raise as they are imported, about themselves: compressai."""


class UserError(ValueError):
    """Something that a user can mend: a wrong value, a file that is missing or damaged, a server that does not answer.

    The message is one line that names the thing, what is wrong with it, and what to do. Every other exception except
    OSError is a fault of the program.
    """


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; the weights are still those of the step before."""

    step: int | None = None
    """Index of the step, where it was not the latest one."""


def run_main(main: Callable[[], object]) -> int | None:
    """Run a tool's main function and return its exit status: `raise SystemExit(run_main(lambda: main(config)))`.

    - UserError and OSError (missing file, no permission, disk full): one line `error: ...` on stderr, status 2. The
      environment variable EGIC_TRACEBACK=1 adds the traceback.
    - Ctrl-C: one line, status 130.
    - Any other exception is a fault of the program: its traceback and a line that asks for a report, status 1.
    - A reader of stdout that has ended, such as `head`: nothing, status 141, as other programs that SIGPIPE ends.
    - Otherwise the integer that `main` returned, or None for success.

    File names that are no UTF-8 are printed with \\x.. or \\udc.. in place of what no text can hold.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main()
        sys.stdout.flush()
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_ended():
            return 128 + signal.SIGPIPE
        if os.environ.get("EGIC_TRACEBACK", "0") != "0":
            traceback.print_exc()
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("; ".join(("stopped", *map(str, error.args))), file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print(REPORT, file=sys.stderr)
        return 1
    return status if isinstance(status, int) else None


def _reader_ended() -> bool:
    """Whether stdout is a pipe that nobody reads any more; it is closed then, or Python would complain as it ends."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


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
    """Show warnings, and from the named loggers what they are doing; hide the warnings of `HIDDEN`.

    The latter through the environment, too, for the processes that this one starts. A PYTHONWARNINGS that is set stays.
    """
    for message in HIDDEN:
        warnings.filterwarnings("ignore", re.escape(message), FutureWarning)
    os.environ.setdefault("PYTHONWARNINGS", ",".join(f"ignore:{message}:FutureWarning" for message in HIDDEN))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name in loggers:
        logging.getLogger(name).setLevel(logging.INFO)
