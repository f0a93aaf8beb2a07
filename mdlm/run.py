"""A finished or running run, opened from Python.

run = mdlm.load("runs/quickstart")
run.perplexity()
print(run.generate("The ", length=200).texts[0].text)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from mdlm.cluster import process_group
from mdlm.data.dataset import Dataset, TextData
from mdlm.data.mixture import Mixture
from mdlm.data.pairs import Encoded, Messages, Pair, as_pairs, encode_pairs
from mdlm.data.places import placed
from mdlm.errors import InputError
from mdlm.evals.likelihood import By, Likelihood
from mdlm.evals.likelihood import Report as PairsReport
from mdlm.evals.log_likelihood import LogLikelihood, Passes
from mdlm.evals.nll import Metric
from mdlm.evals.orders import log_marginal
from mdlm.evals.scorer import Report, Scorer, check_same_data
from mdlm.experiment.evaluation import Perplexity
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.model import Model
from mdlm.generation.chat import Message, prompt_of, window_of_answers
from mdlm.generation.generator import Generator
from mdlm.generation.programs import within_reach
from mdlm.generation.streaming import Stream
from mdlm.generation.texts import Generation, text_of
from mdlm.generation.verifying import Verifier
from mdlm.generation.windows import Windows, window_of
from mdlm.keys import of_seed
from mdlm.objectives.clip_search import Interval
from mdlm.parallel.mesh import MeshShape
from mdlm.runs import agreement, chat, weights
from mdlm.runs.folder import RunFolder
from mdlm.runs.parameters import restore_parameters
from mdlm.samplers.base import Sampler

ANSWER = 128
"""Most tokens of an answer, if nothing is said of its length."""


def load(
    path: str | Path,
    *,
    step: int | None = None,
    mesh: MeshShape | None = None,
    trust: bool = False,
    verify: bool = True,
) -> "Run":
    """Opens a run folder at its newest checkpoint, or at the checkpoint of `step`. Weights in the
    folder are used if no checkpoint is newer.

    The run may have been trained on other devices. If its mesh does not fit the devices here and
    `mesh` is None, the parameters are spread over all devices. No code of the folder is executed,
    except with `trust`: the experiment is then read by executing the folder's copy of the
    experiment file, not from config.json. Without `verify`, files are not compared with their
    digests. Raises InputError if the folder is not a run, has no such checkpoint, is damaged, or
    names components that are not installed.
    """
    return Run(path, step=step, mesh=mesh, trust=trust, verify=verify)


class Run:
    """An experiment with its tokenizer and EMA parameters."""

    def __init__(
        self,
        path: str | Path,
        *,
        step: int | None = None,
        mesh: MeshShape | None = None,
        trust: bool = False,
        verify: bool = True,
    ):
        self.folder = RunFolder(path, trust=trust, verify=verify)
        process_group.broadcast(lambda: self.folder.config() and None)  # raises if it is not a run
        agreement.check_shared(self.folder)
        self.experiment: Experiment = self.folder.experiment()
        self.tokenizer = self.experiment.data.load_tokenizer(self.folder.data)
        self.model = Model(self.experiment, self.tokenizer.vocab, self.folder.counts())
        self.shape = mesh or self.experiment.mesh.fitting(len(jax.devices()))
        self.mesh = self.shape.build()
        abstract = self.model.abstract_params(self.mesh)
        self.step, self.params = restore_parameters(self.folder, abstract, step)
        self._generator: Generator | None = None
        self._verified_by: Run | None = None

    @property
    def remark(self) -> str | None:
        """A line that says how the mesh differs from the one trained on; None if it does not."""
        if self.shape == self.experiment.mesh:
            return None
        here = MeshShape(**self.mesh.shape)
        return f"trained on a mesh of {self.experiment.mesh}, opened on one of {here}"

    def save_weights(self, dtype: weights.WeightsDtype | None = None) -> Path:
        """Writes the parameters into the run folder as `weights.safetensors`; returns the file.

        The network's tensors are written in `dtype`, by default in their own. Raises InputError if
        a value is too large for it, or if there are several processes.
        """
        if jax.process_count() > 1:
            raise InputError("weights are written by one process: open the run in a single process")
        known = self.folder.config().get("fingerprint")
        return weights.write(
            self.folder.path, self.params, step=self.step, dtype=dtype, fingerprint=known
        )

    @cached_property
    def dataset(self) -> Dataset:
        """The run's data. Splits are read when they are first used. Relative paths that lead to
        nothing here are looked for where the run was started."""
        data, folder = self.experiment.data, self.folder.started_in
        return (data if folder is None else placed(data, folder)).load(self.folder.data)

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
        dataset = self.dataset if data is None else data.load(self.folder.data)
        how, model = how or self.experiment.evaluation, self.model
        if how.objective != self.experiment.evaluation.objective:
            model = replace(model, experiment=replace(self.experiment, evaluation=how))
        check_same_data(dataset, (how.split,))
        return Scorer(model, self.mesh, dataset).run(self.params, how, report=report)

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
        told = chat.read(self.folder.data)
        return encode_pairs(
            pairs,
            self.tokenizer,
            start=window_of(self.experiment.data.packing, self.model).frame[0],
            prompt_of=partial(prompt_of, template=told.template, tokenizer=self.tokenizer),
        )

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

    def clip_search(self, *, batches: int = 4, seed: int = 0) -> list[Interval]:
        """Intervals of times to train block diffusion on, in order of the variance of their loss,
        smallest first, estimated on `batches` batches of the validation split (see
        `objectives.clip_search`).

        Raises InputError if the run does not use block diffusion.
        """
        scorer = Scorer(self.model, self.mesh, self.dataset)
        return scorer.clip_search(self.params, batches=batches, key=of_seed(seed))

    def generator(
        self, sampler: Sampler | None = None, *, verifier: "Run | None" = None
    ) -> Generator:
        """Returns a generator with this run's parameters, compiled only once: the newest is kept.
        `verifier` is an autoregressive run that verifies the drafts of `sampler=Verified(...)`.

        Raises InputError if `sampler` or `verifier` does not fit the run.
        """
        sampler = sampler or self.experiment.sampler
        known = self._generator
        if known is None or known.sampler != sampler or self._verified_by is not verifier:
            window = window_of(self.experiment.data.packing, self.model)
            parts = (self.model, within_reach(self.params), self.tokenizer, window, sampler)
            theirs = None
            if verifier is not None:
                params = within_reach(verifier.params)
                theirs = Verifier(verifier.model, params, verifier.tokenizer)
            self._generator, self._verified_by = Generator(*parts, theirs), verifier
            return self._generator
        return known

    def generate(
        self,
        prompt: str | Sequence[str] = "",
        *,
        num: int = 1,
        length: int | None = None,
        seed: int = 0,
        first: int = 0,
        stride: int | None = None,
        stop_at_eos: bool | None = None,
        trace: bool = False,
        report: Callable[[Any], None] | None = None,
        sampler: Sampler | None = None,
        **settings: Any,
    ) -> Generation:
        """Continues a prompt, or each of several, `num` times to `length` tokens (default: a row of
        the data), in one batch.

        Texts end at their EOS with `stop_at_eos`, by default if the rows of the run are documents.

        Text number i, counted from `first`, depends on the seed, on i and on its prompt only: the
        next call may go on from where one ended.

        `settings` replace fields of the sampler (by default the experiment's), e.g. `steps=64,
        top_p=0.9`; `verifier` is a run that verifies the drafts of `Verified`. With `trace` the
        result also records each step.
        """
        generator = self._generator_with(sampler, settings)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        out = generator.continue_from(
            [one for one in prompts for _ in range(num)],
            generator.window.room if length is None else length,
            seed=seed,
            first=first,
            stride=stride,
            stop_at_eos=self._stops(stop_at_eos),
            trace=trace,
            report=report,
        )
        return self._named(out, seed)

    def stream(
        self,
        prompt: str | Sequence[Message] = "",
        *,
        length: int | None = None,
        seed: int = 0,
        stride: int | None = None,
        stop_at_eos: bool | None = None,
        report: Callable[[Any], None] | None = None,
        sampler: Sampler | None = None,
        **settings: Any,
    ) -> Stream:
        """Yields the text of `generate`, or of `chat` if `prompt` is a conversation, in pieces, as
        it is written: `for piece in run.stream("The "): print(piece, end="", flush=True)`.

        A piece is given out once it can no longer change: with samplers that write from left to
        right or in blocks soon, else with each window. Arguments as in those; of a conversation,
        neither `stride` nor `stop_at_eos`.
        """
        generator = self._generator_with(sampler, settings)
        if isinstance(prompt, str):
            return generator.stream(
                prompt,
                generator.window.room if length is None else length,
                seed=seed,
                stride=stride,
                stop_at_eos=self._stops(stop_at_eos),
                report=report,
            )
        if stride is not None or stop_at_eos is not None:
            raise InputError("stride, stop_at_eos: not for conversations; leave them out")
        length = ANSWER if length is None else length
        (tokens,), window, ends = self._asked([prompt], length)
        return generator.in_windows(window).stream(
            tokens,
            len(tokens) + length,
            seed=seed,
            stop_at=ends,
            skip=len(tokens),
            report=report,
        )

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        num: int = 1,
        length: int = ANSWER,
        seed: int = 0,
        first: int = 0,
        trace: bool = False,
        report: Callable[[Any], None] | None = None,
        sampler: Sampler | None = None,
        **settings: Any,
    ) -> Generation:
        """Answers a conversation, or each of several, `num` times with at most `length` tokens, up
        to the first of the tokens that end an answer. The texts are the answers alone.

        `messages` are dictionaries with a role ("system", "user", "assistant") and a content; the
        chat template that came with the checkpoint makes a prompt of them. The network reads
        exactly prompt and answer. Other arguments as in `generate`.

        Raises InputError if there is no template, or if prompt and answer are longer than a row.
        """
        one = not messages or isinstance(messages[0], Mapping)
        prompts, window, ends = self._asked([messages] if one else messages, length)
        prompts = [prompt for prompt in prompts for _ in range(num)]
        out = (
            self._generator_with(sampler, settings)
            .in_windows(window)
            .continue_tokens(
                prompts,
                [len(prompt) + length for prompt in prompts],
                seed=seed,
                first=first,
                stop_at=ends,
                trace=trace,
                report=report,
            )
        )
        pairs = zip(out.texts, prompts, strict=True)
        answers = tuple(text_of(self.tokenizer, t.tokens[len(prompt) :]) for t, prompt in pairs)
        return self._named(replace(out, texts=answers), seed)

    def infill(
        self,
        text: str,
        *,
        num: int = 1,
        seed: int = 0,
        first: int = 0,
        trace: bool = False,
        sampler: Sampler | None = None,
        **settings: Any,
    ) -> Generation:
        """Fills the blanks (`[MASK]`, `[MASK:n]`) of a text. Other arguments as in `generate`."""
        generator = self._generator_with(sampler, settings)
        out = generator.infill(text, num=num, seed=seed, first=first, trace=trace)
        return self._named(out, seed)

    def _generator_with(self, sampler: Sampler | None, settings: Mapping[str, Any]) -> Generator:
        own = {name: value for name, value in settings.items() if name != "verifier"}
        sampler = replace(sampler or self.experiment.sampler, **own)
        return self.generator(sampler, verifier=settings.get("verifier"))

    def _stops(self, stop_at_eos: bool | None) -> bool:
        """Whether texts end at their EOS: by default, if the rows of the run are documents."""
        return self.experiment.data.packing.is_one_document if stop_at_eos is None else stop_at_eos

    def _asked(
        self, conversations: Sequence[Any], length: int
    ) -> tuple[list[list[int]], Windows, tuple[int, ...]]:
        """The tokens of conversations, the window that holds each with an answer of `length`
        tokens, and the tokens that end an answer."""
        told = chat.read(self.folder.data)
        prompts = [prompt_of(one, told.template, self.tokenizer) for one in conversations]
        longest, network = self.experiment.data.packing.length, self.experiment.network
        return prompts, window_of_answers(prompts, length, longest, network), told.ends

    def _named(self, out: Generation, seed: int) -> Generation:
        """Returns the result with the run, its step and the seed in its trace, if it has one."""
        if out.trace is None:
            return out
        origin = f"{self.folder.path}, step {self.step}, seed {seed}"
        return replace(out, trace=replace(out.trace, origin=origin))
