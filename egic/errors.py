"""Error types, and how command-line tools show them: one line for a user's mistake, a traceback for a program fault."""

from __future__ import annotations

import io
import logging
import os
import re
import select
import signal
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Callable

REPORT = (
    "This is a fault of EGIC, not of your input. Please report it with the lines above, your command, and what "
    "`egic --version` prints."
)


HIDDEN = ("`torch.jit.script` is deprecated",)
"""Beginnings of warnings to hide: packages (compressai) raise them about their own code when they are imported."""


class UserError(ValueError):
    """A mistake that a user can fix: a wrong value, a missing or damaged file, a server that does not answer.

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
      environment variable EGIC_TRACEBACK=1 adds the traceback, here and for each file that cannot be coded.
    - Ctrl-C: one line, status 130.
    - Any other exception is a fault of the program: its traceback and a line that asks for a report, status 1.
    - The reader of stdout, such as `head`, has ended: no output, status 141, the usual status of SIGPIPE.
    - Otherwise the integer that `main` returned, or None for success.

    Bytes of file names that are not valid UTF-8 are printed as \\x.. or \\udc... Where the caller has closed stdout or
    stderr (`>&-`), what is printed there is lost, as with the null device.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main()
        sys.stdout.flush()
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_ended():
            return 128 + signal.SIGPIPE
        _show_traceback(error)
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("; ".join(("stopped", *map(str, error.args))), file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print(REPORT, file=sys.stderr)
        return 1
    return status if isinstance(status, int) else None


def _show_traceback(error: Exception) -> None:
    if os.environ.get("EGIC_TRACEBACK", "0") != "0":
        traceback.print_exception(error)


def _reader_ended() -> bool:
    """Whether stdout is a pipe whose reader has ended.

    If so, stdout is redirected to the null device, because Python prints an error when it cannot flush it at exit.
    """
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory is exhausted. By its text, since torch has an error type for GPUs only."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


def reason(error: Exception) -> str:
    """An error as one line, without the file name, which callers print before it."""
    _show_traceback(error)
    if out_of_memory(error):
        return "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def one_line(error: Exception) -> str:
    """The text of an error as one line without control characters."""
    return visible(" ".join(str(error).split()))


def visible(text: str) -> str:
    """The text with control characters as \\x..: names of files can have newlines and the escape codes of terminals."""
    return "".join(f"\\x{ord(each):02x}" if unicodedata.category(each) == "Cc" else each for each in text)


def quiet(*loggers: str) -> None:
    """Configure logging: level INFO for the named loggers, WARNING for others; hide the warnings of `HIDDEN`.

    Child processes hide them through PYTHONWARNINGS, unless that variable is already set.
    """
    for message in HIDDEN:
        warnings.filterwarnings("ignore", re.escape(message), FutureWarning)
    os.environ.setdefault("PYTHONWARNINGS", ",".join(f"ignore:{message}:FutureWarning" for message in HIDDEN))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name in loggers:
        logging.getLogger(name).setLevel(logging.INFO)
