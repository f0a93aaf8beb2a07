"""Detokenization of benchmark texts, as published zero-shot perplexities use it.

Several corpora are distributed with spaces between words and punctuation. Published zero-shot
perplexities (SEDD, arXiv:2310.16834; MDLM, arXiv:2406.07524; and later papers) are measured after
most of those spaces are removed, by rules that go back to GPT-2's evaluation. The rules are kept
unchanged, faults included (`WikiText` also removes the space after a plural's apostrophe), since
numbers are comparable only on the same text. Each rule is applied to the result of the one before.
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
    """A function from text to text, applied to one document at a time."""

    @abc.abstractmethod
    def __call__(self, text: str) -> str: ...


def apply(rules: Sequence[Rule], text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def join_left(marks: str) -> list[Rule]:
    """Returns rules that remove the space before each mark that stands between two spaces."""
    return [(f" {re.escape(mark)} ", f"{mark} ") for mark in marks]


def tighten(opening: str, closing: str) -> Rule:
    """Returns a rule that removes spaces just inside a pair of brackets or quotes."""
    start, end = re.escape(opening), re.escape(closing)
    return rf"{start}\s*([^{end}]*?)\s*{end}", rf"{opening}\1{closing}"


def tighten_one(opening: str, closing: str) -> Rule:
    """Returns a rule that removes one space at each end inside an innermost pair, if both exist."""
    start, end = re.escape(opening), re.escape(closing)
    return f"{start} ([^{start}{end}]+) {end}", rf"{opening}\1{closing}"


PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))

WIKITEXT: tuple[Rule, ...] = (
    ("s '", "s'"),
    ("/' [0-9]/", "/'[0-9]/"),
    *((f" @{re.escape(mark)}@ ", mark) for mark in "-,."),
    *join_left(":;.!?,"),
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
"""Applied twice: among several N in a row, each pass matches only every other one."""
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
    *join_left("?"),
    (r" \?$", "?"),
    *join_left("!"),
    (r" !$", "!"),
    *join_left(",:;"),
    (" / ", "/"),
    *(tighten_one(*pair) for pair in (*PAIRS[3:], *PAIRS[:2])),
    ("([$£]) ", r"\1"),
)


@dataclass(frozen=True)
class WikiText(Cleaning):
    """For WikiText-2 and -103: `@-@`, `@,@` and `@.@`, headings, spaces around marks."""

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
    """Yields whole documents, cleaned: a rule may match across the end of a piece."""
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
