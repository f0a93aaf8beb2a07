"""Where text comes from: files, the Hugging Face hub, or the reference that Python carries.

A source gives each split (`train`, `valid`, `test`) as a list of documents, untouched unless
`clean` is set: no shuffling, empty documents included. What is held out of the training text is
held out by a fixed rule, so that every process and every later evaluation sees the same splits.
"""

import abc
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mdlm.data import hub
from mdlm.data.cleaning import Cleaning, cleaned
from mdlm.data.held_out import check_fractions, held_out_topics, hold_out
from mdlm.data.reading import NOT_UTF8, Form, Piece, gather, matching_files, read_pieces
from mdlm.vocab import InputError

SPLITS = ("train", "valid", "test")
ROWS = 1000
"""Rows of a data set that are taken at a time."""


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


@dataclass(frozen=True, kw_only=True)
class TextFiles(Source):
    """Text files of one's own: `.txt` and `.jsonl`, either one also with `.gz`, and `.parquet`.

    A `.txt` file is one document, or several where `separator` (such as `"\\n\\n\\n"`) parts them;
    a `.jsonl` file has one object per line, and a Parquet file rows, whose `text_field` is a
    document. Names may be patterns (`books/*.txt.gz`), taken in alphabetical order, relative to
    the working folder.

    Where `valid` names no files, the last `valid_fraction` of the training text is held out; where
    neither `valid` nor `test` names any, the last `test_fraction` becomes the test split, after
    the valid one. Of 20 documents or more, whole documents are held out (by number, at least
    one); of fewer, the text is cut by characters, at the line break nearest to the exact place,
    or exactly there if no line break is within 1000 characters. A fraction of 0 holds out nothing.

    Errors (InputError): a missing file, a pattern without matches, an unknown ending, bytes that
    are not UTF-8 (with their place), a line that is no JSON object or lacks the field, no text.
    With `undecodable="drop"` documents that are not UTF-8 are left out, and counted.
    """

    train: str | tuple[str, ...]
    valid: str | tuple[str, ...] | None = None
    test: str | tuple[str, ...] | None = None
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    text_field: str = "text"
    separator: str | None = None
    undecodable: Literal["refuse", "drop"] = "refuse"

    def __post_init__(self):
        check_fractions(self.valid_fraction, self.test_fraction)
        if not as_tuple(self.train):
            raise ValueError("train names no files")
        if self.separator == "":
            raise ValueError("separator is empty: give the text between documents, or None")
        if self.undecodable not in ("refuse", "drop"):
            raise ValueError(f"undecodable={self.undecodable!r} is neither 'refuse' nor 'drop'")

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

    def version(self) -> str:
        """Checksum of the names and sizes of all files."""
        state = hashlib.sha256()
        for files in (self.train, self.valid, self.test):
            for path in matching_files(as_tuple(files)):
                state.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            state.update(b"\1")
        return state.hexdigest()

    def _named(self, split: str) -> tuple[str, ...]:
        """The patterns of a split whose files are all its own; none where a part is held out."""
        files = {"train": self.train, "valid": self.valid, "test": self.test}[split]
        is_cut = split == "train" and any(self._held_out)
        return () if is_cut else as_tuple(files)

    def _documents(self, split: str) -> list[str]:
        named = self._named(split)
        return gather(self._read(named)) if named else self._part(split)[0]

    def _pieces(self, split: str, position: Any) -> Iterator[Piece]:
        named = self._named(split)
        if named:
            yield from self._read(named, position)
            return
        documents, dropped = self._part(split)
        if position is None and dropped:
            yield Piece(text="", ends=False, position=0, dropped=dropped)
        for i in range(position or 0, len(documents)):
            yield Piece(text=documents[i], ends=True, position=i + 1, done=(i + 1) / len(documents))

    def _part(self, split: str) -> tuple[list[str], dict[str, int]]:
        """What the rule leaves a split of the training text, and what was dropped from all of it.

        The latter is told of train alone: of what is dropped, nobody knows where it would go.
        """
        pieces = list(self._read(as_tuple(self.train)))
        parts = hold_out(gather(pieces), *self._held_out)
        documents = parts[SPLITS.index(split)]
        if not any(documents):
            raise InputError(
                f"{self.name}: too little text to hold out a {split} split; "
                f"give more text, or name files for it"
            )
        dropped = sum(piece.dropped.get(NOT_UTF8, 0) for piece in pieces)
        return documents, {NOT_UTF8: dropped} if dropped and split == "train" else {}

    def _read(self, patterns: tuple[str, ...], position: Any = None) -> Iterator[Piece]:
        form = Form(
            text_field=self.text_field, separator=self.separator, undecodable=self.undecodable
        )
        return read_pieces(matching_files(patterns), form, position)


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Source):
    """A data set of the Hugging Face hub, or a folder: parquet and the like, or `save_to_disk`.

    `data_dir` names a folder inside the data set, to read that alone. `train`, `valid` and `test`
    name its splits (None: there is no such split). With
    `held_out_documents` the valid split is that many documents from the end of train, as is the
    custom for OpenWebText (the last 100,000), or from its start, and `valid` is not looked at.

    With `streaming` nothing is downloaded to stay: rows come as they are read, and a connection
    that is lost is taken up again (`hub.stream`). What `save_to_disk` wrote is there already.
    """

    path: str
    config: str | None = None
    data_dir: str | None = None
    text_field: str = "text"
    train: str = "train"
    valid: str | None = "validation"
    test: str | None = "test"
    revision: str | None = None
    held_out_documents: int = 0
    held_out_at: Literal["end", "start"] = "end"
    streaming: bool = False

    def __post_init__(self):
        if self.held_out_documents < 0:
            raise ValueError(f"held_out_documents={self.held_out_documents} is negative")
        if self.held_out_at not in ("end", "start"):
            raise ValueError(f"held_out_at={self.held_out_at!r} is neither 'end' nor 'start'")

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
                    self.path, self.config, data_dir=self.data_dir, revision=self.revision
                )
            )
        return tuple(split for split in SPLITS if self._names[split] in there)

    @property
    def name(self) -> str:
        part = self.config or self.data_dir
        return f"data set {self.path}" + (f" ({part})" if part else "")

    def version(self) -> str | None:
        """Fingerprints of what was saved, or the hub's commit, where it answers."""
        if self._is_saved:
            return ", ".join(self._rows(split)._fingerprint for split in self.splits)
        if Path(self.path).exists():
            return None
        import huggingface_hub

        try:
            return huggingface_hub.HfApi().dataset_info(self.path, revision=self.revision).sha
        except Exception:  # a hub that does not answer is no reason to stop
            return None

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

    def _rows(self, split: str, streaming: bool = False) -> Any:
        """The library's data set of a whole split of its own."""
        import datasets

        def read() -> Any:
            name = self._names[split]
            if not self._is_saved:
                return datasets.load_dataset(
                    self.path,
                    self.config,
                    data_dir=self.data_dir,
                    split=name,
                    revision=self.revision,
                    streaming=streaming,
                )
            stored = datasets.load_from_disk(self.path)
            return stored[name] if isinstance(stored, datasets.DatasetDict) else stored

        rows = self._open(read)
        if rows.column_names is not None:  # a stream may not know
            self._check_field(rows.column_names)
        return rows

    def _check_field(self, there: list[str]) -> None:
        if self.text_field not in there:
            raise InputError(f"{self.name}: no field {self.text_field!r}, only {', '.join(there)}")

    def _range(self, split: str, total: int | None) -> tuple[int, int | None]:
        """Which rows of the data set's own split make up this one."""
        held_out = self.held_out_documents
        if not held_out or split == "test":
            return 0, total
        at_start = self.held_out_at == "start"
        if total is None:
            if at_start:
                return (held_out, None) if split == "train" else (0, held_out)
            raise InputError(
                f"{self.name} does not say how many rows it has, so streaming cannot tell the last "
                f"{held_out}: set streaming=False, or held_out_at='start'"
            )
        if held_out >= total:
            raise InputError(
                f"{self.name}: held_out_documents={held_out} of {total} documents "
                "leaves none to train on"
            )
        at = held_out if at_start else total - held_out
        return (0, at) if (split == "train") != at_start else (at, total)

    def _text(self, value: Any, split: str, row: int) -> str:
        if isinstance(value, str):
            return value
        raise InputError(
            f"{self.name}: {self.text_field!r} of {split} row {row} is "
            f"{type(value).__name__}, not text"
        )

    def _documents(self, split: str) -> list[str]:
        return gather(self._pieces(split, None))

    def _pieces(self, split: str, position: Any) -> Iterator[Piece]:
        if self.streaming and not self._is_saved:
            yield from self._streamed(split, position)
            return
        rows = self._rows(split).select_columns([self.text_field])
        first, last = self._range(split, len(rows))
        assert last is not None
        for start in range(first + (position or 0), last, ROWS):
            stop = min(start + ROWS, last)
            texts = self._open(lambda a=start, b=stop: rows[a:b][self.text_field])
            for row, text in enumerate(texts, start - first):
                text = self._text(text, split, row)
                done = (row + 1) / (last - first)
                yield Piece(text=text, ends=True, position=row + 1, done=done)

    def _streamed(self, split: str, position: Any) -> Iterator[Piece]:
        known = self._rows(split, streaming=True).info.splits or {}
        name = self._names[split]
        total = (known[name].num_examples or None) if name in known else None
        first, last = self._range(split, total)
        if position is None:
            position = {"state": None, "behind": first, "row": first}
        if last is not None and position["row"] >= last:
            return

        found = hub.stream(lambda: self._rows(split, streaming=True), position, self.name)
        for values, position in found:
            row = position["row"]
            self._check_field(list(values))
            text = self._text(values[self.text_field], split, row - 1 - first)
            done = (row - first) / (last - first) if last else None
            yield Piece(text=text, ends=True, position=position, done=done)
            if row == last and self.held_out_documents:
                return


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
