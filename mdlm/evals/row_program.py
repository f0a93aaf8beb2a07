"""A compiled function of rows, evaluated on any number of them, a batch at a time, on a mesh."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from mdlm.cluster import compiling
from mdlm.parallel.mesh import on, put_on_mesh, replicated, row_parts, rows_here
from mdlm.types import ArrayTree

Rows = dict[str, np.ndarray]
"""Arrays by name, each with a row's values along its first axis; scalars hold for all rows."""


class RowProgram:
    """Evaluates `(params, key, rows) -> values [b ...]`; compiles once per length of rows.

    What is returned for a row must not depend on the others of its batch.

    Args:
        function: takes parameters, a key, and `Rows` as arrays on devices; returns values, float32.
        batch_size: rows evaluated at a time, rounded up to what the mesh divides.
        what: the name of the program in the announcement of its compilation.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        params: ArrayTree,
        *,
        mesh: Mesh,
        batch_size: int,
        what: str,
    ):
        def evaluate(params, key, rows):
            with on(mesh):
                return function(params, key, rows)

        parts = row_parts(mesh)
        self.size = max(1, math.ceil(batch_size / parts)) * parts
        self.params, self.mesh, self.what = params, mesh, what
        self._program = jax.jit(evaluate, out_shardings=replicated(mesh))
        self._compiled: set[tuple[tuple[int, ...], ...]] = set()

    def __call__(
        self,
        key: Any,
        make: Callable[[Int[np.ndarray, " b"]], Rows],
        count: int,
        report: Callable[[int], None] = lambda done: None,
    ) -> Float[np.ndarray, "n ..."]:
        """Returns the values of `count` rows, which `make` makes from their indices.

        `report` gets the rows that were evaluated since it was last called.
        """
        here = rows_here(self.mesh, self.size)
        found = []
        for start in range(0, count, self.size):
            # The last batch is filled with the last row.
            rows = make(np.minimum(np.arange(start, start + self.size), count - 1))
            mine = {name: value[here] if value.ndim else value for name, value in rows.items()}
            inputs = self.params, key, put_on_mesh(self.mesh, mine)
            shapes = tuple(np.shape(value) for value in rows.values())
            if shapes not in self._compiled:
                compiling.compile_together(self._program, *inputs, what=self.what)
                self._compiled.add(shapes)
            found.append(np.asarray(jax.device_get(self._program(*inputs)), np.float64))
            report(min(self.size, count - start))
        return np.concatenate(found)[:count] if found else np.zeros(0)
