"""The text at the end of each step, as lines of spans. The terminal and the GIF both draw these.

An open position is as wide as the token it has at the end, so that the text does not move while it
is written.
"""

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mdlm.errors import InputError
from mdlm.generation.trace import RowTrace, Trace

Kind = Literal["given", "open", "remasked", "noise", "written", "rewritten"]
"""State of a position: a token of the prompt; the mask, never written; the mask again, after its
token was remasked; a token of the prior; a token of the network; a second or later token of the
network."""

SHADES, DECADES = 10, 3
"""Number of shades for the confidence, and decades that they cover: equal steps of its logarithm
from 1/1000 to 1. Among thousands of tokens a good guess may have a probability of one in a hundred.
"""

COVERS: dict[Kind, str] = {"open": "\N{MIDDLE DOT}", "remasked": "\N{MULTIPLICATION SIGN}"}
"""Characters drawn where there is no token."""

BREAK = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
"""Character drawn before a line break of the text."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Text without a line break that is drawn in one style.

    `shade` is the confidence, from 0 (at most 1/1000) to SHADES - 1 (near 1). `is_new`: the token
    was written or remasked in this step.
    """

    text: str
    kind: Kind
    shade: int
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The text at the end of a step.

    `nfe` counts the network calls so far, `open` the positions that are not written yet.
    Of this step alone: `written` and `remasked` count tokens, and `confidence` is the mean over the
    written ones (nan if there are none).
    """

    step: int
    nfe: int
    open: int
    written: int
    remasked: int
    confidence: float
    lines: tuple[tuple[Span, ...], ...]


def row_of(trace: Trace, number: int) -> RowTrace:
    """Returns a row by its number, counted from 1. Raises InputError if there is no such row."""
    if not 1 <= number <= len(trace.rows):
        raise InputError(
            f"--row {number}: must be from 1 to {len(trace.rows)}, the rows of this trace"
        )
    return trace.rows[number - 1]


def text_of(trace: Trace, row: RowTrace) -> str:
    """Returns the text after the last step."""
    return "".join(visible(trace.pieces[int(token)]) for token in row.after(trace.steps))


def frames(trace: Trace, row: RowTrace, columns: int) -> Iterator[Frame]:
    """Yields the text before the first step and after each, in lines of at most `columns` cells."""
    mask = trace.mask_id
    tokens, end = row.start.tolist(), row.after(trace.steps).tolist()
    is_given = (row.start != mask).tolist()
    shades, writes = [0] * len(tokens), [0] * len(tokens)
    for step in range(trace.steps + 1):
        is_new = [False] * len(tokens)
        written: list[float] = []
        remasked = 0
        for i in range(*np.searchsorted(row.step, [step, step + 1])):
            position, token, p = int(row.position[i]), int(row.token[i]), float(row.confidence[i])
            tokens[position], is_new[position], shades[position] = token, True, shade_of(p)
            if p > 0:  # written by the network
                writes[position] += 1
                written.append(p)
            elif token == mask and writes[position]:
                remasked += 1
        spans = []
        for position, token in enumerate(tokens):
            kind = _kind(is_given[position], token == mask, writes[position])
            text = visible(trace.pieces[end[position] if kind in COVERS else token])
            text = text.replace("\n", BREAK + "\n")
            if kind in COVERS:
                text = "\n".join(COVERS[kind] * width(line) for line in text.split("\n"))
            shade, new = shades[position], is_new[position]
            spans.append(Span(text=text, kind=kind, shade=shade, is_new=new))
        yield Frame(
            step=step,
            nfe=int(trace.nfe[step]),
            open=sum(span.kind in ("open", "remasked", "noise") for span in spans),
            written=len(written),
            remasked=remasked,
            confidence=sum(written) / len(written) if written else float("nan"),
            lines=tuple(wrapped(spans, columns)),
        )


def shade_of(p: float) -> int:
    """Returns the shade of a probability."""
    shade = SHADES * (1 + math.log10(max(p, 10.0**-DECADES)) / DECADES)
    return min(max(int(shade), 0), SHADES - 1)


def _kind(is_given: bool, is_mask: bool, writes: int) -> Kind:
    if is_given:
        return "given"
    if is_mask:
        return "remasked" if writes else "open"
    return ("noise", "written", "rewritten")[min(writes, 2)]


def visible(text: str) -> str:
    """Returns a text without characters that move a terminal's cursor, except line breaks."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def width(text: str) -> int:
    """Returns how many cells of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def wrapped(spans: list[Span], columns: int) -> Iterator[tuple[Span, ...]]:
    """Yields the spans in lines, broken at line breaks and before a token that does not fit."""
    line: list[Span] = []
    used = 0
    for span in spans:
        for number, part in enumerate(span.text.split("\n")):
            if number or (used and used + width(part) > columns):
                yield tuple(line)
                line, used = [], 0
            while width(part) > columns:
                yield (*line, replace(span, text=part[:columns]))
                line, used, part = [], 0, part[columns:]
            if part:
                line.append(replace(span, text=part))
                used += width(part)
    yield tuple(line)
