"""Bounds of the likelihood of a split from both sides (`evals.sides`), by paths through its rows.

A path reveals the scored tokens of a row (of each of its diffusion blocks) one after another, each
at the time at which it has its share of masks. It costs a network call for each token of a row, or
of a block, as all blocks are computed together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from mdlm.data.loader import evaluation_batches
from mdlm.data.rows.base import RowSet
from mdlm.errors import InputError
from mdlm.evals.likelihood import DiffusionOf
from mdlm.evals.nll import Metric, summarise
from mdlm.evals.orders import NO, next_tokens
from mdlm.evals.row_program import RowProgram
from mdlm.evals.sides import ENOUGH, noise, sides
from mdlm.experiment.model import Model, check_text
from mdlm.objectives.block import BlockNelbo
from mdlm.objectives.masked_count import OrderAgnostic, refuse_without_inverse
from mdlm.types import ArrayTree, Batch

Report = Callable[[int, int], None]
"""Called with `(rows evaluated, rows to evaluate)`."""


@dataclass(frozen=True)
class Bracket:
    """Metrics by protocol: the NELBO, the bound of all paths, and TUBE, if enough of the paths
    carry the mean (`sides.ENOUGH`).

    `loose` is the nats per token between the first and the last, None without TUBE. `effective` is
    the mean number of paths that count (`Sides.effective`).
    """

    metrics: list[Metric]
    paths: int
    loose: float | None
    effective: float


def bracket(
    model: Model,
    params: ArrayTree,
    rows: RowSet,
    *,
    mesh: Mesh,
    paths: int,
    protocol: Callable[[str], str],
    batch_size: int = 32,
    seed: int = 0,
    report: Report = lambda done, of: None,
) -> Bracket:
    """Returns bounds of the likelihood of rows, from `paths` paths through each.

    `protocol` makes a protocol from words about a number. Raises InputError as `check`.
    """
    block = check(model, paths)
    through = Paths(model.diffusion, params, mesh=mesh, batch_size=batch_size, block=block)
    first_is_given = getattr(model.reported, "first_is_given", False)
    log_p, counts, is_partial = [], [], False
    for number, batch in enumerate(evaluation_batches(rows, 1)):
        row, rows_in_all = batch.pop("row"), batch.pop("rows")
        fields = {name: value[0] for name, value in batch.items()}
        if first_is_given:
            fields["loss_mask"] = fields["loss_mask"] & (np.arange(rows.length) > 0)
        scored = scored_tokens(fields)
        is_partial |= bool((fields.get("is_valid", True) & ~scored).any())
        level = np.random.default_rng((seed, int(row[0]))).random((paths, rows.length))
        count = scored.reshape(-1, block or rows.length).sum(axis=-1)
        if count.any():
            log_p.append(through(fields, level)[:, count > 0].T)
            counts.append(count[count > 0])
        report(number + 1, int(rows_in_all))
    given = ", given the unscored tokens" if is_partial else ""
    return summary(log_p, counts, lambda words: protocol(words + given))


def summary(
    log_p: list[Float[np.ndarray, "_ k"]],
    counts: list[Int[np.ndarray, " _"]],
    protocol: Callable[[str], str],
) -> Bracket:
    """Returns the bracket from the log-probabilities of the blocks of each row, and their scored
    tokens."""
    if not counts:
        raise InputError("no token of these rows is scored: there is nothing to bound")
    blocks = np.concatenate(log_p)
    found, errors, k = sides(blocks), noise(blocks), blocks.shape[1]
    starts = np.cumsum([0, *(len(count) for count in counts[:-1])])
    tokens = np.array([count.sum() for count in counts])[None]
    effective = float(found.effective.mean())
    is_told = effective >= ENOUGH * k
    metrics = []
    for name, words in {
        "single": f"NELBO over random orders, {k} for each row",
        "mean": f"upper bound of {k} orders together (importance-weighted)",
        "tube": f"lower bound of the NLL in expectation, TUBE of {k} orders",
    }.items():
        if name == "tube" and not is_told:
            continue
        by_row = np.add.reduceat(getattr(found, name), starts)[None]
        metrics += summarise(
            by_row,
            tokens,
            protocol=protocol(words),
            noise=errors.get(name),
            is_below=name == "tube",
        )
    loose = float((found.single.sum() - found.tube.sum()) / tokens.sum()) if is_told else None
    return Bracket(metrics, k, loose, effective)


def check(model: Model, paths: int) -> int:
    """Returns the size of the diffusion blocks of a model, 0 if a row is one block.

    Raises InputError if the likelihood of the model is no mixture over paths, or `paths` is below
    2.
    """
    if paths < 2:
        raise InputError(f"paths={paths}: must be at least 2, as each is compared with the others")
    check_text(model)
    network = model.experiment.network
    if model.reported.is_exact or network.attends == "causal":
        raise InputError("the likelihood of this run is exact: there is nothing to bound")
    size = getattr(network, "block_size", 0)
    objective = BlockNelbo(block_size=size) if size else OrderAgnostic()
    reason = objective.incompatibility(model.process, model.parameterization, network)
    reason = reason or refuse_without_inverse(model.process.schedule)
    if reason is not None:
        raise InputError(f"bounds from both sides by paths: {reason}")
    return size


class Paths:
    """Computes log p(x | path) of rows; compiles once per length of rows.

    `block` is the number of tokens of a diffusion block, 0 if a row is one.
    """

    def __init__(
        self,
        diffusion: DiffusionOf,
        params: ArrayTree,
        *,
        mesh: Mesh,
        batch_size: int = 32,
        block: int = 0,
    ):
        def evaluate(params, _, rows):
            now = diffusion(params)
            times, step, rank = (rows[name] for name in ("t", "step", "rank"))
            batch = Batch(**{x: rows[x] for x in rows if x not in ("t", "step", "rank")}, **NO)
            b, _ = batch.tokens.shape
            t = jnp.repeat(times, block, axis=1) if block else times
            asked = now.with_clean(batch.tokens) if block else now
            return next_tokens(asked, batch, rank, step, t).reshape(b, times.shape[1], -1).sum(-1)

        def times_of(params, level):
            schedule = diffusion(params).process.schedule
            return schedule.time_of(level * schedule.one_minus_alpha(jnp.ones(())))

        self.block, self.params, self.times_of = block, params, jax.jit(times_of)
        self._program = RowProgram(
            evaluate, params, mesh=mesh, batch_size=batch_size, what="the chain rule"
        )

    def __call__(
        self, fields: dict[str, np.ndarray], level: Float[np.ndarray, "k l"]
    ) -> Float[np.ndarray, "k n"]:
        """Returns the log-probability, in nats, of each of the n blocks of a row on k paths.

        `fields` are those of `Batch` without the batch's axis. A path is given by the uniform
        number of each token: tokens are revealed from the largest to the smallest, each at the time
        at which this share of tokens is masked.
        """
        scored = scored_tokens(fields)
        rank, reveal = ranks(level, scored, self.block or len(scored))
        k, n, steps = reveal.shape
        times = np.asarray(self.times_of(self.params, jnp.asarray(reveal, jnp.float32)))

        def make(index: Int[np.ndarray, " b"]) -> dict[str, np.ndarray]:
            path, step = index // steps, index % steps
            row = {x: np.broadcast_to(v, (len(index), *v.shape)) for x, v in fields.items()}
            own = {"rank": rank[path], "step": step.astype(np.int32), "t": times[path, :, step]}
            return {**row, **own}

        nats = self._program(jax.random.key(0), make, k * steps)
        return -nats.reshape(k, steps, n).sum(axis=1)


def scored_tokens(fields: dict[str, np.ndarray]) -> Bool[np.ndarray, " l"]:
    """Returns the tokens of a row whose probability is computed: valid and in the loss mask."""
    mask = fields["loss_mask"]
    return mask & fields["is_valid"] if "is_valid" in fields else mask


def ranks(
    level: Float[np.ndarray, "k l"], scored: Bool[np.ndarray, " l"], block: int
) -> tuple[Int[np.ndarray, "k l"], Float[np.ndarray, "k n s"]]:
    """Returns the rank of each token in its block's order, -1 if it is not scored, and the level
    at which the token of each rank is revealed, 0.5 where a block has fewer."""
    k, n = len(level), len(scored) // block
    known = np.where(scored, level, -1.0).reshape(k, n, block)
    order = np.argsort(-known, axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1, kind="stable").reshape(k, -1)
    rank = np.where(scored, rank, -1).astype(np.int32)
    steps = int(scored.reshape(n, block).sum(axis=-1).max())
    reveal = np.take_along_axis(known, order, axis=-1)[..., :steps]
    return rank, np.where(reveal < 0, 0.5, reveal)
