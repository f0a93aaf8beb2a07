"""Cuts the text of a split into chunks for the tokenizer; chunk ends depend on the text alone.

The chunks are the same however a source cuts its text into pieces, and wherever reading resumes.
So the shards written from them are the same too.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mdlm.data.text.files import Piece
from mdlm.errors import InputError

CHUNK = 2**22
"""Approximate characters in a chunk."""
LIMIT = 2**26
"""Maximum characters of one document held in memory while no cut is possible."""
NEAR = 16
"""Characters that must be known after a cut, since the pattern may look ahead."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Whole documents, with possibly a part of one at either end.

    `open`: the last text continues in the next chunk. `position` is the end of the chunk, from
    which `chunks` resumes. `done` and `dropped` as in `Piece`.
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
    """Returns the source's own position from which pieces are needed to resume at `position`."""
    return None if position is None else position["source"]


def chunks(
    pieces: Iterable[Piece],
    cut: re.Pattern[str] | None,
    position: Any = None,
    *,
    size: int = CHUNK,
    limit: int = LIMIT,
) -> Iterator[Chunk]:
    """Yields chunks of the pieces that follow `start_of(position)`.

    A chunk ends once `size` is reached (a character counts 1, the end of a document 1), at the
    next end of a document or the next match of `cut`, before the match. Raises InputError if more
    than `limit` characters of a document would be held in memory without such a position.
    """
    before, skip = (None, 0) if position is None else (position["source"], position["skip"])
    # Of the current document: position before each piece, characters of it skipped, the rest.
    parts: list[tuple[Any, int, str]] = []
    texts: list[str] = []
    weight, dropped, searched, done = 0, {}, 0, None

    def chunk(is_open: bool, position: Any) -> Chunk:
        return Chunk(
            texts=tuple(texts), open=is_open, position=position, done=done, dropped=dict(dropped)
        )

    for piece in pieces:
        skipped = min(skip, len(piece.text))
        if not skip:  # else they were counted with the part of the piece that is skipped
            for reason, count in piece.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
        skip -= skipped
        if piece.text or piece.ends:
            parts.append((before, skipped, piece.text[skipped:]))
        before, done = piece.position, piece.done
        while cut is not None and weight + sum(len(text) for _, _, text in parts) >= size:
            text = parts[0][2] if len(parts) == 1 else "".join(text for _, _, text in parts)
            found = cut.search(text, max(size - weight, searched, 1))
            if not found or (not piece.ends and found.end() + NEAR > len(text)):
                searched = max(len(text) - NEAR, 0)
                break
            texts.append(text[: found.start()])
            parts = after(parts, found.start())
            yield chunk(True, {"source": parts[0][0], "skip": parts[0][1]})
            texts, weight, dropped, searched = [], 0, {}, 0
        held = sum(len(text) for _, _, text in parts)
        if held > max(limit, size):
            start = "".join(text for _, _, text in parts)[:40]
            raise InputError(
                f"a document (at {start!r}) has {held:,} characters without a certain end of a "
                f"word of the tokenizer, at most {limit:,} are allowed: split it into documents"
            )
        if piece.ends:
            texts.append("".join(text for _, _, text in parts))
            weight += len(texts[-1]) + 1
            parts, searched = [], 0
            if weight >= size:
                yield chunk(False, {"source": before, "skip": 0})
                texts, weight, dropped = [], 0, {}
    if texts or dropped:
        yield chunk(False, {"source": before, "skip": 0})


def after(parts: list[tuple[Any, int, str]], at: int) -> list[tuple[Any, int, str]]:
    """Returns the parts of a document from its character `at` on."""
    for i, (before, skipped, text) in enumerate(parts):
        if at < len(text):
            return [(before, skipped + at, text[at:]), *parts[i + 1 :]]
        at -= len(text)
    raise ValueError("the document ends before this character")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The tokens of a chunk, little-endian; where documents end in it; the bytes of its text."""

    tokens: Any  # Integer[np.ndarray, " n"]
    ends: Any  # Int64[np.ndarray, " m"]
    bytes: int
