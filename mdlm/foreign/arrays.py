"""Reads arrays from `.npy` files, whose headers may promise more than there is."""

import io

import numpy as np
from jaxtyping import Int64


def numbers(content: bytes) -> Int64[np.ndarray, " n"]:
    """Returns a row of whole numbers, none negative, from the content of an `.npy` file.

    Raises ValueError, with the reason, if it is none, or its size is not that of its header.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of the format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 1 or dtype.kind not in "iu" or dtype.itemsize > 8:
        raise ValueError(f"{dtype} of shape {shape}, not a row of whole numbers")
    there = len(content) - file.tell()
    if shape[0] * dtype.itemsize != there:
        raise ValueError(f"its header promises {shape[0] * dtype.itemsize} bytes, it has {there}")
    found = np.frombuffer(content, dtype, offset=file.tell())
    if found.min(initial=0) < 0 or found.max(initial=0) > 2**62:
        raise ValueError("a number out of range")
    return found.astype(np.int64)
