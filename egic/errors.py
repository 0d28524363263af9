"""A user's mistake ends a command-line tool with one clear line and exit status 2, never a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable


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
    return status if isinstance(status, int) else None
