"""A text with blanks: `[MASK]` stands for one token, `[MASK:12]` for twelve."""

import re
from dataclasses import dataclass

import numpy as np

from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError
from mdlm.generation.texts import Text, documents

BLANK = re.compile(r"\[MASK(?:\s*:\s*(\d+))?\s*\]")
BEGUN = re.compile(r"\[MASK(?![A-Za-z_])[^\]]{0,20}\]?")
"""What looks like a blank."""


@dataclass(frozen=True)
class Template:
    """The given parts of a text, one more than blanks, and the number of tokens of each blank."""

    given: tuple[str, ...]
    blanks: tuple[int, ...]

    @staticmethod
    def parse(text: str, most: int) -> "Template":
        """Reads a text. Raises InputError if it has no blank, or one of other than 1 to `most`
        tokens, or something that is almost a blank."""
        found = list(BLANK.finditer(text))
        ends = [0, *(blank.end() for blank in found)]
        starts = [*(blank.start() for blank in found), len(text)]
        given = tuple(text[end:start] for end, start in zip(ends, starts, strict=True))
        for part in given:
            if (near := BEGUN.search(part)) is not None:
                raise InputError(
                    f"{near.group()!r} is no blank: write [MASK] (one token) or [MASK:3] (three)"
                )
        if not found:
            raise InputError("the text to infill has no [MASK] (one token) or [MASK:n] (n tokens)")
        for blank in found:
            if not 1 <= int(blank.group(1) or 1) <= most:
                raise InputError(
                    f"{blank.group()}: a blank has 1 to {most} tokens, the window of this model"
                )
        return Template(given, tuple(int(blank.group(1) or 1) for blank in found))

    def encode(self, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens, 0 in blanks, and which are open."""
        first, *others = self.given
        known = [tokenizer.encode([first])[0], *(tokenizer.encode_after(part) for part in others)]
        ids, is_open = [known[0]], [np.zeros(len(known[0]), bool)]
        for n, part in zip(self.blanks, known[1:], strict=True):
            ids += [np.zeros(n, np.int32), part]
            is_open += [np.ones(n, bool), np.zeros(len(part), bool)]
        return np.concatenate(ids), np.concatenate(is_open)

    def filled(self, tokenizer: Tokenizer, ids: np.ndarray, is_open: np.ndarray) -> Text:
        """Returns the text of filled blanks; the given parts are as they were given."""
        pieces, at = [self.given[0]], 0
        for n, given in zip(self.blanks, self.given[1:], strict=True):
            start = at + int(np.argmax(is_open[at:]))
            at = start + n
            done = start
            for number, part in enumerate(documents(ids[start:at], tokenizer)):
                if number:
                    pieces.append("")
                pieces[-1] += _added(tokenizer, ids, done, done + len(part), pieces[-1])
                done += len(part)
            pieces[-1] += given
        return Text("".join(pieces), tuple(int(i) for i in ids), tuple(pieces))


def _added(tokenizer: Tokenizer, ids: np.ndarray, start: int, stop: int, before: str) -> str:
    """Returns the text that the tokens from `start` to `stop` add to the text of those before."""
    known, more = tokenizer.decode(ids[:start]), tokenizer.decode(ids[:stop])
    added = more[len(known) :] if more.startswith(known) else tokenizer.decode(ids[start:stop])
    # Some tokenizers join words by a space of their own, where the given text has one already.
    doubled = before[-1:].isspace() and not known[-1:].isspace()
    return added.removeprefix(" ") if doubled else added
