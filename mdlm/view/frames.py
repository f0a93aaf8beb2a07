"""A text at the end of each step, as lines of spans: what the terminal and the GIF both draw.

An open place is as wide as the token that will stand there at the end, so that the text does not
move about while it is written.
"""

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mdlm.errors import InputError
from mdlm.generation.trace import RowTrace, Trace

Kind = Literal["given", "open", "back", "noise", "written", "rewritten"]
"""What is at a place: a token of the prompt; nothing yet; nothing any more, as what was written
was taken back; a token of the prior; one of the network; one in place of an earlier one of its."""

SHADES, DECADES = 10, 3
"""Confidence is drawn in so many shades, equal steps of its logarithm from 1/1000 to 1: among
thousands of tokens a good guess may well have a probability of one in a hundred."""

COVERS: dict[Kind, str] = {"open": "\N{MIDDLE DOT}", "back": "\N{MULTIPLICATION SIGN}"}
"""What is drawn where there is no token."""

BREAK = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
"""What is drawn before a line break of the text."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A run of text without a line break that is drawn in one way.

    `shade` is the confidence, from 0 (1/1000 and less) to SHADES - 1 (near 1). `is_new` says that
    the token came, or went, in this very step.
    """

    text: str
    kind: Kind
    shade: int
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A text at the end of a step. `written` and `back` count the step's own changes, and
    `confidence` is the mean over what it wrote (nan where it wrote nothing)."""

    step: int
    nfe: int
    open: int
    written: int
    back: int
    confidence: float
    lines: tuple[tuple[Span, ...], ...]


def row_of(trace: Trace, number: int) -> RowTrace:
    """A row by its number, counted from 1. InputError where there is none."""
    if not 1 <= number <= len(trace.rows):
        raise InputError(f"--row {number}: the rows of this trace are 1 to {len(trace.rows)}")
    return trace.rows[number - 1]


def text_of(trace: Trace, row: RowTrace) -> str:
    """The text at the end."""
    return "".join(visible(trace.pieces[int(token)]) for token in row.after(trace.steps))


def frames(trace: Trace, row: RowTrace, columns: int) -> Iterator[Frame]:
    """The text before the first step and after each, in lines of at most `columns` cells."""
    mask = trace.mask_id
    tokens, end = row.start.tolist(), row.after(trace.steps).tolist()
    is_given = (row.start != mask).tolist()
    shades, times = [0] * len(tokens), [0] * len(tokens)
    for step in range(trace.steps + 1):
        is_new = [False] * len(tokens)
        written: list[float] = []
        back = 0
        for i in range(*np.searchsorted(row.step, [step, step + 1])):
            place, token, p = int(row.position[i]), int(row.token[i]), float(row.confidence[i])
            tokens[place], is_new[place], shades[place] = token, True, shade_of(p)
            if p > 0:  # written by the network
                times[place] += 1
                written.append(p)
            elif token == mask and times[place]:
                back += 1
        spans = []
        for place, token in enumerate(tokens):
            kind = _kind(is_given[place], token == mask, times[place])
            text = visible(trace.pieces[end[place] if kind in COVERS else token])
            text = text.replace("\n", BREAK + "\n")
            if kind in COVERS:
                text = "\n".join(COVERS[kind] * width(line) for line in text.split("\n"))
            spans.append(Span(text=text, kind=kind, shade=shades[place], is_new=is_new[place]))
        yield Frame(
            step=step,
            nfe=int(trace.nfe[step]),
            open=sum(span.kind in ("open", "back", "noise") for span in spans),
            written=len(written),
            back=back,
            confidence=sum(written) / len(written) if written else float("nan"),
            lines=tuple(wrapped(spans, columns)),
        )


def shade_of(p: float) -> int:
    """The shade of a probability."""
    place = SHADES * (1 + math.log10(max(p, 10.0**-DECADES)) / DECADES)
    return min(max(int(place), 0), SHADES - 1)


def _kind(is_given: bool, is_mask: bool, times: int) -> Kind:
    if is_given:
        return "given"
    if is_mask:
        return "back" if times else "open"
    return ("noise", "written", "rewritten")[min(times, 2)]


def visible(text: str) -> str:
    """Text without anything that would move a terminal's cursor, the line break apart."""
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def width(text: str) -> int:
    """Cells of a terminal that a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def wrapped(spans: list[Span], columns: int) -> Iterator[tuple[Span, ...]]:
    """Spans in lines: broken at line breaks, and where a token no longer fits."""
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
