"""Sources of text: documents of splits, read piece by piece."""

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mdlm.data.text.cleaning import Cleaning, cleaned
from mdlm.data.text.files import Piece
from mdlm.errors import InputError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Documents by split. `clean` is applied to each (to what was held out of it, where it was
    cut)."""

    clean: Cleaning | None = None

    @property
    @abc.abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits that there are, a subset of train, valid, test."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """A few words for the log."""

    @abc.abstractmethod
    def _documents(self, split: str) -> list[str]:
        """The documents of a split that is known to be there."""

    def documents(self, split: str) -> list[str]:
        """All documents of `split`. InputError where the split is absent or cannot be read."""
        self._check(split)
        documents = self._documents(split)
        return documents if self.clean is None else [self.clean(text) for text in documents]

    def pieces(self, split: str, position: Any = None) -> Iterator[Piece]:
        """The same documents, piece by piece, from a `Piece.position` on. InputError as above."""
        self._check(split)
        pieces = self._pieces(split, position)
        return pieces if self.clean is None else cleaned(pieces, self.clean)

    def version(self) -> str | None:
        """What tells this state of the text from an earlier or later one, where something does."""
        return None

    def _pieces(self, split: str, position: Any) -> Iterator[Piece]:
        """The pieces of a split that is known to be there; here a document each."""
        documents = self._documents(split)
        for i in range(position or 0, len(documents)):
            yield Piece(text=documents[i], ends=True, position=i + 1, done=(i + 1) / len(documents))

    def _check(self, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
        if split not in self.splits:
            raise InputError(f"{self.name} has no {split} split, only {', '.join(self.splits)}")


def as_tuple(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
