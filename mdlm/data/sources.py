"""Where text comes from: files, the Hugging Face hub, or the reference that Python carries.

A source gives each split (`train`, `valid`, `test`) as a list of documents, untouched: no
cleaning, no shuffling, empty documents included. What is held out of the training text is held
out by a fixed rule, so that every process and every later evaluation sees the same splits.
"""

import abc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdlm.data.held_out import check_fractions, held_out_topics, hold_out
from mdlm.data.reading import matching_files, read_documents
from mdlm.types import InputError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Documents by split."""

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
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
        if split not in self.splits:
            raise InputError(f"{self.name} has no {split} split, only {', '.join(self.splits)}")
        return self._documents(split)


def as_tuple(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


@dataclass(frozen=True, kw_only=True)
class TextFiles(Source):
    """Text files of one's own: `.txt` and `.jsonl`, either one also with `.gz`, UTF-8.

    A `.txt` file is one document, or several where `separator` (such as `"\\n\\n\\n"`) parts them;
    a `.jsonl` file has one object per line, whose `text_field` is a document. Names may be
    patterns (`books/*.txt.gz`), taken in alphabetical order, relative to the working folder.

    Where `valid` names no files, the last `valid_fraction` of the training text is held out; where
    neither `valid` nor `test` names any, the last `test_fraction` becomes the test split, after
    the valid one. Of 20 documents or more, whole documents are held out (by number, at least
    one); of fewer, the text is cut by characters, at the line break nearest to the exact place,
    or exactly there if no line break is within 1000 characters. A fraction of 0 holds out nothing.

    Errors (InputError): a missing file, a pattern without matches, an unknown ending, bytes that
    are not UTF-8 (with their place), a line that is no JSON object or lacks the field, no text.
    """

    train: str | tuple[str, ...]
    valid: str | tuple[str, ...] | None = None
    test: str | tuple[str, ...] | None = None
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    text_field: str = "text"
    separator: str | None = None

    def __post_init__(self):
        check_fractions(self.valid_fraction, self.test_fraction)
        if not as_tuple(self.train):
            raise ValueError("train names no files")
        if self.separator == "":
            raise ValueError("separator is empty: give the text between documents, or None")

    @property
    def _held_out(self) -> tuple[float, float]:
        """Shares of the training text that go to valid and test."""
        valid = 0.0 if self.valid else self.valid_fraction
        test = 0.0 if self.valid or self.test else self.test_fraction
        return valid, test

    @property
    def splits(self) -> tuple[str, ...]:
        valid, test = self._held_out
        there = (True, bool(self.valid or valid), bool(self.test or test))
        return tuple(split for split, is_there in zip(SPLITS, there, strict=True) if is_there)

    @property
    def name(self) -> str:
        return f"text files {', '.join(as_tuple(self.train))}"

    def _documents(self, split: str) -> list[str]:
        files = {"train": self.train, "valid": self.valid, "test": self.test}[split]
        if files and split != "train":
            return self._read(as_tuple(files))
        parts = hold_out(self._read(as_tuple(self.train)), *self._held_out)
        documents = parts[SPLITS.index(split)]
        if not any(documents):
            raise InputError(
                f"{self.name}: too little text to hold out a {split} split; "
                f"give more text, or name files for it"
            )
        return documents

    def _read(self, patterns: tuple[str, ...]) -> list[str]:
        documents = []
        for path in matching_files(patterns):
            documents += read_documents(path, self.text_field, self.separator)
        if not any(documents):
            raise InputError(f"no text in {', '.join(patterns)}")
        return documents


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Source):
    """A data set of the Hugging Face hub, or a folder: parquet and the like, or `save_to_disk`.

    `train`, `valid` and `test` name its splits (None: there is no such split). With
    `held_out_documents` the valid split is that many documents from the end of train, as is the
    custom for OpenWebText (the last 100,000), and `valid` is not looked at.
    """

    path: str
    config: str | None = None
    text_field: str = "text"
    train: str = "train"
    valid: str | None = "validation"
    test: str | None = "test"
    revision: str | None = None
    held_out_documents: int = 0

    def __post_init__(self):
        if self.held_out_documents < 0:
            raise ValueError(f"held_out_documents={self.held_out_documents} is negative")

    @property
    def _names(self) -> dict[str, str | None]:
        """The data set's own name of each split."""
        valid = self.train if self.held_out_documents else self.valid
        return {"train": self.train, "valid": valid, "test": self.test}

    @property
    def splits(self) -> tuple[str, ...]:
        import datasets

        if self._is_saved:
            stored = self._open(lambda: datasets.load_from_disk(self.path))
            there = list(stored) if isinstance(stored, datasets.DatasetDict) else [self.train]
        else:
            there = self._open(
                lambda: datasets.get_dataset_split_names(
                    self.path, self.config, revision=self.revision
                )
            )
        return tuple(split for split in SPLITS if self._names[split] in there)

    @property
    def name(self) -> str:
        return f"data set {self.path}" + (f" ({self.config})" if self.config else "")

    @property
    def _is_saved(self) -> bool:
        marks = ("dataset_dict.json", "state.json")
        return any((Path(self.path) / mark).is_file() for mark in marks)

    def _open(self, read: Callable[[], Any]) -> Any:
        """What `read` returns; whatever goes wrong inside the library, in one line."""
        try:
            return read()
        except Exception as error:  # the library raises many kinds, for all that can be amiss
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{self.name} cannot be read: {reason}") from error

    def _documents(self, split: str) -> list[str]:
        import datasets

        def read():
            name = self._names[split]
            if not self._is_saved:
                return datasets.load_dataset(
                    self.path, self.config, split=name, revision=self.revision
                )
            stored = datasets.load_from_disk(self.path)
            return stored[name] if isinstance(stored, datasets.DatasetDict) else stored

        rows = self._open(read)
        if self.text_field not in rows.column_names:
            raise InputError(
                f"{self.name}: no field {self.text_field!r}, only {', '.join(rows.column_names)}"
            )
        held_out = self.held_out_documents
        if held_out and split != "test":
            if held_out >= len(rows):
                raise InputError(
                    f"{self.name}: held_out_documents={held_out} of {len(rows)} documents "
                    "leaves none to train on"
                )
            at = len(rows) - held_out
            rows = rows.select(range(at) if split == "train" else range(at, len(rows)))
        documents = self._open(lambda: rows.select_columns([self.text_field])[:][self.text_field])
        for i, text in enumerate(documents):
            if not isinstance(text, str):
                raise InputError(
                    f"{self.name}: {self.text_field!r} of {split} row {i} is "
                    f"{type(text).__name__}, not text"
                )
        return documents


@dataclass(frozen=True, kw_only=True)
class PythonReference(Source):
    """The language reference that every CPython carries (`pydoc_data.topics`), 0.46 MB of English.

    One document per topic, by name. Topics quote one another (`function` is also a part of
    `compound`), so those with 12 words in a row in common form a group that stays in one split:
    no 12 words of a held-out split occur in another. A group larger than half a held-out split
    stays in train; the others are dealt out, largest first, so that each fraction (of characters)
    is met and every split has long and short topics.

    The text differs a little between versions of Python; `name` says which one this is.
    """

    valid_fraction: float = 0.05
    test_fraction: float = 0.05

    def __post_init__(self):
        check_fractions(self.valid_fraction, self.test_fraction)

    @property
    def splits(self) -> tuple[str, ...]:
        shares = (1.0, self.valid_fraction, self.test_fraction)
        return tuple(split for split, share in zip(SPLITS, shares, strict=True) if share)

    @property
    def name(self) -> str:
        return f"language reference of Python {'.'.join(map(str, sys.version_info[:3]))}"

    def _documents(self, split: str) -> list[str]:
        from pydoc_data.topics import topics

        chosen = held_out_topics(topics, self.valid_fraction, self.test_fraction)
        return [topics[topic] for topic in sorted(chosen[split])]
