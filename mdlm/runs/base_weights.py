"""The arrays of a run that its training does not change, in one file of its folder.

They are those that `tune` does not train, or all that training began from where the objective
compares with them. `base.safetensors` is written once, when the run begins from another one, so
that the folder is whole by itself. Its tensors are named and typed like those of
`weights.safetensors`; `step` and `fingerprint` in its metadata are those of the run that they come
from.
"""

import shutil
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mdlm.errors import InputError
from mdlm.files import replaced
from mdlm.runs import digests, weights
from mdlm.runs.folder import BASE, RunFolder
from mdlm.types import ArrayTree


def write(folder: RunFolder, base: ArrayTree, *, step: int, fingerprint: str | None) -> None:
    """Writes the arrays into a run folder. All host processes call it, and one writes."""
    held = jax.tree.map(lambda a: _on_host(a, folder.writes), base)
    if folder.writes:
        weights.write(
            folder.path, held, step=step, fingerprint=fingerprint, name=BASE, which="base"
        )


def _on_host(array: jax.Array, wanted: bool) -> np.ndarray | None:
    if not array.is_fully_addressable:
        whole = NamedSharding(array.sharding.mesh, PartitionSpec())  # pyright: ignore
        array = jax.jit(lambda a: a, out_shardings=whole)(array)
    return np.asarray(array) if wanted else None


def restore(folder: RunFolder, abstract: ArrayTree) -> ArrayTree:
    """Returns the arrays with the dtypes and shardings of `abstract`, of its components only. The
    file may have others.

    All host processes call it. Raises InputError if the file is missing, damaged, or lacks
    arrays.
    """
    found = weights.Weights.of(folder.path, verify=folder.verify, name=BASE)
    if found is None:
        raise InputError(f"{folder.path / BASE} is missing: restore it from a copy")
    base = found.restore(abstract, some=True, more=True)
    like: Any = abstract
    as_due = lambda a, due: a.astype(due.dtype)
    return {name: jax.tree.map(as_due, part, like[name]) for name, part in base.items()}


def copy(source: RunFolder, target: RunFolder) -> None:
    """Copies the file of one run folder to another, if there is one."""
    if (source.path / BASE).is_file():
        with digests.sealed(target.path, BASE), replaced(target.path / BASE) as new:
            shutil.copyfile(source.path / BASE, new)
