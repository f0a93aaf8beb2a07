"""From prompts to text: a model, its parameters and its tokenizer behind one object.

A continuation slides a window over the text (see `generation.windows`). An infilling is one window
in which all tokens but the blanks are fixed (see `generation.template`). The network was trained on
full rows only, so the positions after the end of an infilled text are sampled too, and dropped.
"""

import logging
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Int, Key

from mdlm.config.component_text import to_text
from mdlm.data.tokens.special_tokens import end_of
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError
from mdlm.experiment.model import Model, check_sampler
from mdlm.generation.batches import on_open_rows
from mdlm.generation.programs import Programs
from mdlm.generation.prompts import check_prompt
from mdlm.generation.streaming import Stream
from mdlm.generation.template import Template
from mdlm.generation.texts import Generation, text_of
from mdlm.generation.trace import Trace, WindowTrace, generate_traced, rows_of
from mdlm.generation.verifying import Drafted, Verifier, check_verifier
from mdlm.generation.windows import Run, WindowDone, Windows, Writing, generate_long
from mdlm.keys import by_row, of_seed, stream
from mdlm.samplers.base import Sampler
from mdlm.samplers.state import Samples, SampleState
from mdlm.types import ArrayTree

log = logging.getLogger(__name__)

LEFT_TO_RIGHT = (
    "this run's network goes from left to right: it fills a blank without looking at what follows "
    "(its block); a network that attends to all of a row, such as DiT, does look"
)


class Generator:
    """Generates texts with one set of parameters. Each batch shape compiles once.

    Raises InputError if the sampler does not fit the model.

    Args:
        model: the experiment's parts.
        params: usually the EMA parameters. Parameters sharded over a mesh of several host
            processes (see `within_reach`) stay there: all of these processes must make the same
            calls, and all get the texts.
        tokenizer: the run's tokenizer.
        window: the frame and length of the rows that the network was trained on.
        sampler: replaces the experiment's sampler.
        verifier: verifies the drafts of `Verified`, the only sampler that takes one.
    """

    def __init__(
        self,
        model: Model,
        params: ArrayTree,
        tokenizer: Tokenizer,
        window: Windows,
        sampler: Sampler | None = None,
        verifier: Verifier | None = None,
    ):
        self.model, self.tokenizer, self.window = model, tokenizer, window
        self.sampler = sampler or model.experiment.sampler
        check_sampler(self.sampler, model)
        check_verifier(self.sampler, verifier is not None)
        drafts: Any = model
        if verifier is not None:
            verifier.check(tokenizer, window.length)
            self.window = verifier.window(window.length)
            drafts, params = Drafted(model, verifier.model), (params, verifier.params)
        if self.sampler.guidance is not None and self.sampler.guidance.needs_labels:
            raise InputError(
                'guidance=ClassifierFree(without="label"): a Generator takes no labels;'
                " use mdlm.samplers.loop.generate(..., label=...)"
            )
        network, columns = model.experiment.network, model.columns
        flops = lambda length: network.flops(1, length, length, columns)
        self._programs = Programs(self.sampler, drafts.diffusion, params, flops)

    @property
    def devices(self) -> int:
        """The number of devices that generate."""
        return len(self._programs.devices)

    def load(self, params: ArrayTree) -> None:
        """Goes on with other parameters, which lie where the first ones did."""
        self._programs.params = params

    def in_windows(self, window: Windows) -> "Generator":
        """Returns a generator with other windows and the same compiled programs."""
        other = copy(self)
        other.window = window
        return other

    def continue_from(
        self,
        prompts: Sequence[str],
        length: int,
        *,
        seed: int = 0,
        first: int = 0,
        stride: int | None = None,
        stop_at_eos: bool = False,
        trace: bool = False,
        report: Callable[[WindowDone], None] | None = None,
    ) -> Generation:
        """Continues each prompt (which may be empty) until the text has `length` tokens.

        Text number i, counted from `first`, depends on the seed, on i and on its prompt only. With
        `trace` the result records the changes of each step; the texts are the same.

        Raises InputError if a prompt is too long or cannot be encoded with the vocabulary, or if
        `length` or `stride` is out of range.
        """
        return self.continue_tokens(
            self._encoded(prompts),
            length,
            seed=seed,
            first=first,
            stride=stride,
            stop_at=self._ends(stop_at_eos),
            trace=trace,
            report=report,
        )

    def continue_tokens(
        self,
        prompts: Sequence[Sequence[int]],
        length: int | Sequence[int],
        *,
        seed: int = 0,
        first: int = 0,
        stride: int | None = None,
        stop_at: Sequence[int] = (),
        trace: bool = False,
        report: Callable[[WindowDone], None] | None = None,
    ) -> Generation:
        """Continues prompts that are tokens, as `continue_from`, each to the first of the tokens
        `stop_at` that is generated. `length` may be one for each."""
        ids = [list(prompt) for prompt in prompts]
        window = self._windows(length, stride)
        run, windows = self._runner(trace)
        began = self._now()
        out = generate_long(
            self._keys(seed, len(ids), first),
            ids,
            length,
            window=window,
            run=run,
            vocab=self.model.vocab,
            stop_at=stop_at,
            report=report,
        )
        seconds = self._now() - began
        rows = [row[:n] for row, n in zip(out.tokens, out.lengths, strict=True)]
        new = int(out.lengths.sum()) - sum(len(row) for row in ids)
        is_open = [np.arange(len(row)) >= len(known) for row, known in zip(rows, ids, strict=True)]
        record = self._trace(windows, out.begins, rows, is_open)
        texts = tuple(text_of(self.tokenizer, row) for row in rows)
        note = self.sampler.note(new, out.nfe)
        return Generation(texts, new, out.nfe, out.windows, seconds, record, note)

    def stream(
        self,
        prompt: str | Sequence[int],
        length: int,
        *,
        seed: int = 0,
        stride: int | None = None,
        stop_at_eos: bool = False,
        stop_at: Sequence[int] = (),
        skip: int = 0,
        report: Callable[[WindowDone], None] | None = None,
    ) -> Stream:
        """Returns the pieces of the text that `continue_from` (or, of tokens, `continue_tokens`)
        makes of one prompt, without its first `skip` tokens, as they are written.

        Raises InputError, at once, where those do.
        """
        ids = self._encoded([prompt])[0] if isinstance(prompt, str) else list(prompt)
        window, ends = self._windows(length, stride), (*self._ends(stop_at_eos), *stop_at)
        return Stream(
            Writing([ids], length, window, self.model.vocab, ends),
            self._keys(seed, 1),
            self._steps(),
            self.tokenizer,
            sampler=self.sampler,
            skip=skip,
            now=self._now,
            report=report,
        )

    def infill(
        self,
        template: str,
        *,
        num: int = 1,
        seed: int = 0,
        first: int = 0,
        trace: bool = False,
    ) -> Generation:
        """Fills the blanks of a text, `num` times. What is given stays to the letter.

        A warning says if the network does not look at what follows a blank. Raises InputError if
        the text has no blank or does not fit the window.
        """
        room, text = self.window.room, self.window.text
        parsed = Template.parse(template, room)
        ids, is_open = parsed.encode(self.tokenizer)
        if len(ids) > room:
            raise InputError(
                f"the text has {len(ids)} tokens: must be at most {room}, the window of this model"
            )
        span = slice(text.start, text.start + len(ids))
        tokens = np.zeros((num, self.window.length), np.int32)
        is_fixed = np.zeros((num, self.window.length), bool)
        tokens[:, span], is_fixed[:, span] = ids, ~is_open
        for end, token in zip((0, -1), self.window.frame, strict=True):
            if token is not None:
                tokens[:, end], is_fixed[:, end] = token, True
        check_prompt(tokens, is_fixed, self.model.vocab)
        if self.model.experiment.network.attends != "all" and not is_open[-1]:
            log.warning(LEFT_TO_RIGHT)
        run, windows = self._runner(trace)
        began = self._now()
        out = run(self._keys(seed, num, first), tokens, is_fixed)
        written = list(np.asarray(out.tokens)[:, span])
        seconds = self._now() - began
        begins = np.zeros((1, num), np.int32)
        record = self._trace(windows, begins, written, [is_open] * num)
        texts = tuple(parsed.filled(self.tokenizer, row, is_open) for row in written)
        new = num * int(is_open.sum())
        note = self.sampler.note(new, int(out.nfe))
        return Generation(texts, new, int(out.nfe), 1, seconds, record, note)

    def fill(
        self,
        tokens: Int[np.ndarray, "b l"],
        is_fixed: Bool[np.ndarray, "b l"],
        *is_valid: Bool[np.ndarray, "b l"],
        seed: int = 0,
        first: int = 0,
    ) -> Int[np.ndarray, "b l"]:
        """Returns rows of tokens with the positions written that are not fixed. Row number i,
        counted from `first`, depends on the seed, on i and on its fixed tokens only.

        Raises InputError if a fixed token is the mask or outside the vocabulary.
        """
        check_prompt(tokens, is_fixed, self.model.vocab, first)
        run, _ = self._runner(trace=False)
        keys = self._keys(seed, len(tokens), first)
        return np.asarray(run(keys, tokens, is_fixed, *is_valid).tokens)

    def _encoded(self, prompts: Sequence[str]) -> list[list[int]]:
        return [row.tolist() for row in self.tokenizer.encode(list(prompts))]

    def _ends(self, stop_at_eos: bool) -> tuple[int, ...]:
        """The token that ends a text, if it is to. Raises InputError if there is none."""
        eos = end_of(self.model.vocab)
        if stop_at_eos and eos is None:
            raise InputError("stop_at_eos=True: this tokenizer has no end-of-text token")
        return (eos,) if stop_at_eos and eos is not None else ()

    def _windows(self, length: int | Sequence[int], stride: int | None) -> Windows:
        """The windows of a text. Raises InputError if `length` or `stride` is out of range."""
        shortest = length if isinstance(length, int) else min(length, default=1)
        if shortest < 1:
            raise InputError(f"length={shortest}: must be at least 1")
        if stride is not None and not 1 <= stride <= self.window.room:
            raise InputError(
                f"stride={stride}: must be in 1..{self.window.room}, the text of a window"
            )
        return replace(self.window, stride=stride or self.window.stride)

    def _steps(self) -> dict[str, Callable]:
        """The single steps of a window; all are compiled before the first."""
        begin, *others = (partial(self._programs, name) for name in ("begin", "advance", "finish"))

        def prepared(*rows: Any) -> SampleState:
            state = begin(*rows)
            for name in ("advance", "finish"):
                self._programs.prepare(name, state, *rows[3:])
            return state

        return dict(zip(("begin", "advance", "finish"), (prepared, *others), strict=True))

    def _runner(self, trace: bool) -> tuple[Run, list[WindowTrace] | None]:
        """A function that generates a window, and the list to which it appends traces, if any.

        Traced windows have all rows, on one device.
        """
        if not trace:
            return partial(on_open_rows, self._programs.generate, devices=self.devices), None
        windows: list[WindowTrace] = []
        steps, mask_id = self._steps(), self.model.vocab.mask_id

        def traced(*rows: Any) -> Samples:
            samples, window = generate_traced(*rows, **steps, mask_id=mask_id)
            windows.append(window)
            return samples

        return traced, windows

    def _trace(
        self,
        windows: list[WindowTrace] | None,
        begins: np.ndarray,
        texts: list[np.ndarray],
        is_open: list[np.ndarray],
    ) -> Trace | None:
        """One trace of the texts, made from the traces of their windows, if any."""
        if windows is None:
            return None
        mask_id = self.model.vocab.mask_id
        starts = [np.where(o, mask_id, text) for o, text in zip(is_open, texts, strict=True)]
        nfe, rows = rows_of(windows, begins, self.window.text.start, starts)
        used = [ids for row in rows for ids in (row.start, row.token)]
        return Trace(
            sampler=to_text(self.sampler, lenient=True),
            mask_id=mask_id,
            pieces=self.tokenizer.pieces({mask_id}.union(*(ids.tolist() for ids in used))),
            nfe=nfe,
            rows=rows,
        )

    def _now(self) -> float:
        """The time in seconds, which stands still during compilation."""
        return time.perf_counter() - self._programs.compiling

    def _keys(self, seed: int, rows: int, first: int = 0) -> Key[Array, " b"]:
        key = stream(of_seed(seed), "sample")
        return by_row(key, jax.numpy.arange(first, first + rows))
