"""From prompts to text: a model, its parameters and its tokenizer behind one object.

A continuation slides a window over the text (see `generation.windows`). An infilling is one window
in which all tokens but the blanks are fixed (see `generation.template`). The network was trained on
full rows only, so the positions after the end of an infilled text are sampled too, and dropped.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from jax import Array
from jaxtyping import Key

from mdlm.config.component_text import to_text
from mdlm.data.packing import Packing
from mdlm.data.tokens.special_tokens import end_of, ends
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError
from mdlm.experiment.model import Model, check_sampler
from mdlm.generation.programs import Programs, mesh_of
from mdlm.generation.prompts import check_prompt
from mdlm.generation.template import Template
from mdlm.generation.texts import Text, text_of
from mdlm.generation.trace import Trace, WindowTrace, generate_traced, rows_of
from mdlm.generation.windows import Run, WindowDone, Windows, generate_long
from mdlm.keys import by_row, of_seed, stream
from mdlm.samplers.base import Sampler
from mdlm.samplers.state import Samples
from mdlm.types import ArrayTree

log = logging.getLogger(__name__)

LEFT_TO_RIGHT = (
    "this run's network goes from left to right: it fills a blank without looking at what follows "
    "(its block); a network that attends to all of a row, such as DiT, does look"
)


@dataclass(frozen=True)
class Generation:
    """The texts of one call, and their cost. `seconds` excludes compilation.

    `trace` is None unless requested; its positions count from the start of each text. Tracing
    takes time, which `seconds` includes.
    """

    texts: tuple[Text, ...]
    new_tokens: int
    nfe: int
    windows: int
    seconds: float
    trace: Trace | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds if self.seconds > 0 else float("nan")

    def __str__(self) -> str:
        windows = f" in {self.windows} windows" if self.windows > 1 else ""
        return (
            f"{len(self.texts)} texts, {self.new_tokens} new tokens, NFE {self.nfe}{windows},"
            f" {self.seconds:.1f} s, {self.tokens_per_second:.0f} tokens/s"
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
    """

    def __init__(
        self,
        model: Model,
        params: ArrayTree,
        tokenizer: Tokenizer,
        window: Windows,
        sampler: Sampler | None = None,
    ):
        self.model, self.params, self.tokenizer, self.window = model, params, tokenizer, window
        self.sampler = sampler or model.experiment.sampler
        check_sampler(self.sampler, model)
        if self.sampler.guidance is not None and self.sampler.guidance.needs_labels:
            raise InputError(
                'guidance=ClassifierFree(without="label"): a Generator takes no labels;'
                " use mdlm.samplers.loop.generate(..., label=...)"
            )

        self._programs = Programs(self.sampler, model, mesh_of(params))

    def continue_from(
        self,
        prompts: Sequence[str],
        length: int,
        *,
        seed: int = 0,
        stride: int | None = None,
        stop_at_eos: bool = False,
        trace: bool = False,
        report: Callable[[WindowDone], None] | None = None,
    ) -> Generation:
        """Continues each prompt (which may be empty) until the text has `length` tokens.

        With `trace` the result records the changes of each step; the texts are the same.

        Raises InputError if a prompt is too long or cannot be encoded with the vocabulary, or if
        `length` or `stride` is out of range.
        """
        if length < 1:
            raise InputError(f"length={length}: must be at least 1")
        if stride is not None and not 1 <= stride <= self.window.room:
            raise InputError(
                f"stride={stride}: must be in 1..{self.window.room}, the text of a window"
            )
        eos = end_of(self.model.vocab)
        if stop_at_eos and eos is None:
            raise InputError("stop_at_eos=True: this tokenizer has no end-of-text token")
        ids = [row.tolist() for row in self.tokenizer.encode(list(prompts))]
        return self.continue_tokens(
            ids,
            length,
            seed=seed,
            stride=stride,
            stop_at=(eos,) if stop_at_eos and eos is not None else (),
            trace=trace,
            report=report,
        )

    def continue_tokens(
        self,
        prompts: Sequence[Sequence[int]],
        length: int,
        *,
        seed: int = 0,
        stride: int | None = None,
        stop_at: Sequence[int] = (),
        trace: bool = False,
        report: Callable[[WindowDone], None] | None = None,
    ) -> Generation:
        """Continues prompts that are tokens, as `continue_from`, each to the first of the tokens
        `stop_at` that is generated."""
        ids = [list(prompt) for prompt in prompts]
        window = replace(self.window, stride=stride or self.window.stride)
        run, windows = self._runner(trace)
        began = self._now()
        out = generate_long(
            self._keys(seed, len(ids)),
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
        return Generation(texts, new, out.nfe, out.windows, seconds, record)

    def infill(
        self, template: str, *, num: int = 1, seed: int = 0, trace: bool = False
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
        out = run(self._keys(seed, num), tokens, is_fixed)
        written = list(np.asarray(out.tokens)[:, span])
        seconds = self._now() - began
        begins = np.zeros((1, num), np.int32)
        record = self._trace(windows, begins, written, [is_open] * num)
        texts = tuple(parsed.filled(self.tokenizer, row, is_open) for row in written)
        new = num * int(is_open.sum())
        return Generation(texts, new, int(out.nfe), 1, seconds, record)

    def _runner(self, trace: bool) -> tuple[Run, list[WindowTrace] | None]:
        """A function that generates a window, and the list to which it appends traces, if any."""
        if not trace:
            return partial(self._programs, "generate", self.params), None
        windows: list[WindowTrace] = []
        names = ("begin", "advance", "finish")
        steps = {name: partial(self._programs, name, self.params) for name in names}
        mask_id = self.model.vocab.mask_id

        def traced(keys: Key[Array, " b"], tokens, is_fixed) -> Samples:
            samples, window = generate_traced(keys, tokens, is_fixed, **steps, mask_id=mask_id)
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

    def _keys(self, seed: int, rows: int) -> Key[Array, " b"]:
        key = stream(of_seed(seed), "sample")
        return by_row(key, jax.numpy.arange(rows))


def window_of(packing: Packing, model: Model) -> Windows:
    """Returns windows with the length and frame of the rows that a network was trained on.

    A causal network always needs a start token. Raises InputError if the tokenizer has none.
    """
    begins, closes = packing.frame
    causal = model.experiment.network.attends == "causal"
    bos, eos = ends(model.vocab) if begins or closes or causal else (None, None)
    return Windows(
        length=packing.length,
        frame=(bos if begins or causal else None, eos if closes and not causal else None),
    )
