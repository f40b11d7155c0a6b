"""The C library's allocator: whether it keeps freed memory for the next frame, or gives it back.

By default it gives large blocks back to the system as soon as they are freed, the pools of all
threads but the first among them, and gets new ones, page by page, for the next frame: for 2560x2048
images that costs more than all the copying.
"""

from __future__ import annotations

import ctypes

# <malloc.h> of the GNU C library
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST = 1 << 30


def keep_freed_memory() -> bool:
    """Let this process reuse the memory it frees, and not return it; False where it cannot.

    Call it once, before the first frame. It needs the GNU C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # In this order: a trim threshold alone would send every large block back at once.
    settings = {_M_MMAP_THRESHOLD: _LARGEST, _M_TRIM_THRESHOLD: _LARGEST, _M_ARENA_MAX: 1}
    return all(mallopt(name, value) for name, value in settings.items())


def return_freed_memory() -> None:
    """Give all that is free now back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
