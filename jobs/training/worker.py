"""The C library's allocator, told to keep what tensors free."""

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor instead of handing it back and faulting it in, zeroed, again.

    A training step allocates the same tensors as the one before: on a CPU this takes a sixth to a quarter off it.
    For processes that train; the memory they once held stays theirs. False where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])
