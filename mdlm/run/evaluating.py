"""Likelihoods under a run: of splits of data, of responses given prompts, of parts of a row."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from mdlm.data.dataset import TextData
from mdlm.data.mixture import Mixture
from mdlm.data.pairs import Encoded, Messages, Pair, as_pairs, encode_pairs
from mdlm.data.tokens.special_tokens import ends
from mdlm.evals.bracket import Bracket, bracket
from mdlm.evals.generated.judge import NgramJudge
from mdlm.evals.generated.judge import Report as TextsReport
from mdlm.evals.generated.network_judge import NetworkJudge
from mdlm.evals.levels import Level, levels_of
from mdlm.evals.likelihood import By, Likelihood
from mdlm.evals.likelihood import Report as PairsReport
from mdlm.evals.log_likelihood import LogLikelihood, Passes
from mdlm.evals.nll import Metric
from mdlm.evals.orders import log_marginal
from mdlm.evals.scorer import Report, Scorer, Sums, check_same_data
from mdlm.experiment.evaluation import Perplexity
from mdlm.generation.windows import window_of
from mdlm.keys import of_seed
from mdlm.objectives.clip_search import Interval
from mdlm.run.opened import OpenedRun


class EvaluatedRun(OpenedRun):
    """A run that can be evaluated."""

    def perplexity(
        self,
        how: Perplexity | None = None,
        *,
        data: TextData | Mixture | None = None,
        report: Report = lambda done, rows: None,
    ) -> list[Metric]:
        """Evaluates a split of the run's data, or of `data` with the run's tokenizer.

        Raises InputError if `how.objective` does not fit the run.
        """
        how = how or self.experiment.evaluation
        return self._scorer(how, data).run(self.params, how, report=report)

    def by_level(
        self,
        how: Perplexity | None = None,
        *,
        levels: int = 10,
        data: TextData | Mixture | None = None,
        report: Report = lambda done, rows: None,
    ) -> tuple[list[Metric], list[Level]]:
        """Evaluates as `perplexity`, and returns also what each of `levels` equal parts of the
        times adds to the bound (see `evals.levels`).

        Raises InputError if the run reports an exact likelihood, which has no noise.
        """
        how = how or self.experiment.evaluation
        scorer = self._scorer(how, data, levels=levels)
        sums = scorer.sums(self.params, how, report=report)
        return scorer.metrics(sums, how), levels_of(sums.levels)

    def bracket(
        self,
        how: Perplexity | None = None,
        *,
        paths: int = 8,
        rows: int = 0,
        data: TextData | Mixture | None = None,
        report: Report = lambda done, rows: None,
    ) -> Bracket:
        """Bounds the likelihood of a split, or its first `rows` rows, from both sides, by its
        probability in `paths` random orders of each row (see `evals.sides`).

        Raises InputError if the likelihood is exact, or the run is not one of masked noise that
        reveals single tokens with the same rate for all.
        """
        how = how or self.experiment.evaluation
        scorer = self._scorer(how, data)
        part, _ = scorer.rows(how.split, rows)
        return bracket(
            scorer.model,
            self.params,
            part,
            mesh=self.mesh,
            paths=paths,
            protocol=lambda words: scorer.protocol(how.split, words, rows),
            batch_size=how.batch_size or 32,
            seed=self.experiment.seed,
            report=report,
        )

    def _scorer(
        self, how: Perplexity, data: TextData | Mixture | None, *, levels: int = 0
    ) -> Scorer:
        """Returns what evaluates a split of `data`, by default of the run's own, as `how` says."""
        dataset = self.dataset if data is None else data.load(self.folder.data)
        model = self.model
        if how.objective != self.experiment.evaluation.objective:
            model = replace(model, experiment=replace(self.experiment, evaluation=how))
        check_same_data(dataset, (how.split,))
        return Scorer(model, self.mesh, dataset, levels=levels)

    def by_row(
        self,
        how: Perplexity,
        *,
        rows: int = 0,
        seed: int = 0,
        report: Report = lambda done, rows: None,
    ) -> tuple[Sums, str]:
        """Returns the sums by pass and row of a split of the run's data, or of its first `rows`
        rows, and their protocol. Runs with the same rows get the same noise from the same seed.

        An exact likelihood has the same sums in all passes.
        """
        check_same_data(self.dataset, (how.split,))
        model = replace(self.model, experiment=replace(self.experiment, seed=seed))
        scorer = Scorer(model, self.mesh, self.dataset)
        words = model.reported.protocol_on(model.process)
        sums = scorer.sums(self.params, how, rows, report)
        times = how.passes // len(sums.bound)  # an exact one is made once
        bound, count, levels = (a.repeat(times, 0) for a in (sums.bound, sums.count, sums.levels))
        sums = sums._replace(bound=bound, count=count, levels=levels)
        return sums, scorer.protocol(how.split, words, rows)

    def log_likelihood(
        self,
        pairs: Sequence[Pair | tuple[str | Messages, str]],
        *,
        by: By | None = None,
        passes: int = 32,
        sure: float | None = None,
        seed: int = 0,
        batch_size: int = 32,
        report: PairsReport = lambda done, of: None,
    ) -> list[LogLikelihood]:
        """Returns log p(response | prompt) of each pair in nats, or a lower bound on it, with its
        standard error (see `evals.likelihood`).

        A prompt is a text, or messages for the run's chat template. `by` is "counts" or "nelbo", by
        default what fits; causal networks and blocks of one token are exact. `passes` is even;
        with `sure` passes are added until the standard error of each pair is at most that.

        Raises InputError if a response is empty, a pair is longer than a row, or `by` does not fit.
        """
        how = Passes(passes=passes, sure=sure)
        likelihood = self.likelihood(by, seed=seed, batch_size=batch_size)
        return likelihood(self.encoded(as_pairs(pairs)), how, report=report)

    def encoded(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """Returns the tokens of pairs as `log_likelihood` scores them."""
        start = window_of(self.experiment.data.packing, self.model).frame[0]
        return encode_pairs(pairs, self.tokenizer, start=start)

    def likelihood(
        self, by: By | None = None, *, seed: int = 0, batch_size: int = 32
    ) -> Likelihood:
        """Returns what scores pairs of tokens. Keep it, so that it compiles only once."""
        return Likelihood.of(
            self.model, self.params, by, mesh=self.mesh, batch_size=batch_size, seed=seed
        )

    def log_marginal(
        self,
        tokens: Sequence[int] | Int[np.ndarray, " l"],
        known: Sequence[bool] | Bool[np.ndarray, " k"],
        given: Sequence[bool] | Bool[np.ndarray, " g"] | None = None,
        *,
        orders: int = 8,
        seed: int = 0,
    ) -> LogLikelihood:
        """Returns the log of the probability of the `known` tokens of a row, whatever the others
        are, in nats: the mean of the chain rule over random orders (see `evals.orders`), a lower
        bound that is exact where the network is the true posterior. `given` tokens are conditioned
        on.

        Raises InputError if no token is known, the arguments differ in length, or the network does
        not attend to the whole row.
        """
        return log_marginal(
            self.model,
            self.params,
            np.asarray(tokens),
            np.asarray(known, bool),
            np.zeros(len(tokens), bool) if given is None else np.asarray(given, bool),
            mesh=self.mesh,
            orders=orders,
            seed=seed,
        )

    def judge(
        self, *, context: int | None = None, stride: int | None = None, batch_size: int = 32
    ) -> NetworkJudge:
        """Returns what judges texts by this run, which must be causal (see `evals.generated`).

        Windows have `context` tokens, `stride` of them new; by default a row, and half of it.
        Raises InputError if the network is not causal, or a number is out of range.
        """
        return NetworkJudge(
            self.model,
            self.params,
            self.tokenizer,
            name=f"{self.folder.path}, step {self.step}",
            start=self._start,
            mesh=self.mesh,
            context=context,
            stride=stride,
            batch_size=batch_size,
        )

    def ngram_judge(
        self, *, order: int = 5, report: TextsReport = lambda done, of: None
    ) -> NgramJudge:
        """Returns what judges texts by n-grams of the run's training split (see
        `evals.generated`). Raises InputError if there is no text."""
        return NgramJudge.of(
            self.dataset.train.rows, self.tokenizer, start=self._start, order=order, report=report
        )

    @property
    def _start(self) -> int | None:
        """The token that rows of the data begin with, None if they have none."""
        packing = self.experiment.data.packing
        return ends(self.tokenizer.vocab)[0] if packing.frame[0] else None

    def clip_search(self, *, batches: int = 4, seed: int = 0) -> list[Interval]:
        """Intervals of times to train block diffusion on, in order of the variance of their loss,
        smallest first, estimated on `batches` batches of the validation split (see
        `objectives.clip_search`).

        Raises InputError if the run does not use block diffusion.
        """
        scorer = Scorer(self.model, self.mesh, self.dataset)
        return scorer.clip_search(self.params, batches=batches, key=of_seed(seed))
