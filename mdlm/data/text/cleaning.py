"""Undoing the tokenisation of benchmark texts: what zero-shot perplexities are quoted on.

Several corpora come as words parted by spaces, punctuation too. Published zero-shot perplexities
(SEDD, arXiv:2310.16834; MDLM, arXiv:2406.07524; and those after them) are of texts with most of
those spaces taken out again, by rules that go back to GPT-2's evaluation. The rules are kept as
they are, their faults included (`WikiText` also closes up the space after a plural's apostrophe),
since a number is comparable only on the very same text. Each rule is applied to what the one
before it left.
"""

import abc
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from mdlm.data.text.files import Piece

Rule = tuple[str, str]
"""A regular expression and what replaces it."""


@dataclass(frozen=True)
class Cleaning(abc.ABC):
    """A text in, a text out; documents are cleaned one by one."""

    @abc.abstractmethod
    def __call__(self, text: str) -> str: ...


def apply(rules: Sequence[Rule], text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def hug_left(marks: str) -> list[Rule]:
    """Marks between two spaces move up to the word before."""
    return [(f" {re.escape(mark)} ", f"{mark} ") for mark in marks]


def tighten(opening: str, closing: str) -> Rule:
    """No space just inside a pair of brackets or quotes."""
    start, end = re.escape(opening), re.escape(closing)
    return rf"{start}\s*([^{end}]*?)\s*{end}", rf"{opening}\1{closing}"


def tighten_one(opening: str, closing: str) -> Rule:
    """The one space just inside an innermost pair is taken out, where it stands at both ends."""
    start, end = re.escape(opening), re.escape(closing)
    return f"{start} ([^{start}{end}]+) {end}", rf"{opening}\1{closing}"


PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))

WIKITEXT: tuple[Rule, ...] = (
    ("s '", "s'"),
    ("/' [0-9]/", "/'[0-9]/"),
    *((f" @{re.escape(mark)}@ ", mark) for mark in "-,."),
    *hug_left(":;.!?,"),
    *(tighten(*pair) for pair in PAIRS),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
NUMBERS: tuple[Rule, ...] = ((" N ", " 1 "),) * 2
"""Twice: of several in a row, each pass finds every other one."""
PTB_RULES: tuple[Rule, ...] = (
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    (r"\\/", "/"),
    *NUMBERS,
    (r"([$#]) 1", r"\g<1>1"),
    ("<unk>", "?"),
)
LM1B_RULES: tuple[Rule, ...] = (
    ("(https?) : / / ", r"\1://"),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    *hug_left("?"),
    (r" \?$", "?"),
    *hug_left("!"),
    (r" !$", "!"),
    *hug_left(",:;"),
    (" / ", "/"),
    *(tighten_one(*pair) for pair in (*PAIRS[3:], *PAIRS[:2])),
    ("([$£]) ", r"\1"),
)


@dataclass(frozen=True)
class WikiText(Cleaning):
    """For WikiText-2 and -103: `@-@` and its like, headings, spaces around marks."""

    def __call__(self, text: str) -> str:
        return apply(WIKITEXT, text)


@dataclass(frozen=True)
class PTB(Cleaning):
    """For the Penn Treebank: contractions, N for numbers (becomes 1), `<unk>` (becomes ?)."""

    def __call__(self, text: str) -> str:
        return apply(PTB_RULES, text)


@dataclass(frozen=True)
class LM1B(Cleaning):
    """For One Billion Words: spaces around marks, within brackets and quotes, in addresses."""

    def __call__(self, text: str) -> str:
        return apply(LM1B_RULES, text)


@dataclass(frozen=True)
class Lambada(Cleaning):
    """For LAMBADA: straight quotes, no space around the passage, a line break before it."""

    def __call__(self, text: str) -> str:
        return "\n" + apply((("[“”]", '"'),), text).strip()


@dataclass(frozen=True)
class ScientificPapers(Cleaning):
    """For arXiv and PubMed articles: the rules of `WikiText`, then those of `LM1B`."""

    def __call__(self, text: str) -> str:
        return apply(LM1B_RULES, apply(WIKITEXT, text))


def cleaned(pieces: Iterable[Piece], clean: Cleaning) -> Iterator[Piece]:
    """Whole documents, cleaned (a rule may look across the place where one was cut)."""
    parts: list[str] = []
    dropped: Counter[str] = Counter()
    piece = None
    for piece in pieces:
        parts.append(piece.text)
        dropped.update(piece.dropped)
        if piece.ends:
            yield replace(piece, text=clean("".join(parts)), dropped=dict(dropped))
            parts, dropped = [], Counter()
    if piece is not None and dropped:
        yield replace(piece, text="", dropped=dict(dropped))
