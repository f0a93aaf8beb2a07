"""The compiled programs that a `Generator` runs, on one device or on the mesh of several hosts."""

import time
from functools import partial
from typing import Any

import jax
import numpy as np

from mdlm.cluster import compiling, process_group
from mdlm.experiment.model import Model
from mdlm.parallel.mesh import replicated
from mdlm.samplers.base import Sampler
from mdlm.samplers.loop import Loop, generate
from mdlm.types import ArrayTree


class Programs:
    """`generate`, and the methods of a `Loop`, called by name; each shape compiles once.

    They are compiled apart from their runs; `compiling` counts the seconds. `mesh` is that of
    parameters which span several host processes (see `mesh_of`).
    """

    def __init__(self, sampler: Sampler, model: Model, mesh: jax.sharding.Mesh | None):
        def loop(params: ArrayTree) -> Loop:
            return Loop(sampler=sampler, diffusion=model.diffusion(params))

        self.compiling = 0.0
        self._everywhere = None if mesh is None else replicated(mesh)
        jit = partial(jax.jit, out_shardings=self._everywhere)
        self._programs = {
            "generate": jit(lambda params, *row: generate(*row, **vars(loop(params)))),
            "begin": jit(lambda params, *row: loop(params).begin(*row)),
            "advance": jit(lambda params, state: loop(params).advance(state)),
            "finish": jit(lambda params, state: loop(params).finish(state)),
        }
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, name: str, params: ArrayTree, *values: Any) -> Any:
        """Runs a program with parameters and `values`, which every host process has."""
        if self._everywhere is not None:
            values = jax.tree.map(partial(copied, to=self._everywhere), values)
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(values))
        if (name, shapes) not in self._compiled:
            began = time.perf_counter()
            with compiling.announced("the sampler"):
                lowered = self._programs[name].lower(params, *values)
                self._compiled[name, shapes] = lowered.compile()
                if self._everywhere is not None:
                    process_group.barrier()  # no process runs it while others still compile
            self.compiling += time.perf_counter() - began
        return self._compiled[name, shapes](params, *values)


def within_reach(params: ArrayTree) -> ArrayTree:
    """Returns parameters where a `Generator` can use them.

    With one host process they are put on one device. With several they stay sharded, as no single
    process may hold them all.
    """
    return params if jax.process_count() > 1 else jax.device_put(params, jax.devices()[0])


def mesh_of(params: ArrayTree) -> jax.sharding.Mesh | None:
    """The mesh of the parameters if it spans several host processes, else None."""
    sharding = jax.tree.leaves(params)[0].sharding
    return None if sharding.is_fully_addressable else sharding.mesh


def copied(value: Any, to: jax.sharding.NamedSharding) -> jax.Array:
    """Returns a value that every host process has as an array replicated on the mesh."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return value
    if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = copied(jax.random.key_data(value), to)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    whole = np.asarray(value)
    return jax.make_array_from_callback(whole.shape, to, lambda index: whole[index])
