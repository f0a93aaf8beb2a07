"""The chain rule in an order of one's choice, for networks that attend to the whole row.

    log p(x_known) = sum_k log p(x_s(k) | x_s(1) .. x_s(k-1), the rest masked)

A network that were the true posterior would give the same sum in every order s. Others do not: the
mean over uniform orders is a lower bound on the log of the mean probability (u-PMLM,
arXiv:2004.11579), and the spread between orders says how far the network is from any distribution.

`Greedy` says whether a response is what greedy decoding writes: of the masked tokens (of each
block) the most confident one is revealed, one at a time, as in LLaDA's check.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from mdlm.data.pairs import Encoded, rows_of
from mdlm.data.rows.base import Rows
from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.evals.likelihood import DiffusionOf, by_length
from mdlm.evals.log_likelihood import LogLikelihood
from mdlm.evals.row_program import RowProgram
from mdlm.experiment.model import Model, check_text
from mdlm.keys import of_seed
from mdlm.objectives.base import ask, score_masked
from mdlm.objectives.masked_count import time_of_share
from mdlm.processes.masked import Masked
from mdlm.types import ArrayTree, Batch, Vocab


def log_marginal(
    model: Model,
    params: ArrayTree,
    tokens: Int[np.ndarray, " l"],
    known: Bool[np.ndarray, " k"],
    given: Bool[np.ndarray, " g"],
    *,
    mesh: Mesh,
    orders: int,
    seed: int = 0,
) -> LogLikelihood:
    """Returns the log of the probability of the `known` tokens of a row, conditioned on the `given`
    ones, in nats: the mean over `orders` random orders, with the standard error over orders.

    All other tokens of the row are masked. Raises InputError if there is no known token, or the
    network does not attend to the whole row.
    """
    check_text(model)
    if not reads_any_tokens(model):
        raise InputError(
            "log_marginal: needs a masked process and a network that attends to the whole row"
        )
    if not len(tokens) == len(known) == len(given):
        lengths = f"{len(tokens)}, {len(known)} and {len(given)}"
        raise InputError(f"tokens, known and given: must be equally long, not {lengths}")
    at = np.flatnonzero(known & ~given)
    if not len(at):
        raise InputError("known: at least one token must be known that is not given")
    if orders < 1:
        raise InputError(f"orders={orders}: must be at least 1")
    random = np.random.default_rng(seed)
    drawn = np.stack([random.permutation(at) for _ in range(orders)])
    by_order = ChainRule(model.diffusion, params, mesh=mesh)(tokens, drawn, given)
    return LogLikelihood(
        value=float(by_order.mean()),
        stderr=None if orders == 1 else float(by_order.std(ddof=1) / math.sqrt(orders)),
        tokens=len(at),
        passes=orders * len(at),
        protocol=f"log p(known tokens) >= -NELBO, chain rule in {orders} random orders",
    )


def reads_any_tokens(model: Model) -> bool:
    """Whether the network predicts a token from any set of the others, the rest masked."""
    return model.experiment.network.attends == "all" and isinstance(model.process, Masked)


class ChainRule:
    """Gives log-probabilities of tokens of rows by the chain rule, each row in an order of its own;
    each length of rows compiles once. The process is masked, the network attends to the whole row.
    """

    def __init__(
        self,
        diffusion: DiffusionOf,
        params: ArrayTree,
        *,
        mesh: Mesh,
        batch_size: int = 32,
    ):
        def evaluate(params, _, rows):
            now = diffusion(params)
            rank, step, valid = rows["rank"], rows["step"], rows.get("is_valid")
            batch = Batch(tokens=rows["tokens"], loss_mask=rank >= 0, is_valid=valid, **NO)
            is_hidden = rank >= step[:, None]
            t = _time(now, is_hidden, jnp.ones_like(is_hidden) if valid is None else valid)
            return next_tokens(now, batch, rank, step, t).sum(-1)

        self._program = RowProgram(
            evaluate, params, mesh=mesh, batch_size=batch_size, what="the chain rule"
        )

    def __call__(
        self,
        tokens: Int[np.ndarray, "... l"],
        orders: Int[np.ndarray, "o n"],
        given: Bool[np.ndarray, "... l"],
        is_valid: Bool[np.ndarray, "o l"] | None = None,
        report: Callable[[int], None] = lambda done: None,
    ) -> Float[np.ndarray, " o"]:
        """Returns the log-probability, in nats, of the tokens at the n positions of each order,
        conditioned on the `given` ones; the others are masked, but for padding.

        `tokens` and `given` are one row for all orders, or one for each. `report` gets the network
        passes since it was last called.
        """
        (count, n), l = orders.shape, tokens.shape[-1]
        rank = np.full((count, l), n, np.int32)  # of a token in its order; n: never revealed
        np.put_along_axis(rank, orders, np.arange(n, dtype=np.int32)[None], axis=1)
        rank[np.broadcast_to(given, rank.shape)] = -1
        tokens = np.broadcast_to(tokens.astype(np.int32), rank.shape)
        if is_valid is not None:
            rank[~is_valid] = -1

        def make(index):
            which, step = index // n, (index % n).astype(np.int32)
            rows = {"tokens": tokens[which], "rank": rank[which], "step": step}
            return rows if is_valid is None else {**rows, "is_valid": is_valid[which]}

        nats = self._program(of_seed(0), make, count * n, report)
        return -nats.reshape(count, n).sum(axis=1)


NO: dict[str, Any] = {"row": None, "rows": None}
"""The fields of a batch that only objectives use."""


def next_tokens(
    diffusion: Diffusion,
    batch: Batch,
    rank: Int[Array, "b l"],
    step: Int[Array, " b"],
    t: Float[Array, " b #l"],
) -> Float[Array, "b l"]:
    """Returns -log p, in nats, of the tokens whose rank is the step, given those of lower rank, the
    others masked; 0 elsewhere."""
    is_next, is_hidden = (
        compare(rank, step[:, None]) for compare in (jnp.equal, jnp.greater_equal)
    )
    z_t = _masked(diffusion, batch.tokens, is_hidden)
    weight = jnp.ones(z_t.shape)
    scored = replace(batch, loss_mask=is_next)
    return score_masked(scored, diffusion, z_t=z_t, t=t, weight=weight).bound


def _masked(diffusion: Diffusion, tokens: Any, is_hidden: Any) -> Any:
    keys = jax.random.split(jax.random.key(0), len(tokens))  # a masked process draws nothing
    return jnp.where(is_hidden, diffusion.process.prior(keys, tokens.shape[1]), tokens)


def _time(diffusion: Diffusion, is_hidden: Any, is_valid: Any) -> Any:
    """Returns the time at which so many tokens are masked, for networks that are conditioned on
    it; the middle where the schedule does not say."""
    schedule, hidden = diffusion.process.schedule, is_hidden.sum(-1, keepdims=True)
    if schedule.per_token or not schedule.has_inverse:
        return jnp.full(hidden.shape, 0.5)
    return time_of_share(schedule, hidden, is_valid.sum(-1, keepdims=True))


class Greedy:
    """Says which responses greedy decoding writes; each length of rows compiles once.

    `block` is the number of tokens that are decoded together, each block after the one before; 0:
    all tokens of the response. A `causal` network is decoded token by token.
    """

    def __init__(
        self,
        diffusion: DiffusionOf,
        params: ArrayTree,
        *,
        mesh: Mesh,
        vocab: Vocab,
        lengths: Sequence[int],
        batch_size: int = 32,
        block: int = 0,
        causal: bool = False,
    ):
        self.vocab, self.lengths, self.block = vocab, lengths, 1 if causal else block

        def evaluate(params, _, rows):
            """The probability of the likeliest token, negative where it is another one."""
            now, tokens, is_hidden = diffusion(params), rows["tokens"], rows["is_hidden"]
            batch = Batch(tokens=tokens, loss_mask=is_hidden, is_valid=rows["is_valid"], **NO)
            z_t = _masked(now, tokens, is_hidden)
            t = _time(now, is_hidden, rows["is_valid"])
            asked = now.with_clean(tokens) if block and not causal else now
            seen, when = (tokens, None) if causal else (z_t, t)
            prediction = ask(asked.denoise, batch, tokens=seen, t=when, key=None)
            known = {
                "x_0": tokens,
                "z_t": _masked(now, tokens, jnp.ones_like(is_hidden)),
                "t": jnp.broadcast_to(t, tokens.shape),
            }

            def confidence(logits, known, _):
                log_p = now.parameterization.log_p0(logits, known["z_t"], known["t"])
                p = jnp.exp(log_p.max(-1))
                return jnp.where(log_p.argmax(-1) == known["x_0"], p, -p)

            return prediction.reduce_rows(confidence, known, is_hidden.astype(jnp.float32))[1]

        self._program = RowProgram(
            evaluate, params, mesh=mesh, batch_size=batch_size, what="the greedy check"
        )

    def __call__(self, pairs: Sequence[Encoded]) -> Bool[np.ndarray, " n"]:
        """Returns for each pair whether greedy decoding of its prompt writes its response."""
        matches = np.ones(len(pairs), bool)
        for length, own in by_length(pairs, self.lengths):
            rows = rows_of([pairs[i] for i in own], length, self.vocab)
            is_hidden = rows.loss_mask.copy()
            blocks = np.arange(length) // (self.block or length)
            while len(open_ := np.flatnonzero(is_hidden.any(axis=1) & matches[own])):
                signed = self._confidence(rows, is_hidden, open_)
                for block in np.unique(blocks[is_hidden[open_].any(axis=0)]):
                    inside = is_hidden[open_] & (blocks == block)[None]
                    best = np.where(inside, np.abs(signed), -1.0).argmax(axis=1)
                    some = inside.any(axis=1)
                    is_right = signed[np.arange(len(open_)), best] > 0
                    matches[own[open_]] &= is_right | ~some
                    is_hidden[open_[some], best[some]] = False
        return matches

    def _confidence(
        self, rows: Rows, is_hidden: Bool[np.ndarray, "n l"], at: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, "m l"]:
        def make(index):
            here = at[index]
            return {
                "tokens": rows.tokens[here],
                "is_valid": rows.is_valid[here],
                "is_hidden": is_hidden[here],
            }

        return self._program(jax.random.key(0), make, len(at))
