"""The memory of a training step on each device, computed without running or compiling it.

The size of the state follows from its shapes and their shardings, to the byte. Temporaries are
estimated from the residuals that JAX saves in the forward pass for the backward pass.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from mdlm.cluster.jax_private import cudnn_assumed
from mdlm.diffusion import Diffusion
from mdlm.experiment.model import Model
from mdlm.keys import stream
from mdlm.models.layers import compute_dtype
from mdlm.models.network import count_parameters
from mdlm.models.readout import chunk_size, positions_per_chunk
from mdlm.names import EMBED, HEAD, STACK
from mdlm.parallel.mesh import (
    AXES,
    FSDP,
    SEQUENCE,
    TENSOR,
    by_rows,
    on,
    platform,
    replicated,
    row_parts,
)
from mdlm.train.step import BASE, abstract_state
from mdlm.types import ArrayTree, Batch, Prediction

SAMPLED = 64
"""Rows in the estimate of the fraction of scored tokens."""
HELD = 4
"""Float32 arrays of the size of a chunk of logits that are held at once: logits, their gradient,
softmax and its intermediate."""


def shapes(model: Model) -> ArrayTree:
    """Returns the shapes of the parameters, without shardings; computes nothing."""
    return jax.eval_shape(model.init, jax.random.key(0))


def abstract_batch(model: Model, mesh: Mesh | AbstractMesh) -> Batch:
    """Returns shapes and shardings of a batch, with all fields that the data may have."""
    e = model.experiment
    packing, rows = e.data.packing, e.train.batch_size

    def array(shape, dtype):
        sharding: Any = by_rows if shape else replicated
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(mesh))

    tokens = (rows, packing.length)
    return Batch(
        tokens=array(tokens, jnp.int32),
        loss_mask=array(tokens, bool),
        row=array((rows,), jnp.int32),
        rows=array((), jnp.int32),
        is_valid=array(tokens, bool) if packing.hides_padding else None,
        segment_ids=array(tokens, jnp.int32) if packing.splits_attention else None,
    )


def on_each(tree: ArrayTree) -> float:
    """Returns the bytes on one device of a tree of shapes with shardings."""

    def size(leaf) -> float:
        sharding: NamedSharding = leaf.sharding
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return float(sum(size(leaf) for leaf in jax.tree.leaves(tree)))


def given_bytes(model: Model, mesh: Mesh | AbstractMesh) -> tuple[dict[str, float], float]:
    """Returns the bytes on one device of the arguments of a step, by part, and of one gradient."""
    tx = model.experiment.updates()
    state = abstract_state(model, tx, mesh)
    names = {"parameters": "params", "optimizer": "opt_state", "average": "ema"}
    base = on_each(state.pop(BASE, {}))
    parts = {part: on_each(state.pop(name)) for part, name in names.items()}
    parts["parameters"] += base
    parts["other"] = on_each((state, abstract_batch(model, mesh)))
    return parts, parts["parameters"]


class Unread(Prediction):
    """A prediction of zeros, to trace which logits the objective requests."""

    def __init__(self, columns: int, shape: tuple[int, ...]):
        self.vocab_size, self.shape = columns, shape

    def logits(self, at=None):
        return jnp.zeros((*(self.shape if at is None else at.shape), self.vocab_size))

    def reduce_rows(self, fn, rows, weight, shared=None):
        return jnp.zeros(()), jnp.zeros(weight.shape)


def scored_share(model: Model) -> float:
    """Returns the mean fraction of the positions of a row whose logits a training step computes."""
    length, rows = model.experiment.data.packing.length, SAMPLED
    process = model.process.bind(model.process.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.vocab.size - 1, (rows, length))
    batch = Batch(
        tokens=jnp.asarray(tokens, jnp.int32),
        loss_mask=jnp.ones((rows, length), bool),
        row=jnp.arange(rows, dtype=jnp.int32),
        rows=jnp.asarray(rows, jnp.int32),
    )

    # Under jit, values for the loss only, such as logits, are not computed.
    unread = Diffusion(
        process=process,
        parameterization=model.parameterization,
        denoise=lambda inputs, *, key=None: Unread(model.columns, inputs.tokens.shape),
    )

    @jax.jit
    def share(batch):
        terms = model.objective(jax.random.key(0), batch, replace(unread, reference=unread))
        return terms.scored.sum() / (rows * length)

    return float(share(batch))


def estimated_temporaries(model: Model, mesh: AbstractMesh) -> float:
    """Returns the estimated bytes of a step's temporaries on one device, without a compiler.

    The sum of: the residuals of a device's rows for the backward pass; all residuals of one more
    block without rematerialisation, held during the backward pass of a block; the gradients; the
    logits that are held at once, with their gradients and softmax; and where the parameters are
    split, two gathered blocks, and the gathered head with its gradient. Devices along `sequence`
    and `tensor` share the residuals.
    """
    e = model.experiment
    rows = e.train.batch_size // (row_parts(mesh) * e.train.accumulate)
    _, gradients = given_bytes(model, mesh)
    if e.train.accumulate > 1:
        gradients *= 2
    kept = kept_bytes(model, mesh, rows)
    depth = e.network.depth
    block = 0.0
    if e.network.remat != "none":
        everything = replace(e.network, remat="none")
        block = (kept_bytes(_with_network(model, everything), mesh, rows) - kept) / depth
    shared = mesh.shape[SEQUENCE] * mesh.shape[TENSOR]
    with on(mesh):
        chunk = e.network.logits_chunk or chunk_size()
        itemsize = compute_dtype(e.network.dtype).itemsize
    positions = max(1, rows * e.data.packing.length // shared)
    at_once = positions_per_chunk(chunk, positions, model.columns)
    logits = HELD * 4 * at_once * model.columns
    gathered = 0.0
    if mesh.shape[FSDP] * shared > 1:
        network = shapes(model)["network"]
        gathered += 2 * itemsize * count_parameters(network.get(STACK, {})) / depth
        gathered /= mesh.shape[TENSOR]
        head = network.get(HEAD) or network.get(EMBED, {})  # a tied head is the table
        gathered += (itemsize + 4) * count_parameters(head)
    return (kept + max(block, 0)) / shared + gradients + logits + gathered


def _with_network(model: Model, network: Any) -> Model:
    return Model(replace(model.experiment, network=network), model.vocab, model.counts)


@contextmanager
def traced_for(mesh: AbstractMesh) -> Iterator[None]:
    """Within this context, code is traced as on the mesh's devices, of which none is present."""
    with on(mesh), cudnn_assumed() if platform() == "gpu" else nullcontext():
        yield


def kept_bytes(model: Model, mesh: AbstractMesh, rows: int) -> float:
    """Returns the bytes of the residuals of a forward pass over `rows` rows, without the
    parameters."""
    e = model.experiment
    one = replace(e, train=replace(e.train, batch_size=rows, accumulate=1))
    alone = AbstractMesh((1,) * len(AXES), AXES, abstract_device=mesh.abstract_device)
    batch = abstract_batch(Model(one, model.vocab, model.counts), alone)
    params = shapes(model)
    key = stream(jax.random.key(0), "train")

    def pulled(params, batch):
        reference = params if model.objective.needs_reference else None
        loss = lambda params: model.loss(params, key, batch, reference=reference).total
        return jax.vjp(loss, params)[1]

    with traced_for(alone):
        residuals = jax.eval_shape(pulled, params, batch)
    sizes = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    own = {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)}
    kept = [x for x in jax.tree.leaves(residuals) if (x.shape, x.dtype) not in own]
    return float(sizes(kept))
