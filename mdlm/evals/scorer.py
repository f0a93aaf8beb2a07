"""Evaluation of a split with given parameters: the compiled evaluation, and the loop over batches.

A pass evaluates every token of the split once. Noise times are stratified over all rows of the
split and assigned to them at random.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int, Key

from mdlm.cluster import compiling, process_group
from mdlm.data.dataset import Dataset, Split, TextData
from mdlm.data.loader import evaluation_batches
from mdlm.data.mixture import Mixture
from mdlm.data.rows.base import RowSet
from mdlm.data.tokens.text_size import UNITS, TextSizes
from mdlm.errors import InputError
from mdlm.evals import labels
from mdlm.evals.levels import SUMS, by_level
from mdlm.evals.ngrams import Baselines
from mdlm.evals.nll import Metric, summarise
from mdlm.experiment.evaluation import Perplexity
from mdlm.experiment.model import Model
from mdlm.keys import of_seed
from mdlm.objectives.block import BlockNelbo
from mdlm.objectives.clip_search import Interval, search
from mdlm.parallel.mesh import check_batch, on, put_on_mesh, replicated, rows_here
from mdlm.processes.masked import Masked
from mdlm.times import balanced_order
from mdlm.types import ArrayTree, Batch

TABLE_TOKENS = 2**24
"""Most tokens of a stored training split, in memory at once, that n-gram counts come from."""

RowSums = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Evaluate = Callable[[int, dict[str, np.ndarray]], RowSums]
"""`(pass number, batch) -> (bound [b], count [b], text [b 2], levels [b n 4], answers [b 2])`: sums
over each row, in nats, in tokens, in bytes and characters, and by noise level (`levels.by_level`);
and what is predicted of each row, beside what is true (`[b 0]` where tokens are predicted)."""

Batches = Callable[[], Iterable[dict[str, np.ndarray]]]

Report = Callable[[int, int], None]
"""Called with `(rows evaluated, rows to evaluate)`, over all passes."""


def other_text(data: TextData | Mixture, own: TextData | Mixture) -> str:
    """Returns the beginning of a protocol: the name of the data, if they are not the run's own."""
    if data == own:
        return ""
    if isinstance(data, Mixture):
        return "other data, "
    source = data.source
    return f"{source.name}, cleaned by {source.clean}, " if source.clean else f"{source.name}, "


def check_same_data(dataset: Dataset, splits: tuple[str, ...]) -> None:
    """Raises InputError, on all processes, if one of them has other text or other rows."""
    of = {name: getattr(dataset, name) for name in splits}
    found = {
        "tokenizer": dataset.tokenizer.fingerprint,
        **{f"rows of {name}": len(split.rows) for name, split in of.items()},
        **{f"text of {name}": split.text_fingerprint for name, split in of.items()},
    }
    process_group.check_same(found, "data")


class Sums(NamedTuple):
    """Sums of an evaluation: `bound` (nats) and `count` (tokens scored) by pass and row, the size
    of the text that the scored tokens spell, in bytes and characters (`TextSizes`), `levels`,
    by pass, row and noise level (`levels.by_level`), and `answers` of the last pass."""

    bound: Float[np.ndarray, "p b"]
    count: Float[np.ndarray, "p b"]
    text: Float[np.ndarray, " 2"]
    levels: Float[np.ndarray, "p b n 4"]
    answers: Float[np.ndarray, "r k"] = np.zeros((0, 0))


class Scorer:
    """Evaluates splits with given parameters, also by `levels` levels of noise; compiles once per
    shape of batch."""

    def __init__(self, model: Model, mesh: jax.sharding.Mesh, dataset: Dataset, *, levels: int = 0):
        self.model, self.mesh, self.dataset, self.levels = model, mesh, dataset, levels
        self.evaluate = compile_evaluation(model, mesh, levels)
        self._compiled: set[int] = set()
        self._spelled: dict[str, np.ndarray] = {}

    def run(
        self,
        params: ArrayTree,
        how: Perplexity,
        limit: int = 0,
        report: Report = lambda done, rows: None,
    ) -> list[Metric]:
        """Returns metrics of a split, or of its first `limit` rows (then per token only)."""
        return self.metrics(self.sums(params, how, limit, report), how, limit)

    def sums(
        self,
        params: ArrayTree,
        how: Perplexity,
        limit: int = 0,
        report: Report = lambda done, rows: None,
    ) -> Sums:
        """Evaluates a split, or its first `limit` rows, and returns the sums."""
        rows, _ = self.rows(how.split, limit)
        experiment, objective = self.model.experiment, self.model.reported
        size = how.batch_size or experiment.train.batch_size
        check_batch(self.mesh, size)
        how = replace(how, passes=1 if objective.is_exact else how.passes)
        key = of_seed(experiment.seed)

        here = rows_here(self.mesh, size)

        def evaluate(number: int, batch: dict[str, np.ndarray]) -> RowSums:
            # Each process adds up the whole batch, and puts only its own rows on its devices.
            mine = {name: value[here] if value.ndim else value for name, value in batch.items()}
            there = Batch(**put_on_mesh(self.mesh, mine))
            inputs = params, jax.random.fold_in(key, number), there, self.text_sizes.table
            if size not in self._compiled:
                compiling.compile_together(self.evaluate, *inputs, what="the evaluation")
                self._compiled.add(size)
            return jax.device_get(self.evaluate(*inputs))

        return passes(
            evaluate,
            lambda: evaluation_batches(rows, size),
            count=how.passes,
            rows=len(rows),
            seed=experiment.seed,
            report=report,
            levels=self.levels,
        )

    def metrics(self, sums: Sums, how: Perplexity, limit: int = 0) -> list[Metric]:
        """Returns the metrics of sums over a split, or its first `limit` rows."""
        objective, (_, whole) = self.model.reported, self.rows(how.split, limit)
        protocol = self.protocol(how.split, objective.protocol_on(self.model.process), limit)
        if objective.of_rows is not None:
            return labels.metrics_of(self.model, sums.bound[0], sums.answers, protocol)
        metrics = summarise(
            sums.bound,
            sums.count,
            protocol=protocol,
            is_exact=objective.is_exact,
            units=self._units(how.split, sums.text) if whole else {},
        )
        if how.ngrams and whole:
            metrics += self.ngrams(how.split)
        return metrics

    def protocol(self, split: str, words: str, limit: int = 0) -> str:
        """Returns the protocol of a number: its text and rows, `words` about it, and whose
        parameters."""
        rows, whole = self.rows(split, limit)
        share = "" if whole else f", first {len(rows)} rows"
        text = other_text(self.dataset.data, self.model.experiment.data)
        return f"{text}{split}{share}, {self.dataset.protocol(split)}, {words}, EMA parameters"

    def rows(self, split: str, limit: int) -> tuple[RowSet, bool]:
        """Returns the first `limit` rows of a split (0: all), and whether these are all."""
        rows = getattr(self.dataset, split).rows
        whole = not 0 < limit < len(rows)
        return (rows if whole else rows.first(limit)), whole

    @cached_property
    def text_sizes(self) -> TextSizes:
        """The bytes and characters that each token spells."""
        return TextSizes.of(self.dataset.tokenizer)

    def _units(self, split: str, text: Float[np.ndarray, " 2"]) -> dict[str, float]:
        """Returns the size of the text that was scored, by unit, from what its tokens spell.

        Where tokens do not spell the text exactly, it is their share of the text in the rows; it
        has no size if none of them spells anything, as unknown tokens do.
        """
        if not self.text_sizes.is_exact:
            part: Split = getattr(self.dataset, split)
            if split not in self._spelled:  # every row is read, which validations need not repeat
                chunks = part.rows.chunks()
                totals = (self.text_sizes.total(rows.tokens, rows.is_valid) for rows in chunks)
                self._spelled[split] = np.sum(list(totals), axis=0)
            spelled = np.maximum(self._spelled[split], 1)
            text = text / spelled * np.array([part.bytes, part.characters])
        return {unit: float(n) for unit, n in zip(UNITS, text, strict=True) if n > 0}

    def clip_search(
        self, params: ArrayTree, *, batches: int, key: Key[Array, ""]
    ) -> list[Interval]:
        """Returns intervals of times for block diffusion, from `batches` batches of the validation
        split. Raises InputError if the objective is not BlockNelbo."""
        model, train = self.model, self.model.experiment.train
        if not isinstance(model.objective, BlockNelbo):
            name = type(model.objective).__name__
            raise InputError(f"objective={name}(): the search for intervals needs BlockNelbo")
        assert isinstance(model.process, Masked)  # the objective refuses others
        order = balanced_order(train.batch_size)
        here = rows_here(self.mesh, len(order))
        strata = {"row": order[here], "rows": np.asarray(len(order), np.int32)}
        parts = evaluation_batches(self.dataset.valid.rows, len(order), here)
        return search(
            model.objective,
            key,
            (
                Batch(**put_on_mesh(self.mesh, {**part, **strata}))
                for part in islice(parts, batches)
            ),
            diffusion=model.diffusion,
            params=params,
        )

    def ngrams(self, split: str) -> list[Metric]:
        """Returns metrics of the n-gram baselines of the training split on a split.

        If the training split is in a store, counts are of its first `TABLE_TOKENS` tokens.
        """
        train, part = self.dataset.train.rows, getattr(self.dataset, split)
        n = max(1, TABLE_TOKENS // train.length)
        cut = self.dataset.store is not None and n < len(train)
        learnt = (train.first(n) if cut else train).all()
        tables = Baselines(learnt.tokens, learnt.loss_mask, self.model.vocab.size)
        nats: Counter[str] = Counter()
        text = np.zeros(len(UNITS))
        for rows in part.rows.chunks():
            nats.update(tables.nats(rows.tokens, rows.loss_mask))
            text += self.text_sizes.total(rows.tokens, rows.loss_mask)
        units = self._units(split, text)
        out = []
        counted = f"first {n} rows of the training split" if cut else "training split"
        for name, total in nats.items():
            protocol = f"{split}, counts of the {counted}"
            per = {"nats per token": part.tokens}
            if "byte" in units:
                per["bits per byte"] = math.log(2) * units["byte"]
            for unit, of in per.items():
                out.append(Metric(f"{name} {unit}", total / of, None, None, part.tokens, protocol))
        return out


def passes(
    evaluate: Evaluate,
    batches: Batches,
    *,
    count: int,
    rows: int,
    seed: int,
    report: Report = lambda done, total: None,
    levels: int = 0,
) -> Sums:
    """Evaluates a split `count` times. Sums are float64; the text is that of the first pass."""
    bound, tokens, text = np.zeros((count, rows)), np.zeros((count, rows)), np.zeros(len(UNITS))
    parts = np.zeros((count, rows, levels, len(SUMS)))
    answers = np.zeros((rows, 0))
    done = 0
    for number in range(count):
        deal = np.random.default_rng((seed, number)).permutation(rows).astype(np.int32)
        for batch in batches():
            row = np.asarray(batch["row"])
            filled = np.asarray(batch["loss_mask"]).any(axis=-1)
            nats, scored, spelled, by_time, said = evaluate(number, {**batch, "row": deal[row]})
            bound[number, row[filled]] = nats[filled]
            tokens[number, row[filled]] = scored[filled]
            parts[number, row[filled]] = by_time[filled]
            if not answers.shape[1]:
                answers = np.zeros((rows, said.shape[1]))
            answers[row[filled]] = said[filled]
            if number == 0:
                text += spelled[filled].sum(axis=0, dtype=np.float64)
            done += int(filled.sum())
            report(done, rows * count)
    return Sums(bound, tokens, text, parts, answers)


def compile_evaluation(model: Model, mesh: Mesh, levels: int = 0) -> Callable[..., Any]:
    """Returns a jitted `(params, key, batch, sizes [v 2]) -> (bound [b], count [b], text [b 2],
    levels [b n 4], answers [b k])`, replicated on all hosts; see `Evaluate`."""

    def evaluate(params, key, batch: Batch, sizes: Int[Array, "v n"]):
        with on(mesh):
            terms = model.evaluate(params, key, batch)
        text = (terms.count[..., None] * sizes[batch.tokens]).sum(axis=-2)
        bound, count = terms.bound.sum(axis=-1), terms.count.sum(axis=-1)
        answers = jnp.zeros((len(bound), 0)) if terms.answers is None else terms.answers
        return bound, count, text, by_level(terms, levels), answers

    return jax.jit(evaluate, out_shardings=replicated(mesh))
