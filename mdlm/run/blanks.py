"""Blanks in held-out rows of a run's data, filled by one of its samplers (see `evals.blanks`)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from mdlm.config.component_text import to_text
from mdlm.data.rows.base import Rows
from mdlm.errors import InputError
from mdlm.evals.blanks import (
    AnyContext,
    Blanks,
    Cell,
    Conditional,
    LeftContext,
    evaluate,
    rows_with_room,
)
from mdlm.evals.likelihood import Likelihood
from mdlm.evals.orders import ChainRule, reads_any_tokens
from mdlm.evals.scorer import check_same_data, other_text
from mdlm.generation.generator import Generator
from mdlm.generation.windows import Windows, filler
from mdlm.run.opened import OpenedRun


def blanks(
    run: OpenedRun,
    generator: Generator,
    how: Blanks,
    split: str,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> list[Cell]:
    """Returns the results of `how` on a split of the run's data.

    Raises InputError if the run is of a kind that has no such value, or the rows have no room.
    """
    packing, model = run.experiment.data.packing, run.model
    if packing.splits_attention:
        raise InputError("blanks: rows whose attention stays inside documents are not supported")
    conditional = _conditional(run, how)
    check_same_data(run.dataset, (split,))
    rowset = getattr(run.dataset, split).rows
    rows, allowed = rows_with_room(rowset, how, partial(_allowed, run=run, window=generator.window))
    padded = () if rows.is_valid.all() else (rows.is_valid,)
    text = other_text(run.dataset.data, run.experiment.data)
    words = f"{text}{split}, {len(rows)} of {len(rowset)} rows, {run.dataset.protocol(split)}"

    def fill(rows: Rows, blank: Bool[np.ndarray, "n l"]) -> Int[np.ndarray, "n l"]:
        tokens = np.where(blank, filler(model.vocab), rows.tokens).astype(np.int32)
        found = []
        for start in range(0, len(tokens), how.batch_size):
            here = slice(start, start + how.batch_size)
            valid = [part[here] for part in padded]
            given = tokens[here], ~blank[here], *valid
            found.append(generator.fill(*given, seed=how.seed, first=start))
        return np.concatenate(found)

    return evaluate(
        rows,
        allowed,
        conditional,
        fill,
        how,
        protocol=f"{words}, seed {how.seed}, EMA parameters",
        filled_by=f"filled by {to_text(generator.sampler, lenient=True)}",
        report=report,
    )


def _conditional(run: OpenedRun, how: Blanks) -> Conditional:
    """Returns what scores blanks. Raises InputError if nothing does."""
    model, settings = run.model, {"mesh": run.mesh, "batch_size": how.batch_size}
    if reads_any_tokens(model):
        return AnyContext(ChainRule(model.diffusion, run.params, **settings), how)
    if model.experiment.network.attends == "all":
        name = type(model.process).__name__
        raise InputError(
            f"process={name}: the likelihood of a blank, given any other tokens, needs masked noise"
        )
    return LeftContext(Likelihood.of(model, run.params, seed=how.seed, **settings))


def _allowed(rows: Rows, run: OpenedRun, window: Windows) -> tuple[Rows, Any]:
    """Returns rows as the network reads them, and the positions of their text that may be blank:
    those that count in the loss, without tokens that begin or end every row."""
    packing, attends = run.experiment.data.packing, run.experiment.network.attends
    start = window.frame[0]
    if start is not None and not packing.frame[0]:  # a causal network always has a start token
        ahead = lambda array, value: np.insert(array[:, :-1], 0, value, axis=1)
        rows = Rows(
            tokens=ahead(rows.tokens, start),
            loss_mask=ahead(rows.loss_mask, False),
            is_valid=ahead(rows.is_valid, True),
        )
    allowed = rows.loss_mask & rows.is_valid
    allowed[:, : window.text.start] = allowed[:, window.text.stop :] = False
    if attends != "all":
        allowed[:, 0] = False  # nothing is on its left
    if packing.is_one_document:
        last = allowed.shape[1] - 1 - allowed[:, ::-1].argmax(axis=1)
        allowed[np.arange(len(allowed)), last] = False  # EOS
    return rows, allowed
