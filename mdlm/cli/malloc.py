"""Settings of glibc's allocator that keep freed memory in the process, for training on the CPU.

Every training step on the CPU frees and allocates hundreds of megabytes. By default glibc returns
large blocks to the kernel at once, and the next step pays a page fault per 4 KiB: a tenth of the
time of a step, or a fifth inside a virtual machine. Memory that is kept is ready for the next step.
"""

import ctypes
import os
import platform
from collections.abc import Iterable
from pathlib import Path

ACCELERATORS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")
"""Device files of NVIDIA and AMD GPUs and of TPUs; a machine with one of these has one of them."""
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # names of <malloc.h>, without their M_


def keep_freed() -> bool:
    """Makes this process keep the memory it frees. Returns whether that was set: only on Linux
    with glibc and without an accelerator.

    Call it before JAX starts its threads. The process then never shrinks. It stops growing after
    some tens of steps, as small blocks fill the holes that large ones leave; a process of one large
    block grew to several times that block.
    """
    if platform.libc_ver()[0] != "glibc" or has_accelerator():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena for all threads, never trimmed; large blocks are not mapped separately.
    return all([mallopt(ARENA_MAX, 1), mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, 2**31 - 1)])


def has_accelerator(files: Iterable[str] = ACCELERATORS) -> bool:
    """Whether JAX will probably use an accelerator, judged before JAX is imported.

    Compilers for GPUs use as many threads as there are cores; in a single arena they would wait for
    each other.
    """
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return False
    return any(Path(file).exists() for file in files)
