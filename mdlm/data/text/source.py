"""Sources of text: the documents of each split, read piece by piece."""

import abc
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mdlm.data.text.cleaning import Cleaning, cleaned
from mdlm.data.text.files import Piece
from mdlm.errors import InputError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Documents by split. `clean` is applied to each document after the splits are made.

    `paths` names the fields that hold files or folders, which may be relative."""

    paths: ClassVar[tuple[str, ...]] = ()
    rows_together: ClassVar[int] = 1
    """How many rows of training, one after another, are one example."""

    clean: Cleaning | None = None

    @property
    @abc.abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The available splits, a subset of train, valid, test."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """A short description for logs and messages."""

    @abc.abstractmethod
    def _documents(self, split: str) -> list[str]:
        """Returns the documents of a split that is in `splits`."""

    def documents(self, split: str) -> list[str]:
        """Returns all documents of `split`.

        Raises InputError if the split does not exist or cannot be read.
        """
        self._check(split)
        documents = self._documents(split)
        return documents if self.clean is None else [self.clean(text) for text in documents]

    def pieces(self, split: str, position: Any = None) -> Iterator[Piece]:
        """Yields the same documents piece by piece, starting after a `Piece.position`.

        Raises InputError if the split does not exist or cannot be read.
        """
        self._check(split)
        pieces = self._pieces(split, position)
        return pieces if self.clean is None else cleaned(pieces, self.clean)

    @property
    def is_near(self) -> bool:
        """Whether the text lies on a disk, so that it can be read again to be compared."""
        return True

    def version(self) -> str | None:
        """Returns an identifier of the current state of the text; None if the source has none."""
        return None

    def lacking(self, splits: Collection[str]) -> tuple[str, ...]:
        """Returns the splits of this text that are not among `splits`; none if the text, which may
        be gone, is needed to tell."""
        try:
            return tuple(split for split in self.splits if split not in splits)
        except (InputError, OSError):
            return ()

    def check_apart(self) -> None:
        """Raises InputError if text of a held-out split is also training text, where that can be
        seen from its name."""
        return None

    def _pieces(self, split: str, position: Any) -> Iterator[Piece]:
        """Yields the pieces of a split that is in `splits`; by default one per document."""
        documents = self._documents(split)
        for i in range(position or 0, len(documents)):
            yield Piece(text=documents[i], ends=True, position=i + 1, done=(i + 1) / len(documents))

    def _check(self, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
        if split not in self.splits:
            raise InputError(f"{self.name} has no {split} split, only {', '.join(self.splits)}")


def as_tuple(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
