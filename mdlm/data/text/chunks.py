"""Cuts the text of a split into chunks for the tokenizer; chunk ends depend on the text alone.

The chunks are the same however a source cuts its text into pieces, and wherever reading resumes.
So the shards written from them are the same too.
"""

import re
from collections import Counter
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

Parts = list[tuple[Any, int, str]]
"""Of a document: the position before each piece, the characters of it skipped, the rest."""


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


class Draft:
    """The chunk that is being filled."""

    def __init__(self):
        self.texts: list[str] = []
        self.weight = 0  # a character counts 1, the end of a document 1
        self.dropped: Counter[str] = Counter()
        self.done: float | None = None

    def add(self, text: str) -> None:
        """Adds a document, or the part of one."""
        self.texts.append(text)
        self.weight += len(text) + 1

    def finish(self, is_open: bool, position: Any) -> Chunk:
        """Returns the chunk, which ends at `position`, and begins the next."""
        texts, dropped = tuple(self.texts), dict(self.dropped)
        self.texts, self.weight = [], 0
        self.dropped.clear()
        return Chunk(texts=texts, open=is_open, position=position, done=self.done, dropped=dropped)


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
    parts: Parts = []
    draft, searched = Draft(), 0
    for piece in pieces:
        skipped = min(skip, len(piece.text))
        if not skip:  # else they were counted with the part of the piece that is skipped
            draft.dropped.update(piece.dropped)
        skip -= skipped
        if piece.text or piece.ends:
            parts.append((before, skipped, piece.text[skipped:]))
        before, draft.done = piece.position, piece.done
        while cut is not None and draft.weight + held_in(parts) >= size:
            text = joined(parts)
            at = certain_cut(text, cut, max(size - draft.weight, searched, 1), piece.ends)
            if at is None:
                searched = max(len(text) - NEAR, 0)
                break
            draft.add(text[:at])
            parts, searched = after(parts, at), 0
            yield draft.finish(True, {"source": parts[0][0], "skip": parts[0][1]})
        if (held := held_in(parts)) > max(limit, size):
            raise InputError(
                f"a document (at {joined(parts)[:40]!r}) has {held:,} characters without a certain "
                f"end of a word of the tokenizer, at most {limit:,} are allowed: split it into "
                "documents"
            )
        if piece.ends:
            draft.add(joined(parts))
            parts, searched = [], 0
            if draft.weight >= size:
                yield draft.finish(False, {"source": before, "skip": 0})
    if draft.texts or draft.dropped:
        yield draft.finish(False, {"source": before, "skip": 0})


def held_in(parts: Parts) -> int:
    """Returns the number of characters of the parts."""
    return sum(len(text) for _, _, text in parts)


def joined(parts: Parts) -> str:
    """Returns the text of the parts."""
    return parts[0][2] if len(parts) == 1 else "".join(text for _, _, text in parts)


def certain_cut(text: str, cut: re.Pattern[str], start: int, ends: bool) -> int | None:
    """Returns the first match of `cut` from the character `start` on, None if there is none yet.

    A match near the end counts only if the document `ends` there: more text could change it.
    """
    found = cut.search(text, start)
    return found.start() if found and (ends or found.end() + NEAR <= len(text)) else None


def after(parts: Parts, at: int) -> Parts:
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
