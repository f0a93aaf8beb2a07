"""What `benchmarks.few_steps` compares: losses that a trained network goes on with, and a sampler.

t is uniform for each row, z_t the row masked to t, w = 1 / t the weight of the bound, p the network
and T a frozen one, the teacher. All losses are means over the tokens of a batch.

    plain       the bound: w CE(x_i) at masked i                                        (control)
    sharpened   the bound + beta (mean entropy of p where its likeliest token is right) (CAP)
    repaired    z_t with some visible tokens replaced: w CE at masked i + CE at visible i (T2T)
    redrafted   the bound + CE at all tokens of z_t filled by the network    (T2T of own drafts)
    judged      the bound + BCE of a head: is a token that p wrote the true one?        (PRISM)
    stepped     w KL(T after two steps from t to t - gap || p(z_t)) at masked i         (SDTT)
    coupled     w KL(T(z_s) || p(z_t)) at masked i, s = t - gap, the same reveal times  (MCD)

In the last two the teacher is the student of the round before, and the gap doubles in each round.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.draws import categorical_by_position, uniforms
from mdlm.keys import by_row, stream
from mdlm.objectives import Nelbo
from mdlm.objectives.base import noised, uniform_of_rows
from mdlm.samplers import Parallel, PathPlanning
from mdlm.samplers.parallel import BlockState
from mdlm.samplers.path_planning import highest, kept_of
from mdlm.samplers.state import SampleState, removed, step_keys
from mdlm.times import LowDiscrepancy
from mdlm.types import ArrayTree, Batch, NetInput

T_MIN = 1e-3
LEAST = -50.0
"""Replaces log 0, whose product with 0 is NaN."""
Judge = Callable[[Float[Array, "b l d"]], Float[Array, "b l"]]
"""A head: logits of "this token is right" from the hidden states."""


@dataclass(frozen=True, kw_only=True)
class Nets:
    """What a loss reads: the network that is trained, its head, and the teacher."""

    student: Diffusion
    teacher: Diffusion
    judge: Judge
    gap: Any  # Float[Array, ""], from t to s


Loss = Callable[[Key[Array, ""], Batch, Nets], Array]


def plain(key: Key[Array, ""], batch: Batch, nets: Nets) -> Array:
    return Nelbo()(key, batch, nets.student).total / batch.tokens.size


def noise(key: Key[Array, ""], batch: Batch, nets: Nets) -> tuple[Array, Array, Array, Array]:
    """Returns t, z_t, where it is masked, and the weights of masked positions."""
    t = jnp.maximum(uniform_of_rows(LowDiscrepancy(), key, batch), T_MIN)
    z_t = noised(nets.student.process, key, batch, t)
    is_masked = nets.student.process.is_masked(z_t)
    return t, z_t, is_masked, jnp.where(is_masked, 1 / t, 0.0)


def log_p(diffusion: Diffusion, tokens: Array, t: Array) -> Float[Array, "b l v"]:
    """Returns the network's log-probabilities at all positions, at visible ones too."""
    logits = diffusion.denoise(NetInput(tokens=tokens, t=t)).logits()
    logits, _ = diffusion.parameterization.over_vocabulary(logits)
    return jnp.maximum(jax.nn.log_softmax(logits, axis=-1), LEAST)


def nll(found: Float[Array, "b l v"], tokens: Int[Array, "b l"]) -> Float[Array, "b l"]:
    return -jnp.take_along_axis(found, tokens[..., None], axis=-1)[..., 0]


def mean_where(values: Array, where: Array) -> Array:
    return jnp.where(where, values, 0.0).sum() / jnp.maximum(where.sum(), 1)


def sharpened(beta: float) -> Loss:
    def loss(key: Key[Array, ""], batch: Batch, nets: Nets) -> Array:
        t, z_t, is_masked, weight = noise(key, batch, nets)
        found = log_p(nets.student, z_t, t)
        entropy = -(jnp.exp(found) * found).sum(-1)
        is_right = is_masked & (found.argmax(-1) == batch.tokens)
        return (weight * nll(found, batch.tokens)).mean() + beta * mean_where(entropy, is_right)

    return loss


def repaired(most: float = 0.5) -> Loss:
    """In half of the rows visible tokens become uniform ones, with a probability that is uniform
    in [0, `most`] for each row."""

    def loss(key: Key[Array, ""], batch: Batch, nets: Nets) -> Array:
        t, z_t, is_masked, weight = noise(key, batch, nets)
        b, l = z_t.shape
        rate = most * uniforms(by_row(stream(key, "rate"), batch.row), 1)
        rate = rate * (batch.row % 2 == 0)[:, None]
        u = uniforms(by_row(stream(key, "where"), batch.row), l)
        symbols = nets.student.process.mask_id
        drawn = categorical_by_position(
            by_row(stream(key, "which"), batch.row), jnp.zeros((b, l, symbols))
        )
        found = log_p(nets.student, jnp.where(~is_masked & (u < rate), drawn, z_t), t)
        error = nll(found, batch.tokens)
        return (weight * error).mean() + mean_where(error, ~is_masked)

    return loss


def redrafted(key: Key[Array, ""], batch: Batch, nets: Nets) -> Array:
    """The masked tokens are written by the network, all at once, and it learns from the draft too:
    CE at all tokens of it (arXiv:2606.17175)."""
    t, z_t, is_masked, weight = noise(key, batch, nets)
    found = log_p(nets.student, z_t, t)
    keys = by_row(stream(key, "which"), batch.row)
    drawn = categorical_by_position(keys, jax.lax.stop_gradient(found))
    draft = jnp.where(is_masked, drawn, z_t)
    again = log_p(nets.student, draft, jnp.full_like(t, T_MIN))
    return (weight * nll(found, batch.tokens)).mean() + nll(again, batch.tokens).mean()


def judged(key: Key[Array, ""], batch: Batch, nets: Nets) -> Array:
    """Some masked positions, a share uniform in (0, 1/2], are written by the network. Both it and
    its head are trained, the network by the bound too."""
    t, z_t, is_masked, weight = noise(key, batch, nets)
    found = log_p(nets.student, z_t, t)
    keys = by_row(stream(key, "write"), batch.row)
    share = 0.5 * uniforms(by_row(stream(key, "share"), batch.row), 1)
    is_written = is_masked & (uniforms(keys, z_t.shape[1]) < share)
    drawn = categorical_by_position(
        by_row(stream(key, "which"), batch.row), jax.lax.stop_gradient(found)
    )
    y = jnp.where(is_written, drawn, z_t)
    quality = nets.judge(nets.student.denoise(NetInput(tokens=y, t=t * (1 - share))).hidden)
    is_right = y == batch.tokens
    bce = jax.nn.softplus(jnp.where(is_right, -quality, quality))
    return (weight * nll(found, batch.tokens)).mean() + mean_where(bce, is_written)


def stepped(reverse: bool) -> Loss:
    """With `reverse`, KL(p || T), which seeks the modes of the teacher."""

    def loss(key: Key[Array, ""], batch: Batch, nets: Nets) -> Array:
        t, z_t, is_masked, weight = noise(key, batch, nets)
        target = two_steps(key, batch, nets, z_t, t)
        found = log_p(nets.student, z_t, t)
        pair = (found, target) if reverse else (target, found)
        return (weight * divergence(*pair)).mean()

    return loss


def two_steps(
    key: Key[Array, ""], batch: Batch, nets: Nets, z_t: Int[Array, "b l"], t: Float[Array, "b 1"]
) -> Float[Array, "b l v"]:
    """Returns the teacher's distribution of each masked token when it is written in one of two
    steps from t to t - gap, else that of the second step."""
    process, z = nets.teacher.process, z_t
    target = jnp.zeros((*z.shape, nets.teacher.parameterization.ids()[1]))  # read at masks only
    for number in range(2):
        late = jnp.maximum(t - nets.gap * number / 2, T_MIN)
        early = jnp.maximum(t - nets.gap * (number + 1) / 2, 0.0)
        found = log_p(nets.teacher, z, late)
        is_open = process.is_masked(z)
        target = jnp.where(is_open[..., None], found, target)
        keys = by_row(stream(key, f"step {number}"), batch.row)
        u = uniforms(by_row(stream(key, f"when {number}"), batch.row), z.shape[1])
        drawn = categorical_by_position(keys, found).astype(z.dtype)
        z = jnp.where(is_open & (u < process.reveal_probability(late, early)), drawn, z)
    return jax.lax.stop_gradient(target)


def coupled(key: Key[Array, ""], batch: Batch, nets: Nets) -> Array:
    t, z_t, is_masked, weight = noise(key, batch, nets)
    s = jnp.maximum(t - nets.gap, 0.0)
    z_s = noised(nets.student.process, key, batch, s)  # the same uniforms: masked at s, then at t
    one_hot = jax.nn.one_hot(batch.tokens, nets.student.parameterization.ids()[1])
    truth = jnp.where(one_hot > 0, 0.0, LEAST)
    is_open = nets.student.process.is_masked(z_s)[..., None]
    target = jnp.where(is_open, log_p(nets.teacher, z_s, jnp.maximum(s, T_MIN)), truth)
    target = jax.lax.stop_gradient(target)
    return (weight * divergence(target, log_p(nets.student, z_t, t))).mean()


def divergence(first: Float[Array, "b l v"], second: Float[Array, "b l v"]) -> Array:
    """KL(first || second) of two distributions, given as logarithms."""
    return (jnp.exp(first) * (first - second)).sum(-1)


def judge_of(params: ArrayTree) -> Judge:
    """The head with its parameters: a hidden layer and a number for each position."""

    def judge(hidden: Float[Array, "b l d"]) -> Float[Array, "b l"]:
        x = jax.nn.gelu(hidden.astype(jnp.float32) @ params["inner"])
        return (x @ params["outer"])[..., 0] + params["bias"]

    return judge


def new_judge(key: Key[Array, ""], width: int) -> ArrayTree:
    normal = lambda name, shape: jax.random.normal(stream(key, name), shape) / shape[0] ** 0.5
    return {
        "inner": normal("inner", (width, width)),
        "outer": 0.1 * normal("outer", (width, 1)),
        "bias": jnp.zeros(()),
    }


@dataclass(frozen=True, kw_only=True)
class Judged(PathPlanning):
    """Each call masks the `again` worst visible tokens again, by a head on the network, and writes
    as many masked positions as keep to the grid, in random order (PRISM, arXiv:2510.01384). With
    `judge` None the worst are random."""

    again: int = 2
    judge: Judge | None = None

    def step(self, state: SampleState, diffusion: Diffusion) -> SampleState:
        process = diffusion.process
        t, s = self.times(state)
        is_last = state.step >= self.steps - 1
        is_open = ~state.is_fixed
        is_masked = is_open & process.is_masked(state.tokens)
        told = diffusion.denoise(NetInput(tokens=state.tokens, t=t))
        logits, _ = diffusion.parameterization.over_vocabulary(told.logits())
        drawn = categorical_by_position(step_keys(state, "which"), logits)
        random = uniforms(step_keys(state, "order"), state.tokens.shape[1])
        quality = random if self.judge is None else self.judge(told.hidden)
        kept = kept_of(is_open, jnp.where(is_last, 0.0, s))
        is_visible = is_open & ~is_masked
        # No more are masked again than the grid leaves masked after this step.
        left = is_open.sum(-1, keepdims=True) - kept
        is_again = highest(-quality, is_visible, jnp.minimum(self.again, left))
        missing = kept - (is_visible & ~is_again).sum(-1, keepdims=True)
        is_written = highest(random, is_masked, missing)
        state = replace(
            state,
            tokens=jnp.where(is_written, drawn.astype(state.tokens.dtype), state.tokens),
            nfe=state.nfe + 1,
        )
        state = removed(state, is_again, process.mask_id)
        return replace(state, done=jnp.full_like(state.done, is_last))


@dataclass(frozen=True, kw_only=True)
class Redrawn(Parallel):
    """Writes in random order, in `writes` calls, then draws all tokens again in each of `redraws`
    calls, from what a network that was trained to repair tokens says of them."""

    writes: int = 1
    redraws: int = 1

    def step(self, state: BlockState, diffusion: Diffusion) -> BlockState:
        is_written = ~diffusion.process.is_masked(state.tokens).any()
        after = jax.lax.cond(
            is_written,
            lambda: self.redrawn(state, diffusion),
            lambda: super(Redrawn, self).step(state, diffusion),
        )
        is_last = state.step >= self.writes + self.redraws - 1
        return replace(after, done=jnp.full_like(state.done, is_last))

    def redrawn(self, state: BlockState, diffusion: Diffusion) -> BlockState:
        found = log_p(diffusion, state.tokens, jnp.full((len(state.tokens), 1), T_MIN))
        drawn = categorical_by_position(step_keys(state, "redraw"), found)
        tokens = jnp.where(state.is_fixed, state.tokens, drawn.astype(state.tokens.dtype))
        return replace(state, tokens=tokens, nfe=state.nfe + 1)
