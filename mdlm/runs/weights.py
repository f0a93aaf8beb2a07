"""Weights: the parameters of a run alone, in one safetensors file of its folder.

The file stands beside training states, or instead of them: an imported network has none. A tensor
is named by its path in the tree of parameters, `network.blocks.qkv.kernel`. The metadata, all text:

step         optimizer step that the parameters are of; 0 if imported
parameters   which parameters: "ema", which runs evaluate and sample with, or "base"
             (`mdlm.runs.base_weights`)
dtype        of the network's tensors
fingerprint  of the experiment, if known
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mdlm.config.ranges import LARGEST
from mdlm.errors import InputError
from mdlm.files import check_contained, replaced
from mdlm.runs import digests
from mdlm.types import ArrayTree

NAME = "weights.safetensors"
WeightsDtype = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
"""NumPy dtypes by their names in safetensors files."""


def named(tree: ArrayTree) -> dict[str, Any]:
    """Returns the leaves of a tree by their dotted paths."""

    def name(path: tuple) -> str:
        parts = [getattr(p, "key", getattr(p, "idx", getattr(p, "name", None))) for p in path]
        return ".".join(map(str, parts))

    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def cast(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns `value` in another dtype. Raises InputError if a finite value becomes infinite."""
    with np.errstate(over="ignore"):
        out = value.astype(dtype, copy=False)
    if dtype == np.float16 and not np.array_equal(np.isfinite(out), np.isfinite(value)):
        largest = np.abs(value[np.isfinite(value)].astype(np.float32)).max()
        raise InputError(
            f"{name} has a value of {largest:.3g}, above float16's largest, 65504: use bfloat16"
        )
    return out


def write(
    folder: Path,
    params: Mapping[str, ArrayTree],
    *,
    step: int,
    dtype: WeightsDtype | None = None,
    fingerprint: str | None = None,
    name: str = NAME,
    which: str = "ema",
) -> Path:
    """Writes the parameters, by component, into the file `name` of a run folder; returns the file.
    `which` says in its metadata which parameters they are.

    The network's tensors are written in `dtype`, by default in their own. Learned parameters of the
    process are a few numbers and keep their dtype. Raises InputError if a value is too large for
    `dtype`.
    """
    check_contained(folder)
    tensors = {}
    for path, leaf in named(params).items():
        value = np.asarray(leaf)
        if dtype is not None and path.startswith("network."):
            value = cast(path, value, np.dtype(dtype))
        tensors[path] = np.ascontiguousarray(value)
    dtypes = {path: value.dtype for path, value in tensors.items()}
    with digests.sealed(folder, name), replaced(folder / name) as new:
        try:
            save_file(tensors, new, _metadata(dtypes, step, fingerprint, which))
        except SafetensorError as error:  # which has the number of a disk's error in its text
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    return folder / name


def _metadata(
    dtypes: Mapping[str, np.dtype], step: int, fingerprint: str | None, which: str = "ema"
) -> dict[str, str]:
    kinds = {dtype.name for name, dtype in dtypes.items() if name.startswith("network.")}
    metadata = {"step": str(step), "parameters": which, "dtype": " ".join(sorted(kinds))}
    return metadata if fingerprint is None else {**metadata, "fingerprint": fingerprint}


@contextmanager
def filled(
    folder: Path, sizes: Mapping[str, tuple[tuple[int, ...], np.dtype]], *, fingerprint: str
) -> Iterator[dict[str, np.ndarray]]:
    """Context that yields the arrays of a new file of weights, by name, to be filled in any order.

    `sizes` has the shape and dtype of each. The arrays lie on disk, so that memory need not hold
    them. The file takes its place when the context ends without an error.
    """
    check_contained(folder)
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {}
    metadata = _metadata({name: dtype for name, (_, dtype) in sizes.items()}, 0, fingerprint)
    header["__metadata__"] = metadata
    end = 0
    for name, (shape, dtype) in sizes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format's alignment
    first = 8 + len(text)
    with digests.sealed(folder, NAME), replaced(folder / NAME) as new:
        with open(new, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(first + end)
        arrays = {}
        for name, (shape, dtype) in sizes.items():
            offset = first + header[name]["data_offsets"][0]
            arrays[name] = np.memmap(new, dtype, "r+", offset, shape)
        yield arrays
        for array in arrays.values():
            array.flush()


class Weights:
    """A file of weights: its names, shapes and metadata. Tensors are read by `restore`.

    Raises InputError if it cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, "numpy") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                slices = {name: file.get_slice(name) for name in file.keys()}
                self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
                self.dtypes = {name: part.get_dtype() for name, part in slices.items()}
            self.step = int(self.metadata.get("step", 0))
            if not 0 <= self.step <= LARGEST:
                raise ValueError(f"step={self.step}: must be from 0 to {LARGEST}")
        except (SafetensorError, ValueError, OSError) as error:
            raise InputError(f"{path}: not a readable file of weights ({error})") from error

    @classmethod
    def of(cls, folder: Path, *, verify: bool = True, name: str = NAME) -> "Weights | None":
        """Returns the weights of a run folder, or its file `name`; None if it has none.

        All host processes call it. Raises InputError if the file differs from what was written.
        """
        path = folder / name
        bad = digests.damage_together(folder, only=name) if verify else None
        if bad is not None:
            raise InputError(digests.refusal(folder, bad))
        return cls(path) if path.is_file() else None

    @property
    def components(self) -> set[str]:
        """Components that have parameters: "network", and "process" if it has learned ones."""
        return {name.partition(".")[0] for name in self.shapes}

    def restore(
        self, abstract: Mapping[str, ArrayTree], *, some: bool = False, more: bool = False
    ) -> dict[str, Any]:
        """Returns the parameters, in the dtypes of the file and with the shardings of `abstract`.

        Tensors are read one after the other, and each host process reads only the parts that its
        devices hold. With `some`, only the network and the components that both have are read; with
        `more`, the file may have tensors that `abstract` lacks.
        Raises InputError, with names and shapes, if tensors are missing, unexpected or of other
        shapes.
        """
        if some:
            there = {"network", *self.components}
            abstract = {name: part for name, part in abstract.items() if name in there}
        due = named(abstract)
        shapes = {name: tuple(leaf.shape) for name, leaf in due.items()}
        self._check(shapes, set(abstract), some, more)
        with safe_open(self.path, "numpy") as file:
            found = [self._put(file.get_slice(name), leaf) for name, leaf in due.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract), found)

    def _put(self, tensor: Any, leaf: Any) -> jax.Array:
        array = jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda index: np.ascontiguousarray(tensor[index])
        )
        return jax.block_until_ready(array)  # keeps one tensor at a time on the host

    def _check(
        self, due: dict[str, tuple[int, ...]], components: set[str], some: bool, more: bool
    ) -> None:
        wrong = []
        for name in sorted({*due, *({} if more else self.shapes)}):
            if some and name.partition(".")[0] not in components:
                continue
            there, here = self.shapes.get(name), due.get(name)
            if there != here:
                said = [str(shape) if shape is not None else "missing" for shape in (there, here)]
                wrong.append(f"{name} is {said[0]} in the file, {said[1]} in the experiment")
            elif self.dtypes[name] not in DTYPES:
                wrong.append(f"{name} is {self.dtypes[name]}, not {' or '.join(DTYPES)}")
        if wrong:
            more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
            raise InputError(
                f"{self.path} does not fit this experiment: {'; '.join(wrong[:3])}{more}"
            )
