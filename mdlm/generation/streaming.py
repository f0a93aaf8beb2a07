"""One text, given out while it is written.

A text grows window by window. Inside a window the steps are taken one by one, as for a trace, and
the tokens up to the first open position are given out, if the sampler never changes a token that it
wrote; of other samplers, whole windows.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jax import Array
from jaxtyping import Key

from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.generation.growing import pieces, shown_pieces
from mdlm.generation.texts import Generation, text_of
from mdlm.generation.trace import states
from mdlm.generation.windows import WindowDone, Writing
from mdlm.samplers.base import Sampler
from mdlm.samplers.state import SampleState


def keeps(sampler: Sampler) -> bool:
    """Whether what the sampler wrote stays. A class derived from one that keeps it might not."""
    return vars(type(sampler)).get("keeps_written", False)


class Stream:
    """Yields the pieces of one text, which is written meanwhile; it can be read once.

    The pieces together are the text of a `Generation`, and those of `shown` what a terminal shows
    of it. `generation` is None until all are read. The text begins after `skip` tokens.
    """

    def __init__(
        self,
        text: Writing,
        key: Key[Array, " 1"],
        steps: dict[str, Callable],
        tokenizer: Tokenizer,
        *,
        sampler: Sampler,
        skip: int = 0,
        now: Callable[[], float],
        report: Callable[[WindowDone], None] | None = None,
    ):
        self._text, self._key, self._steps, self._sampler = text, key, steps, sampler
        self._tokenizer, self._skip, self._now, self._report = tokenizer, skip, now, report
        self._prompt, self._nfe = len(text.texts[0]), 0
        self.generation: Generation | None = None

    def __iter__(self) -> Iterator[str]:
        return pieces(self._tokens(), self._tokenizer)

    def shown(self) -> Iterator[str]:
        """Yields the text as a terminal shows it: see `Text.shown`."""
        return shown_pieces(self._tokens(), self._tokenizer)

    def _tokens(self) -> Iterator[Sequence[int]]:
        """Yields the tokens of the text as they become final."""
        text, told, began = self._text, self._skip, self._now()
        while text.open_rows:
            for known in self._window():
                if len(known) > told:
                    yield known[told:]
                    told = len(known)
            if self._report is not None:
                done = len(text.begins)
                self._report(
                    WindowDone(
                        window=done,
                        windows=text.windows,
                        open_rows=text.open_rows,
                        nfe=self._nfe,
                    )
                )
        whole = text.texts[0][: text.lengths[0]]
        yield whole[told:]
        new = len(whole) - self._prompt
        self.generation = Generation(
            (text_of(self._tokenizer, whole[self._skip :]),),
            new_tokens=new,
            nfe=self._nfe,
            windows=len(text.begins),
            seconds=self._now() - began,
            note=self._sampler.note(new, self._nfe),
        )

    def _window(self) -> Iterator[list[int]]:
        """Writes a window; yields the final tokens of the text after each step."""
        text, before = self._text, self._nfe
        written = np.zeros(0, np.int32)
        for state in states(text.keys(self._key), *text.next(), **self._steps):
            written, is_open = self._seen(state)
            self._nfe = before + int(state.nfe)
            if keeps(self._sampler):
                count = int(np.argmax(is_open)) if is_open.any() else None
                known, length = text.with_window(0, written, count)
                yield known[:length]
                if length is not None:  # what would follow is not part of the text
                    break
        text.add(written[None])
        yield text.texts[0][: text.lengths[0]]

    def _seen(self, state: SampleState) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of the window, and which of its text are open."""
        written = np.array(state.tokens)[0]  # a copy: the next step reuses the state's memory
        return written, written[self._text.window.text] == self._text.vocab.mask_id
