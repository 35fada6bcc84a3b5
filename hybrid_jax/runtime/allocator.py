"""The C library's allocator, told to keep what a compiled program gives back."""

import ctypes
import sys

# Numbers of <malloc.h>, glibc: M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX.
_SETTINGS = {-4: 0, -1: 2**31 - 1, -8: 1}


def keep_freed_memory() -> None:
    """Reuses the memory of large arrays instead of returning it to the system.

    Every run of a program on the CPU frees its temporary arrays. glibc unmaps them one by one, and
    the next run pays for mapping and clearing each page anew. To call before the first program
    runs; does nothing where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, value in _SETTINGS.items():
            mallopt(name, value)
