"""Tables of names: where the tensors of another layout lie in the arrays of a network here.

A table has an entry for each array, by its dotted path in the tree of parameters:

    "embed.table":        "model.embed_tokens.weight"
    "blocks.qkv.kernel":  ("layers.{layer}.q.weight", "layers.{layer}.k.weight", ...)
    "blocks.mlp.inner.kernel":  ("layers.{layer}.Wi.weight[1/2]", "layers.{layer}.Wi.weight[0/2]")

Several names are columns of the array, one after another. `{layer}` and `{expert}` count through
the leading axes of the array; `{layer+2}` counts from 2. `[i/n]` is the i-th of n equal parts of a
tensor's rows. A weight of a linear layer is `(out, in)` there and a `kernel` `[in, out]` here.
Nothing else differs, so conversion both ways is exact.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from mdlm.errors import InputError
from mdlm.models.network import Network, shapes
from mdlm.runs.weights import named

Table = Mapping[str, str | tuple[str, ...]]
Read = Callable[[str], np.ndarray]

ROWS, SHARE = 16, 1024
"""Rows that are transposed at a time, and by a thread."""

_COUNTED = re.compile(r"\{(layer|expert)(?:\+(\d+))?\}")
_PART = re.compile(r"\[(\d+)/(\d+)\]$")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The place of a tensor, or of a part of its rows, in an array here.

    Args:
        tensor: its name in the other layout.
        path: the array's.
        index: numbers on the leading axes of the array.
        columns: columns of the array there.
        part: number of the part of the tensor's rows, and how many equal parts there are.
        shape: the tensor's shape there, all parts together.
    """

    tensor: str
    path: str
    index: tuple[int, ...]
    columns: slice
    part: tuple[int, int]
    shape: tuple[int, ...]

    def put(self, value: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes what belongs in the slot, from the whole tensor."""
        number, parts = self.part
        rows = value.shape[0] // parts
        some = value[number * rows : (number + 1) * rows] if parts > 1 else value
        target = arrays[self.path][(*self.index, ..., self.columns)]
        if self.is_kernel:
            _transpose(some, target)
        else:
            target[...] = some

    @property
    def is_kernel(self) -> bool:
        return self.path.endswith(".kernel")


def _transpose(value: np.ndarray, target: np.ndarray) -> None:
    """Writes `value.T` into `target`. A few rows at a time, so that both fit the processor's cache,
    and as whole numbers, which NumPy copies faster than bfloat16: five times as fast together."""
    if value.dtype == target.dtype:
        plain = np.dtype(f"u{value.dtype.itemsize}")
        value, target = value.view(plain), target.view(plain)

    def some(first: int) -> None:
        for start in range(first, min(first + SHARE, value.shape[0]), ROWS):
            target[:, start : start + ROWS] = value[start : start + ROWS].T

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(some, range(0, value.shape[0], SHARE)))


def array_shapes(network: Network, columns: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network's arrays by path."""
    return {path: leaf.shape for path, leaf in named(shapes(network, columns)).items()}


def slots(table: Table, network: Network, columns: int) -> Iterator[Slot]:
    """Yields the slots of all arrays of a network, in the order of the table.

    Raises ValueError if the table does not have exactly the arrays of the network.
    """
    sizes = array_shapes(network, columns)
    if sizes.keys() != table.keys():
        raise ValueError(f"the table differs from the network in {sorted(sizes.keys() ^ table)}")
    module = nnx.eval_shape(lambda: network.module(columns, nnx.Rngs(0)))
    for path, entry in table.items():
        names = (entry,) if isinstance(entry, str) else entry
        counted = len(_COUNTED.findall(names[0]))
        ends = np.cumsum(_widths(module, path, names, sizes[path][-1]))
        for index in itertools.product(*map(range, sizes[path][:counted])):
            start = 0
            for name, end in zip(names, ends.tolist(), strict=True):
                yield _slot(path, name, index, slice(start, end), sizes[path])
                start = end


def _slot(path: str, name: str, index: tuple[int, ...], columns: slice, size: tuple) -> Slot:
    found = _PART.search(name)
    part = (0, 1) if found is None else (int(found[1]), int(found[2]))
    numbers = iter(index)
    tensor = _COUNTED.sub(lambda m: str(next(numbers) + int(m[2] or 0)), _PART.sub("", name))
    shape = (*size[len(index) : -1], columns.stop - columns.start)
    shape = shape[::-1] if path.endswith(".kernel") else shape
    shape = (shape[0] * part[1], *shape[1:])
    return Slot(tensor=tensor, path=path, index=index, columns=columns, part=part, shape=shape)


def _widths(module: Any, path: str, names: tuple[str, ...], width: int) -> tuple[int, ...]:
    """Returns the columns of an array that each of its names has: the parts of its layer, which are
    equal if it does not say."""
    if len(names) == 1:
        return (width,)
    for attribute in path.split(".")[:-1]:
        module = getattr(module, attribute)
    equal = (width // len(names),) * len(names)
    widths = getattr(module, "widths", equal)
    if len(widths) == len(names):
        return widths
    raise ValueError(f"{path}: {len(names)} names for {len(widths)} parts")


def check(
    places: list[Slot], there: Mapping[str, tuple[int, ...]], ignored: str, title: str
) -> None:
    """Raises InputError, with names and shapes, if tensors are missing, left over, or of another
    shape. `ignored` is a pattern of names that may be there and are not read."""
    due = {place.tensor: place.shape for place in places}
    wrong = []
    for name in sorted({*due, *there}):
        if name not in there:
            wrong.append(f"{name} is missing")
        elif name not in due:
            if not (ignored and re.fullmatch(ignored, name)):
                wrong.append(f"{name} {there[name]} is left over")
        elif due[name] != there[name]:
            wrong.append(f"{name} is {there[name]}, the network needs {due[name]}")
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise InputError(f"{title}: the tensors do not fit: {'; '.join(wrong[:3])}{more}")


def fill(places: list[Slot], read: Read, arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Writes every tensor into its place in `arrays`, one at a time; yields its name."""
    for name, group in itertools.groupby(places, key=lambda place: place.tensor):
        value = read(name)
        for place in group:
            place.put(value, arrays)
        yield name


def tensors_of(places: list[Slot], arrays: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of the other layout, each as soon as all its parts are known."""
    for name, group in itertools.groupby(places, key=lambda place: place.tensor):
        parts = sorted(group, key=lambda place: place.part)
        values = [np.asarray(arrays[p.path][(*p.index, ..., p.columns)]) for p in parts]
        values = [value.T if parts[0].is_kernel else value for value in values]
        yield name, np.ascontiguousarray(values[0] if len(values) == 1 else np.concatenate(values))


def tree_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tree of parameters from arrays by dotted path."""
    tree: dict[str, Any] = {}
    for path, value in arrays.items():
        *parents, last = path.split(".")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def stacked(
    places: list[Slot], tensors: Mapping[str, np.ndarray], network: Network, columns: int
) -> dict[str, Any]:
    """Returns the parameters of a network, as NumPy arrays, from tensors that are in memory."""
    dtypes = {place.path: tensors[place.tensor].dtype for place in places}
    sizes = array_shapes(network, columns)
    arrays = {path: np.zeros(shape, dtypes[path]) for path, shape in sizes.items()}
    for _ in fill(places, tensors.__getitem__, arrays):
        pass
    return tree_of(arrays)
