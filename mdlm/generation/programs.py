"""The compiled programs that a `Generator` runs, on the devices of this host or on the mesh of
several hosts.

On one host each device holds all parameters and generates rows of its own, without a word to the
others: a device whose rows are done is idle. Where half of the rows of every device are done, the
others go on in a smaller batch, if the calls so far took more operations than it takes to compile
one (`WORTH`). Programs that take single steps run on one device.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Int, Key

from mdlm.cluster import compiling, process_group
from mdlm.diffusion import Diffusion
from mdlm.generation.batches import power_of_two
from mdlm.generation.by_row import ByRow
from mdlm.parallel.mesh import replicated
from mdlm.samplers.base import Sampler
from mdlm.samplers.loop import Loop
from mdlm.samplers.state import Samples, SampleState
from mdlm.types import ArrayTree

WORTH = {"cpu": 5e11}
"""Operations that take about as long as to compile a program, by platform; `WORTH_ELSE` on others.
What is compiled follows from them and not from a clock, as the size of a batch may change the last
digits of its numbers."""

WORTH_ELSE = 1e15

REPLACED = {"until": 1}
"""Programs whose state is not used again, by the number of its argument; it may hold a large
cache."""

AXIS = "rows"
"""The axis of a mesh of devices that each have rows of their own."""


class Programs:
    """`generate`, and the methods of a `Loop`, called by name; each shape compiles once.

    They are compiled apart from their runs; `compiling` counts the seconds. `params` may be
    replaced by others that lie in the same places; `devices` are those that hold all of them, at
    least one. Parameters that span several host processes stay there, and all processes get the
    results. `flops` are the operations of a network call for a row of so many tokens.
    """

    def __init__(
        self,
        sampler: Sampler,
        diffusion: Callable[[ArrayTree], Diffusion],
        params: ArrayTree,
        flops: Callable[[int], float],
    ):
        def loop(params: ArrayTree, is_valid: Any = None) -> Loop:
            return Loop(sampler=sampler, diffusion=diffusion(params), is_valid=is_valid)

        begin = lambda params, *rows: loop(params, *rows[3:]).begin(*rows[:3])
        finish = lambda params, state, *valid: loop(params, *valid).finish(state)

        def until(params: ArrayTree, entries: ArrayTree, most: Any, *valid: Any) -> ArrayTree:
            state, advance = by_row.state(entries), loop(params, *valid).advance
            goes_on = lambda state: (~state.done).sum() > most
            return by_row.entries(jax.lax.while_loop(goes_on, advance, state))

        def finished(params: ArrayTree, entries: ArrayTree, *valid: Any) -> Samples:
            out = finish(params, by_row.state(entries), *valid)
            return Samples(tokens=out.tokens, nfe=out.nfe[None])

        self.compiling = 0.0
        self.params = params
        self._flops = flops
        self.worth = WORTH.get(jax.default_backend(), WORTH_ELSE)
        by_row = self._by_row = ByRow(begin)
        mesh = mesh_of(params)
        self._everywhere = None if mesh is None else replicated(mesh)
        jit = partial(jax.jit, out_shardings=self._everywhere)
        # Those of `generate`: any number of devices, states by row.
        self._in_rows: dict[str, Callable[..., Any]] = {
            "start": lambda params, *rows: by_row.entries(begin(params, *rows)),
            "until": until,
            "finished": finished,
            "taken": lambda params, entries, at: by_row.taken(entries, at),
        }
        self._programs = {
            (name, 1): jit(made, donate_argnums=REPLACED.get(name, ()))
            for name, made in self._in_rows.items()
        }
        self._programs |= {
            ("begin", 1): jit(begin),
            ("advance", 1): jit(
                lambda params, state, *valid: loop(params, *valid).advance(state),
                donate_argnums=1,
            ),
            ("finish", 1): jit(finish),
        }
        self._compiled: dict[tuple[Any, ...], Any] = {}

    @property
    def params(self) -> ArrayTree:
        return self._params

    @params.setter
    def params(self, params: ArrayTree) -> None:
        self._params, self.devices = params, holders(params)
        self._copies: dict[int, ArrayTree] = {}

    def generate(
        self,
        keys: Key[Array, " b"],
        tokens: Int[np.ndarray, "b l"],
        is_fixed: Bool[np.ndarray, "b l"],
        *is_valid: Bool[np.ndarray, "b l"],
        parts: int = 1,
    ) -> Samples:
        """Draws samples on `parts` devices, which divide the rows. NFE is that of the device that
        calls the network most. Positions that are not `is_valid`, if it is given, are padding."""
        found, nfe, work = np.array(tokens), 0, 0.0
        rows = np.arange(len(tokens)).reshape(parts, -1)  # those that are computed, by device
        run = lambda name, *values: self._run((name, parts), *values)
        self._by_row.learn(self.params, keys, tokens, is_fixed, *is_valid)
        state, calls = run("start", keys, tokens, is_fixed, *is_valid), 0
        most = rows.shape[1] // 2
        while True:
            valid = [array[rows.reshape(-1)] for array in is_valid]
            state = run("until", state, np.int32(most), *valid)
            is_open = ~np.asarray(state.done).reshape(rows.shape)
            open_rows = int(is_open.sum(1).max())
            now = int(np.asarray(state.nfe).max())
            work += (now - calls) * rows.size / parts * self._flops(tokens.shape[1])
            calls, size = now, power_of_two(open_rows)
            is_over = open_rows == 0
            if not is_over and (size >= rows.shape[1] or work < self.worth):
                most = open_rows // 2
                continue
            out = run("finished", state, *valid)
            found[rows.reshape(-1)] = np.asarray(out.tokens)
            nfe = max(nfe, int(np.asarray(out.nfe).max()))
            if is_over:
                return Samples(tokens=found, nfe=nfe)
            # Of each device the open rows, and done ones that fill the batch up.
            at = np.argsort(~is_open, axis=1, kind="stable")[:, :size]
            rows, work, most = np.take_along_axis(rows, at, axis=1), 0.0, size // 2
            state = run("taken", state, at.reshape(-1))

    def __call__(self, name: str, *values: Any) -> Any:
        """Runs a method of the loop with `values`, which every host process has."""
        return self._run((name, 1), *values)

    def prepare(self, name: str, *values: Any) -> None:
        """Compiles a method of the loop for such values."""
        self._program((name, 1), values)

    def _run(self, which: tuple[str, int], *values: Any) -> Any:
        if self._everywhere is not None:
            values = jax.tree.map(partial(copied, to=self._everywhere), values)
        return self._program(which, values)(self._on(which[1]), *values)

    def _program(self, which: tuple[str, int], values: tuple[Any, ...]) -> Any:
        """The program compiled for values of these shapes."""
        shapes = (which, *(leaf.shape for leaf in jax.tree.leaves(values)))
        if shapes not in self._compiled:
            began = time.perf_counter()
            with compiling.announced("the sampler"):
                program = self._programs.get(which) or self._split(*which, values)
                lowered = program.lower(self._on(which[1]), *values)
                self._compiled[shapes] = lowered.compile()
                if self._everywhere is not None:
                    process_group.barrier()  # no process runs it while others still compile
            self.compiling += time.perf_counter() - began
        return self._compiled[shapes]

    def _split(self, name: str, parts: int, values: tuple[Any, ...]) -> Any:
        """A program of `generate` on several devices, each with a part of the rows and a loop of
        its own; single numbers are the same on all."""
        mesh, whole, rows = self._mesh(parts), PartitionSpec(), PartitionSpec(AXIS)
        entries = self._by_row.specs(AXIS)

        def spec(value: Any) -> Any:
            if isinstance(value, SampleState):
                return entries
            return whole if isinstance(value, np.generic) else rows

        into, out = (whole, *map(spec, values)), rows if name == "finished" else entries
        alone = jax.shard_map(
            self._in_rows[name], mesh=mesh, in_specs=into, out_specs=out, check_vma=False
        )
        places = jax.tree.map(partial(NamedSharding, mesh), into)
        return jax.jit(alone, in_shardings=places, donate_argnums=REPLACED.get(name, ()))

    def _mesh(self, parts: int) -> Mesh:
        return Mesh(np.array(self.devices[:parts]), (AXIS,))

    def _on(self, parts: int) -> ArrayTree:
        """The parameters on the first `parts` of the devices; nothing is copied."""
        if len(self.devices) == 1:
            return self._params
        if parts not in self._copies:
            here = self.devices[:parts]
            to = NamedSharding(self._mesh(parts), PartitionSpec())

            def seen(leaf: jax.Array) -> jax.Array:
                held = {shard.device: shard.data for shard in leaf.addressable_shards}
                arrays = [held[device] for device in here]
                if parts == 1:
                    return arrays[0]
                return jax.make_array_from_single_device_arrays(leaf.shape, to, arrays)

            self._copies[parts] = jax.tree.map(seen, self._params)
        return self._copies[parts]


def within_reach(params: ArrayTree) -> ArrayTree:
    """Returns parameters where a `Generator` can use them.

    With one host process each device gets all of them. With several they stay sharded, as no
    single process may hold them all.
    """
    if jax.process_count() > 1:
        return params
    return jax.device_put(params, replicated(Mesh(np.array(jax.devices()), (AXIS,))))


def holders(params: ArrayTree) -> list[Any]:
    """The devices that each hold all parameters; one device if the parameters are split."""
    found = [leaf.sharding for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    is_whole = all(each.is_fully_replicated and each.is_fully_addressable for each in found)
    if not found or not is_whole or any(each.device_set != found[0].device_set for each in found):
        return jax.devices()[:1]
    return sorted(found[0].device_set, key=lambda device: device.id)


def mesh_of(params: ArrayTree) -> jax.sharding.Mesh | None:
    """The mesh of the parameters if it spans several host processes, else None."""
    leaves = jax.tree.leaves(params)
    if not leaves or leaves[0].sharding.is_fully_addressable:
        return None
    return leaves[0].sharding.mesh


def copied(value: Any, to: jax.sharding.NamedSharding) -> jax.Array:
    """Returns a value that every host process has as an array replicated on the mesh."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return value
    if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = copied(jax.random.key_data(value), to)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    whole = np.asarray(value)
    return jax.make_array_from_callback(whole.shape, to, lambda index: whole[index])
