"""Evaluation of a split with given parameters: the compiled evaluation, and the loop over batches.

A pass evaluates every token of the split once. Noise times are stratified over all rows of the
split and assigned to them at random.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Key

from mdlm.cluster import compiling, process_group
from mdlm.data.dataset import Dataset, TextData
from mdlm.data.loader import evaluation_batches
from mdlm.data.mixture import Mixture
from mdlm.errors import InputError
from mdlm.evals.ngrams import Baselines
from mdlm.evals.nll import Metric, summarise
from mdlm.experiment.evaluation import Perplexity
from mdlm.experiment.model import Model
from mdlm.objectives.block import BlockNelbo
from mdlm.objectives.clip_search import Interval, search
from mdlm.parallel.mesh import check_batch, on, put_on_mesh, replicated, rows_here
from mdlm.processes.masked import Masked
from mdlm.times import balanced_order
from mdlm.types import ArrayTree, Batch

TABLE_TOKENS = 2**24
"""Most tokens of a stored training split, in memory at once, that n-gram counts come from."""

Evaluate = Callable[[int, dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]
"""`(pass number, batch) -> (bound [b], count [b])`: sums over each row, nats and tokens."""

Batches = Callable[[], Iterable[dict[str, np.ndarray]]]

Report = Callable[[int, int], None]
"""Called with `(rows evaluated, rows to evaluate)`, over all passes."""


def other_text(data: TextData | Mixture) -> str:
    """Returns the beginning of a protocol, for data that are not those of the run."""
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


class Scorer:
    """Evaluates splits with given parameters; compiles once per shape of batch."""

    def __init__(self, model: Model, mesh: jax.sharding.Mesh, dataset: Dataset):
        self.model, self.mesh, self.dataset = model, mesh, dataset
        self.evaluate = compile_evaluation(model, mesh)
        self._compiled: set[int] = set()

    def run(
        self,
        params: ArrayTree,
        how: Perplexity,
        limit: int = 0,
        report: Report = lambda done, rows: None,
    ) -> list[Metric]:
        """Returns metrics of a split, or of its first `limit` rows (then per token only)."""
        part = getattr(self.dataset, how.split)
        whole = not 0 < limit < len(part.rows)
        rows = part.rows if whole else part.rows.first(limit)
        experiment, objective = self.model.experiment, self.model.reported
        size = how.batch_size or experiment.train.batch_size
        check_batch(self.mesh, size)
        how = replace(how, passes=1 if objective.is_exact else how.passes)
        key = jax.random.key(experiment.seed)

        here = rows_here(self.mesh, size)

        def evaluate(number: int, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            # Each process adds up the whole batch, and puts only its own rows on its devices.
            mine = {name: value[here] if value.ndim else value for name, value in batch.items()}
            inputs = params, jax.random.fold_in(key, number), Batch(**put_on_mesh(self.mesh, mine))
            if size not in self._compiled:
                compiling.compile_together(self.evaluate, *inputs, what="the evaluation")
                self._compiled.add(size)
            return jax.device_get(self.evaluate(*inputs))

        def batches():
            return evaluation_batches(rows, size)

        n = len(rows)
        bound, count = passes(
            evaluate, batches, count=how.passes, rows=n, seed=experiment.seed, report=report
        )
        share = "" if whole else f", first {n} rows"
        text = "" if self.dataset.data == experiment.data else other_text(self.dataset.data)
        packing = self.dataset.protocol(how.split)
        words = objective.protocol_on(self.model.process)
        protocol = f"{text}{how.split}{share}, {packing}, {words}, EMA parameters"
        units = {"byte": part.bytes, "character": part.characters} if whole else {}
        metrics = summarise(
            bound, count, protocol=protocol, is_exact=objective.is_exact, units=units
        )
        if how.ngrams and whole:
            metrics += self.ngrams(how.split)
        return metrics

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
        for rows in part.rows.chunks():
            nats.update(tables.nats(rows.tokens, rows.loss_mask))
        out = []
        counted = f"first {n} rows of the training split" if cut else "training split"
        for name, total in nats.items():
            protocol = f"{split}, counts of the {counted}"
            for unit, of in (
                (f"{name} nats per token", part.tokens),
                (f"{name} bits per byte", math.log(2) * part.bytes),
            ):
                out.append(Metric(unit, total / of, None, None, part.tokens, protocol))
        return out


def passes(
    evaluate: Evaluate,
    batches: Batches,
    *,
    count: int,
    rows: int,
    seed: int,
    report: Report = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluates a split `count` times. Returns bounds (nats) and numbers of tokens evaluated, both
    by pass and row, `[passes rows]`, float64."""
    bound, tokens = np.zeros((count, rows)), np.zeros((count, rows))
    done = 0
    for number in range(count):
        deal = np.random.default_rng((seed, number)).permutation(rows).astype(np.int32)
        for batch in batches():
            row = np.asarray(batch["row"])
            filled = np.asarray(batch["loss_mask"]).any(axis=-1)
            nats, scored = evaluate(number, {**batch, "row": deal[row]})
            bound[number, row[filled]] = nats[filled]
            tokens[number, row[filled]] = scored[filled]
            done += int(filled.sum())
            report(done, rows * count)
    return bound, tokens


def compile_evaluation(model: Model, mesh: Mesh) -> Callable[..., tuple[Array, Array]]:
    """Returns a jitted `(params, key, batch) -> (bound [b], count [b])`, sums over each row,
    replicated on all hosts."""

    def evaluate(params, key, batch: Batch):
        with on(mesh):
            terms = model.evaluate(params, key, batch)
        return terms.bound.sum(axis=-1), terms.count.sum(axis=-1)

    return jax.jit(evaluate, out_shardings=replicated(mesh))
