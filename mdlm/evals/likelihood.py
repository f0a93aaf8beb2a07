"""log p(response | prompt) of single pairs, in nats, with its Monte Carlo standard error.

A causal network, and block diffusion with blocks of one token, give it exactly, by the chain rule.
For others there are two lower bounds:
"counts": K uniform on {1..n}, then K of the n tokens of the response masked, a uniform subset:
    E (n / K) sum_{i masked} log p(x_i | prompt, z),
    the mean over all orders of revealing the response of its log-probability in that order
    (see `objectives.masked_count`), LLaDA's estimate (arXiv:2502.09992).
"nelbo": minus the bound that the run reports.

The draws estimate the bound without bias. The prompt is clean at all times: the network reads its
tokens wherever noise put others. This is the bound of a process that noises the response only, for
every process that noises each position by itself.

The noise levels of a pair are stratified over its passes, each level is drawn twice, and a draw
follows from the seed, the number of the pair and the pass, not from the batch that it is part of.
"""

import math
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from mdlm.data.pairs import Encoded, check_lengths, rows_of
from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.evals import monte_carlo
from mdlm.evals.log_likelihood import LogLikelihood, Passes
from mdlm.evals.row_program import RowProgram
from mdlm.experiment.model import Model, check_text
from mdlm.keys import by_row, of_seed
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.objectives.base import Objective
from mdlm.objectives.block import BlockNelbo
from mdlm.objectives.masked_count import OrderAgnostic
from mdlm.parallel.mesh import SEQUENCE
from mdlm.times import TimeSampler, stratify
from mdlm.types import ArrayTree, Batch, Vocab

By = Literal["counts", "nelbo"]
SHORTEST = 32
"""The shortest rows that are compiled for, if a row of the run is longer."""
MOST_ROWS = 2**30
"""Rows that are told apart by 32 bits."""

DiffusionOf = Callable[[ArrayTree], Diffusion]
Report = Callable[[int, int], None]
"""Called with the pairs that were scored in a round, and all of them."""


@dataclass(frozen=True, kw_only=True)
class OverPasses(TimeSampler):
    """Times stratified over the passes of each row: row % strata is the stratum."""

    strata: int

    def sample(self, key, row, rows):
        u = jax.vmap(jax.random.uniform)(by_row(key, row))
        return stratify(u, row % self.strata, jnp.asarray(self.strata))


def objective_of(model: Model, by: By | None = None) -> tuple[Objective, str]:
    """Returns the objective that scores pairs, and its protocol.

    It is an exact one where that is possible; else, without `by`, "counts", or "nelbo" where counts
    do not fit. Raises InputError, with the reason, if `by` does not fit the run.
    """
    check_text(model)
    e, process = model.experiment, model.process
    exact = "log p(response | prompt), exact, token by token"
    if e.network.attends == "causal":
        return Autoregressive(), exact
    if getattr(e.network, "block_size", 0) == 1:
        return BlockNelbo(block_size=1, low=1.0, high=1.0), exact
    counts = OrderAgnostic()
    reason = counts.incompatibility(process, model.parameterization, e.network)
    if by == "counts" and reason is not None:
        raise InputError(f"by=counts: {reason}; use by=nelbo")
    chosen = model.reported if by == "nelbo" or reason is not None else counts
    bound = chosen.protocol_on(process).removesuffix(", given the unscored tokens")
    if "no bound" in bound.lower():
        raise InputError(f"by=nelbo: this run reports {bound}; use by=counts")
    is_whole = bound.startswith("NELBO,")  # no term is left out
    return chosen, f"log p(response | prompt) {'>=' if is_whole else '~'} -{bound}"


def lengths_of(longest: int, multiple: int) -> list[int]:
    """Returns the lengths of rows to compile for, ascending, all of them multiples, up to
    `longest`."""
    found, step = {longest}, SHORTEST
    while step < longest:
        found |= {math.ceil(n / multiple) * multiple for n in (step, 3 * step // 2)}
        step *= 2
    return sorted(n for n in found if n <= longest)


class Likelihood:
    """Scores pairs with given parameters; each length of rows compiles once.

    Args:
        diffusion: the process and the network, from parameters.
        objective, protocol: see `objective_of`.
        longest: the most tokens of a row; all rows are multiples of `block` and of the mesh.
        batch_size: rows evaluated at a time, rounded up to what the mesh divides.
    """

    def __init__(
        self,
        diffusion: DiffusionOf,
        params: ArrayTree,
        objective: Objective,
        protocol: str,
        *,
        mesh: Mesh,
        vocab: Vocab,
        longest: int,
        block: int = 1,
        batch_size: int = 32,
        seed: int = 0,
    ):
        self.diffusion, self.objective, self.protocol = diffusion, objective, protocol
        self.vocab, self.seed = vocab, seed
        self.lengths = lengths_of(longest, math.lcm(block, mesh.shape[SEQUENCE]))
        self._new_program = partial(
            RowProgram, params=params, mesh=mesh, batch_size=batch_size, what="the likelihood"
        )
        self._programs: dict[int, RowProgram] = {}

    @staticmethod
    def of(model: Model, params: ArrayTree, by: By | None = None, **settings: Any) -> "Likelihood":
        """Returns what scores pairs by a model. Raises InputError if `by` does not fit it."""
        objective, protocol = objective_of(model, by)
        e = model.experiment
        return Likelihood(
            model.diffusion,
            params,
            objective,
            protocol,
            vocab=model.vocab,
            longest=e.data.packing.length,
            block=getattr(e.network, "block_size", 0) or 1,
            **settings,
        )

    def __call__(
        self,
        pairs: Sequence[Encoded],
        how: Passes | None = None,
        *,
        numbers: Sequence[int] | None = None,
        report: Report = lambda done, of: None,
    ) -> list[LogLikelihood]:
        """Returns the log-likelihood of the response of each pair given its prompt.

        `numbers` are the numbers that the draws of the pairs follow from, by default their indices.
        Raises InputError if a pair is longer than a row, or has no prompt where the run scores no
        token that begins a row.
        """
        how = how or Passes()
        check_lengths(pairs, self.lengths[-1])
        self._check_first(pairs)
        own = np.arange(len(pairs)) if numbers is None else np.asarray(numbers)

        def draw(number: int, at: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
            passes = 1 if self.objective.is_exact else how.passes
            return self.round(number, [pairs[i] for i in at], own[at], passes, report)

        if self.objective.is_exact:
            values = draw(0, np.arange(len(pairs)))[:, 0]
            errors, passes = [None] * len(pairs), np.ones(len(pairs), int)
        elif how.sure is None:
            values, errors, passes = monte_carlo.once(draw, len(pairs))
        else:
            values, errors, passes = monte_carlo.until_sure(
                draw, len(pairs), error=how.sure, most=how.most
            )
        return [
            LogLikelihood(
                value=float(value),
                stderr=None if error is None else float(error),
                tokens=len(pair.response),
                passes=int(n),
                protocol=self.protocol,
            )
            for pair, value, error, n in zip(pairs, values, errors, passes, strict=True)
        ]

    def round(
        self,
        number: int,
        pairs: Sequence[Encoded],
        numbers: Int[np.ndarray, " n"],
        passes: int,
        report: Report = lambda done, of: None,
    ) -> Float[np.ndarray, "n d"]:
        """Returns estimates of each pair's log-likelihood in nats, from each of `passes` passes."""
        out = np.zeros((len(pairs), passes))
        key = jax.random.fold_in(of_seed(self.seed), number)
        apart = max(1, MOST_ROWS // (passes * self.lengths[-1]))
        first = numbers % (MOST_ROWS // passes) * passes
        done = 0

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            report(done // passes, len(pairs))

        for length, own in by_length(pairs, self.lengths):
            rows = rows_of([pairs[i] for i in own], length, self.vocab)

            def make(index, rows=rows, first=first[own]):
                which, at = index // passes, index % passes
                return {
                    "tokens": rows.tokens[which],
                    "loss_mask": rows.loss_mask[which],
                    "is_valid": rows.is_valid[which],
                    "row": (first[which] + at).astype(np.int32),
                    "rows": np.asarray(passes * apart, np.int32),
                }

            nats = self._program(passes)(key, make, len(own) * passes, advance)
            out[own] = -nats.reshape(len(own), passes)
        return out

    def _program(self, passes: int) -> RowProgram:
        """The bound of rows in nats, their noise levels stratified over `passes` passes."""
        if passes not in self._programs:
            objective: Any = self.objective
            if hasattr(objective, "times"):
                objective = replace(objective, times=OverPasses(strata=max(1, passes // 2)))

            def evaluate(params, key, rows):
                batch, diffusion = Batch(**rows), self.diffusion(params)
                diffusion = diffusion.without_dropout().with_prompts(batch)
                return objective(key, batch, diffusion).bound.sum(axis=-1)

            self._programs[passes] = self._new_program(evaluate)
        return self._programs[passes]

    def _check_first(self, pairs: Sequence[Encoded]) -> None:
        """Raises InputError if a response begins its row, where the first token is not scored."""
        first_is_given = getattr(self.objective, "first_is_given", False)
        if not first_is_given and not isinstance(self.objective, Autoregressive):
            return
        for pair in pairs:
            if not pair.prompt:
                raise InputError(
                    f"{pair.where}: the prompt has no token, and this run scores no token that"
                    " begins a row: give a prompt"
                )


def by_length(
    rows: Sequence[Sized], lengths: Sequence[int]
) -> Iterator[tuple[int, Int[np.ndarray, " m"]]]:
    """Yields the lengths of rows that are needed, with the indices of the rows that fit best."""
    fitting = np.searchsorted(lengths, [len(row) for row in rows])
    for bucket in np.unique(fitting):
        yield lengths[bucket], np.flatnonzero(fitting == bucket)
