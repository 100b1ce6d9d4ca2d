"""Keep what MLX frees on Linux.

MLX has no cache of its own there: a large array is a fresh mapping, zeroed page by page when it is first
written and unmapped when it is freed, which takes about as long as a pass over it. glibc can keep such memory
instead. The process then holds what it held at its peak.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Who sets one of these has chosen already.
SWITCHES = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
# M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>; nothing in Python names them.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Ask glibc for no mappings of single arrays and no trimming; whether it agreed. Never raises."""
    if sys.platform != "linux" or any(name in os.environ for name in SWITCHES):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
