"""A split's text in blocks for the tokenizer: where each ends depends on the text alone.

However a source cuts its text into pieces, and wherever reading begins again, the blocks are the
same. That makes what is written from them the same.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mdlm.data.text.files import Piece
from mdlm.errors import InputError

BLOCK = 2**22
"""Characters in a block, about."""
LIMIT = 2**26
"""Characters of one document that may be held where there is no place to cut it."""
NEAR = 16
"""Characters that must be known behind a cut, lest what follows forbids it."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Whole documents, and parts of one at either end.

    `open`: the last text goes on in the next block. `position` is that of the block's end, what
    `blocks` takes to go on. `done` and `dropped` as in `Piece`.
    """

    texts: tuple[str, ...]
    open: bool
    position: Any
    done: float | None = None
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))


def start_of(position: Any) -> Any:
    """The source's own position, from where its pieces are needed to go on from `position`."""
    return None if position is None else position["source"]


def blocks(
    pieces: Iterable[Piece],
    cut: re.Pattern[str] | None,
    position: Any = None,
    *,
    size: int = BLOCK,
    limit: int = LIMIT,
) -> Iterator[Block]:
    """Blocks of pieces read from `start_of(position)` on.

    A block ends at the first place where `size` is reached (a character counts 1, the end of a
    document 1) that is the end of a document, or that `cut` matches before. InputError where a
    document holds more than `limit` characters without such a place.
    """
    before, skip = (None, 0) if position is None else (position["source"], position["skip"])
    # Of the document at hand: position before each piece, characters of it passed, the rest.
    parts: list[tuple[Any, int, str]] = []
    texts: list[str] = []
    weight, dropped, searched, done = 0, {}, 0, None

    def block(is_open: bool, place: Any) -> Block:
        return Block(
            texts=tuple(texts), open=is_open, position=place, done=done, dropped=dict(dropped)
        )

    for piece in pieces:
        passed = min(skip, len(piece.text))
        if not skip:  # else they were counted with the part of the piece that is passed
            for reason, count in piece.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
        skip -= passed
        if piece.text or piece.ends:
            parts.append((before, passed, piece.text[passed:]))
        before, done = piece.position, piece.done
        while cut is not None and weight + sum(len(text) for _, _, text in parts) >= size:
            text = parts[0][2] if len(parts) == 1 else "".join(text for _, _, text in parts)
            found = cut.search(text, max(size - weight, searched, 1))
            if not found or (not piece.ends and found.end() + NEAR > len(text)):
                searched = max(len(text) - NEAR, 0)
                break
            texts.append(text[: found.start()])
            parts = behind(parts, found.start())
            yield block(True, {"source": parts[0][0], "skip": parts[0][1]})
            texts, weight, dropped, searched = [], 0, {}, 0
        held = sum(len(text) for _, _, text in parts)
        if held > max(limit, size):
            start = "".join(text for _, _, text in parts)[:40]
            raise InputError(
                f"a document (at {start!r}) has {held:,} characters without a place where a word "
                f"of the tokenizer certainly ends, more than the {limit:,} that may be held: "
                "part it into documents"
            )
        if piece.ends:
            texts.append("".join(text for _, _, text in parts))
            weight += len(texts[-1]) + 1
            parts, searched = [], 0
            if weight >= size:
                yield block(False, {"source": before, "skip": 0})
                texts, weight, dropped = [], 0, {}
    if texts or dropped:
        yield block(False, {"source": before, "skip": 0})


def behind(parts: list[tuple[Any, int, str]], at: int) -> list[tuple[Any, int, str]]:
    """The parts of a document from its character `at` on."""
    for i, (before, passed, text) in enumerate(parts):
        if at < len(text):
            return [(before, passed + at, text[at:]), *parts[i + 1 :]]
        at -= len(text)
    raise ValueError("nothing is behind the end")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The tokens of a block, little-endian; where documents end in it; the bytes of its text."""

    tokens: Any  # Integer[np.ndarray, " n"]
    ends: Any  # Int64[np.ndarray, " m"]
    bytes: int
