"""Texts of a run: continued, streamed, answered and filled in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mdlm.data.tokens.conversations import Message, prompt_of
from mdlm.errors import InputError
from mdlm.generation.generator import Generator
from mdlm.generation.programs import within_reach
from mdlm.generation.streaming import Stream
from mdlm.generation.texts import Generation, text_of
from mdlm.generation.verifying import Verifier
from mdlm.generation.windows import Windows, window_of, window_of_answers
from mdlm.run.opened import OpenedRun
from mdlm.samplers.base import Sampler

ANSWER = 128
"""Most tokens of an answer, if nothing is said of its length."""


class GeneratingRun(OpenedRun):
    """A run that can generate texts."""

    _generator: Generator | None = None
    _verified_by: OpenedRun | None = None

    def generator(
        self, sampler: Sampler | None = None, *, verifier: OpenedRun | None = None
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
        verifier: OpenedRun | None = None,
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
        generator = self._generator_with(sampler, verifier, settings)
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
        verifier: OpenedRun | None = None,
        **settings: Any,
    ) -> Stream:
        """Yields the text of `generate`, or of `chat` if `prompt` is a conversation, in pieces, as
        it is written: `for piece in run.stream("The "): print(piece, end="", flush=True)`.

        A piece is given out once it can no longer change: with samplers that write from left to
        right or in blocks soon, else with each window. Arguments as in those; of a conversation,
        neither `stride` nor `stop_at_eos`.
        """
        generator = self._generator_with(sampler, verifier, settings)
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
        verifier: OpenedRun | None = None,
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
            self._generator_with(sampler, verifier, settings)
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
        verifier: OpenedRun | None = None,
        **settings: Any,
    ) -> Generation:
        """Fills the blanks (`[MASK]`, `[MASK:n]`) of a text. Other arguments as in `generate`."""
        generator = self._generator_with(sampler, verifier, settings)
        out = generator.infill(text, num=num, seed=seed, first=first, trace=trace)
        return self._named(out, seed)

    def _generator_with(
        self, sampler: Sampler | None, verifier: OpenedRun | None, settings: Mapping[str, Any]
    ) -> Generator:
        sampler = replace(sampler or self.experiment.sampler, **settings)
        return self.generator(sampler, verifier=verifier)

    def _stops(self, stop_at_eos: bool | None) -> bool:
        """Whether texts end at their EOS: by default, if the rows of the run are documents."""
        return self.experiment.data.packing.is_one_document if stop_at_eos is None else stop_at_eos

    def _asked(
        self, conversations: Sequence[Any], length: int
    ) -> tuple[list[list[int]], Windows, tuple[int, ...]]:
        """The tokens of conversations, the window that holds each with an answer of `length`
        tokens, and the tokens that end an answer."""
        prompts = [prompt_of(one, self.tokenizer) for one in conversations]
        longest, network = self.experiment.data.packing.length, self.experiment.network
        window = window_of_answers(prompts, length, longest, network)
        return prompts, window, self.tokenizer.chat.ends

    def _named(self, out: Generation, seed: int) -> Generation:
        """Returns the result with the run, its step and the seed in its trace, if it has one."""
        if out.trace is None:
            return out
        origin = f"{self.folder.path}, step {self.step}, seed {seed}"
        return replace(out, trace=replace(out.trace, origin=origin))
