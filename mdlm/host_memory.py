"""What the C library does with memory that is freed, on machines whose device is the CPU.

A training step on the CPU frees and takes hundreds of megabytes each time. By default glibc gives
large blocks back to the kernel at once, and the next step pays for a page fault per 4 KiB: a tenth
of the time of a step, or a fifth inside a virtual machine. Kept, they are there for the next step.
"""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # names of <malloc.h>, without their M_


def keep_freed() -> bool:
    """Has this process keep what it frees; True where that could be set (Linux with glibc).

    To be called before JAX starts its threads. The process then never shrinks. It takes some tens
    of steps until nothing new is asked for, as small blocks settle in the holes that large ones
    leave; a process of one large block grew to several times that block.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena, grown and never trimmed, for all threads; no blocks mapped by themselves.
    return all([mallopt(ARENA_MAX, 1), mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, 2**31 - 1)])
