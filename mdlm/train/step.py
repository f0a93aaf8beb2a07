"""One training step, pure: (state, batch) -> (state, metrics), compiled once for a mesh.

    gradient of  sum of losses / tokens (or examples) -> clip -> optimizer -> EMA of the parameters

The state is a plain dictionary `{step, params, opt_state, ema, watch}`. Random draws depend on the
run's key, the step, and each row's index in the global batch, so neither the mesh nor the number of
micro-batches changes them (except for dropout, which is drawn per micro-batch).

Where the experiment's `tune` keeps arrays as they are, the state has these as `base`, which no
checkpoint holds, and `params` and `ema` have only the arrays that are trained. The network is run
with both, joined. A gradient is that of the trained arrays. Where the objective compares with the
network that training began from, `base` has all its arrays.

A step whose loss, gradient, new parameters or new optimizer state are not finite is skipped: it
changes only `step` and the counters in `watch` (see `mdlm.train.guard`). Learning rate and EMA
decay follow the number of updates made.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Bool, Float, Int, Key

from mdlm.cluster import compiling
from mdlm.experiment.model import Model
from mdlm.keys import of_seed, stream
from mdlm.parallel.mesh import ROWS, on, replicated, row_parts
from mdlm.train import guard
from mdlm.types import ArrayTree, Batch, LossTerms

State = dict[str, Any]
Step = Callable[[State, Batch], tuple[State, dict[str, Array]]]

BASE = "base"
"""The part of a state that no step changes."""


def init(model: Model, tx: optax.GradientTransformation, key: Key[Array, ""]) -> State:
    """Returns the state before the first step. The EMA starts at the parameters themselves."""
    base, params = model.split(stream(key, "tune"), model.init(stream(key, "init")))
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt_state": tx.init(params),
        "ema": params,
        "watch": guard.fresh(),
        **({BASE: base} if base else {}),
    }


def saved(state: State) -> State:
    """Returns the part of a state that checkpoints hold: all but what no step changes."""
    return {name: part for name, part in state.items() if name != BASE}


def joiner(model: Model, mesh: Mesh) -> Callable[[State, ArrayTree], ArrayTree]:
    """Returns the function of a state and of its `params` or `ema` that gives the parameters of
    the network, with their shardings on the mesh."""
    if not model.tuning.keeps_base:
        return lambda state, trained: trained
    sharding = jax.tree.map(lambda a: a.sharding, model.abstract_params(mesh))

    @jax.jit
    def merged(base: ArrayTree, trained: ArrayTree) -> ArrayTree:
        params = model.merged(base, trained)
        return jax.lax.with_sharding_constraint(params, sharding)

    return lambda state, trained: merged(state[BASE], trained)


def abstract_state(
    model: Model, tx: optax.GradientTransformation, mesh: Mesh | AbstractMesh
) -> State:
    """Returns shapes, dtypes and shardings of the state; nothing is computed.

    Raises InputError if the network or its rows cannot be split over the mesh.
    """
    return model.on_mesh(mesh, jax.eval_shape(partial(init, model, tx), jax.random.key(0)))


def create_state(
    model: Model, tx: optax.GradientTransformation, mesh: Mesh, key: Key[Array, ""]
) -> State:
    """Returns the initial state, created with its sharding on the mesh."""
    sharding = jax.tree.map(lambda a: a.sharding, abstract_state(model, tx, mesh))
    with compiling.announced("the initial state"):
        return jax.jit(partial(init, model, tx), out_shardings=sharding)(key)


def ema_decay(limit: float, updates: Int[Array, ""]) -> Float[Array, ""]:
    """Decay of the EMA at its n-th update, min(limit, (1 + n) / (10 + n))."""
    n = updates.astype(jnp.float32)
    return jnp.minimum(limit, (1 + n) / (10 + n))


def compile_step(model: Model, tx: optax.GradientTransformation, mesh: Mesh) -> Step:
    """Returns the jitted training step. Its input state is donated."""
    settings = model.experiment.train
    rate = model.experiment.optimizer.rate(settings.steps)
    sharding = jax.tree.map(lambda a: a.sharding, abstract_state(model, tx, mesh))
    at_rest = partial(jax.lax.with_sharding_constraint, shardings=sharding["params"])
    joined = joiner(model, mesh)
    reference = lambda state: state[BASE] if model.objective.needs_reference else None

    def train_step(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        run_key = of_seed(model.experiment.seed)
        key = jax.random.fold_in(stream(run_key, "train"), state["step"])
        with on(mesh):
            loss = lambda params, *inputs: model.loss(
                joined(state, params), *inputs, reference=reference(state)
            )
            terms, by_time, gradient = summed(
                loss, mesh, settings.accumulate, at_rest, state["params"], key, batch
            )
        count = jnp.maximum(terms.count, 1.0)
        divisor = count if terms.examples is None else jnp.maximum(terms.examples, 1.0)
        gradient = jax.tree.map(lambda g: g / divisor, gradient)
        grad_norm = optax.tree.norm(gradient)
        is_finite = jnp.isfinite(terms.total) & jnp.isfinite(grad_norm)
        made = state["step"] - state["watch"]["skipped"]
        is_sound, updates, new = updated(state, gradient, is_finite, tx, settings.ema_decay, made)
        is_first = state["step"] % settings.log_every == 0
        watch = guard.counted(state["watch"], is_sound, by_time, is_first)
        metrics = {
            "loss": terms.total / divisor,
            "nelbo": terms.bound / count,
            "tokens": terms.count,
            "scored": terms.scored,
            "grad_norm": grad_norm,
            "update_norm": jnp.where(is_sound, optax.tree.norm(updates), 0.0),
            "param_norm": optax.tree.norm(new["params"]),
            "learning_rate": jnp.asarray(rate(made), jnp.float32),
            **guard.figures(watch, by_time),
            **{name: value / settings.accumulate for name, value in terms.scalars.items()},
        }
        kept = {name: part for name, part in state.items() if name == BASE}
        return {"step": state["step"] + 1, **new, "watch": watch, **kept}, metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(sharding, None),
        out_shardings=(sharding, replicated(mesh)),
    )


def updated(
    state: State,
    gradient: ArrayTree,
    is_finite: Bool[Array, ""],
    tx: optax.GradientTransformation,
    limit: float,
    made: Int[Array, ""],
) -> tuple[Bool[Array, ""], ArrayTree, State]:
    """Returns whether the step is sound, the optimizer's update, and `params`, `opt_state` and
    `ema` after it. These are unchanged if the step is not sound: if its loss or gradient are not
    finite (`is_finite`), or the new parameters or optimizer state. `made` updates came before,
    `limit` is the EMA's decay."""
    with jax.named_scope("optimizer"):
        updates, opt_state = tx.update(gradient, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        is_sound = is_finite & guard.all_finite((params, opt_state))
        opt_state = guard.choose(is_sound, opt_state, state["opt_state"])
        params = guard.choose(is_sound, params, state["params"])
    with jax.named_scope("ema"):
        decay = ema_decay(limit, made + 1)
        ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), state["ema"], params)
        ema = guard.choose(is_sound, ema, state["ema"])
    return is_sound, updates, {"params": params, "opt_state": opt_state, "ema": ema}


def summed(
    loss: Callable[[ArrayTree, Key[Array, ""], Batch, int | Int[Array, ""]], LossTerms],
    mesh: Mesh,
    accumulate: int,
    at_rest: Callable[[ArrayTree], ArrayTree],
    params: ArrayTree,
    key: Key[Array, ""],
    batch: Batch,
) -> tuple[LossTerms, Float[Array, "2 n"] | None, ArrayTree]:
    """Returns loss terms (as scalars), bound and count by noise level, and the gradient of `total`,
    summed over the whole batch. `loss` is that of parameters, a key, a batch and the number of its
    part; `at_rest` constrains gradients to the parameters' sharding."""

    def total(params, part, micro):
        terms = loss(params, key, micro, part)
        sums = LossTerms(
            total=terms.total,
            values=terms.values.sum(),
            bound=terms.bound.sum(),
            count=terms.count.sum(),
            scored=terms.scored.sum(),
            examples=terms.examples,
            scalars=terms.scalars,
        )
        return terms.total, (sums, guard.by_time(terms))

    gradient = jax.grad(total, has_aux=True)
    if accumulate == 1:
        grads, (terms, by_time) = gradient(params, 0, batch)
        return terms, by_time, at_rest(grads)
    micros = split(mesh, accumulate, batch)

    def add(carry, part_and_micro):
        grads, terms = gradient(params, *part_and_micro)
        before, sums = carry
        sums = at_rest(jax.tree.map(jnp.add, sums, grads))
        return (jax.tree.map(jnp.add, before, terms), sums), None

    shapes = jax.eval_shape(gradient, params, 0, jax.tree.map(lambda x: x[0], micros))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (shapes[1], shapes[0]))
    ((terms, by_time), grads), _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), micros))
    return terms, by_time, grads


def split(mesh: Mesh, accumulate: int, batch: Batch) -> Batch:
    """Returns the batch as `accumulate` micro-batches along a new first axis. No row changes its
    device."""

    def cut(x: Array) -> Array:
        if x.ndim == 0:
            return jnp.broadcast_to(x, (accumulate,))
        parts = row_parts(mesh)
        rows = x.shape[0] // (parts * accumulate)
        x = x.reshape(parts, accumulate, rows, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(accumulate, parts * rows, *x.shape[3:])
        spec = jax.sharding.PartitionSpec(None, *ROWS)
        return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))

    return jax.tree.map(cut, batch)
