"""What the C library does with memory that is freed, on machines whose device is the CPU.

A training step on the CPU frees and takes hundreds of megabytes each time. By default glibc gives
large blocks back to the kernel at once, and the next step pays for a page fault per 4 KiB: a tenth
of the time of a step, or a fifth inside a virtual machine. Kept, they are there for the next step.
"""

import ctypes
import os
import platform
from collections.abc import Iterable
from pathlib import Path

ACCELERATORS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")
"""Files of which a machine with an NVIDIA or AMD GPU or a TPU has one."""
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # names of <malloc.h>, without their M_


def keep_freed() -> bool:
    """Has this process keep what it frees; True where that was set (Linux with glibc, no
    accelerator).

    To be called before JAX starts its threads. The process then never shrinks. It takes some tens
    of steps until nothing new is asked for, as small blocks settle in the holes that large ones
    leave; a process of one large block grew to several times that block.
    """
    if platform.libc_ver()[0] != "glibc" or has_accelerator():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena, grown and never trimmed, for all threads; no blocks mapped by themselves.
    return all([mallopt(ARENA_MAX, 1), mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, 2**31 - 1)])


def has_accelerator(files: Iterable[str] = ACCELERATORS) -> bool:
    """Whether JAX will have another device than the CPU, as far as can be told before it starts.

    Compilers for GPUs use as many threads as there are cores, which in one arena wait for each
    other.
    """
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return False
    return any(Path(file).exists() for file in files)
