"""Sources of text: text files, or the language reference that is part of Python.

A source returns each split (`train`, `valid`, `test`) as a list of documents, unchanged unless
`clean` is set: in order, empty documents included. Held-out text is chosen by a fixed rule, so
every host process and every later evaluation has the same splits.
"""

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mdlm.data.text.files import Form, Piece, gather, matching_files, read_pieces
from mdlm.data.text.source import SPLITS, Source, as_tuple
from mdlm.data.text.splits import check_fractions, held_out_topics, hold_out
from mdlm.errors import InputError

ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}
ESCAPED = re.compile(r"\\([nrtf])")
"""A control character as it is typed on a command line."""


@dataclass(frozen=True, kw_only=True)
class TextFiles(Source):
    """Text files: `.txt` and `.jsonl`, either one also with `.gz`, and `.parquet`.

    A `.txt` file is one document, or several with a `separator` (such as `"\\n\\n\\n"`; a command
    line may give it as `'\\n\\n\\n'`, with backslashes). In a
    `.jsonl` file, the `text_field` of the object in each line is a document, in a Parquet file that
    of each row. Names may be patterns (`books/*.txt.gz`), read in alphabetical order, relative to
    the working folder.

    If `valid` names no files, the last `valid_fraction` of the training text is held out; if
    neither `valid` nor `test` names any, the last `test_fraction` becomes the test split, after
    the valid one. With 20 documents or more, whole documents are held out (a fraction of their
    number, at least one). With fewer, the text is cut by characters, at the line break nearest to
    the exact position, or exactly there if no line break is within 1000 characters. A fraction of
    0 holds out nothing.

    Reading raises InputError if a file is missing, a pattern matches nothing, an ending is unknown,
    bytes are not UTF-8, a line is not a JSON object or lacks the field, a text is null, or there is
    no text. With `undecodable="drop"` documents that are not UTF-8, or null, are left out and
    counted. Files without text are left out and counted if others have text.
    """

    paths: ClassVar[tuple[str, ...]] = ("train", "valid", "test")

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
            raise ValueError("train is empty: name at least one file")
        if self.separator == "":
            raise ValueError("separator is empty: give the text between documents, or None")
        if self.separator is not None:
            typed = ESCAPED.sub(lambda found: ESCAPES[found[1]], self.separator)
            object.__setattr__(self, "separator", typed)
        if self.undecodable not in ("refuse", "drop"):
            raise ValueError(f"undecodable={self.undecodable!r}: must be 'refuse' or 'drop'")

    @property
    def _held_out(self) -> tuple[float, float]:
        """Fractions of the training text that are held out for valid and test."""
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
        """Returns a checksum of the names and sizes of all files."""
        state = hashlib.sha256()
        for files in (self.train, self.valid, self.test):
            for path in matching_files(as_tuple(files)):
                state.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            state.update(b"\1")
        return state.hexdigest()

    def check_apart(self) -> None:
        """Raises InputError if a file of the valid or test split is also a training file."""
        train = {path.resolve() for path in matching_files(as_tuple(self.train))}
        for split, names in (("valid", self.valid), ("test", self.test)):
            for path in matching_files(as_tuple(names)):
                if path.resolve() in train:
                    raise InputError(
                        f"{path} is a file of the {split} split and also a training file: "
                        f"name training files without it (train={self.train!r})"
                    )

    def _named(self, split: str) -> tuple[str, ...]:
        """Returns the patterns of a split that has its own files; none if a part is held out."""
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
        """Returns a split's part of the training text, and the counts of dropped documents.

        Dropped documents are counted for train only, since their split is unknown.
        """
        pieces = list(self._read(as_tuple(self.train)))
        parts = hold_out(gather(pieces), *self._held_out)
        documents = parts[SPLITS.index(split)]
        if not any(documents):
            raise InputError(
                f"{self.name}: too little text to hold out a {split} split: "
                f"give more text, or name files for it"
            )
        dropped: Counter[str] = Counter()
        for piece in pieces:
            dropped.update(piece.dropped)
        return documents, dict(dropped) if split == "train" else {}

    def _read(self, patterns: tuple[str, ...], position: Any = None) -> Iterator[Piece]:
        form = Form(
            text_field=self.text_field, separator=self.separator, undecodable=self.undecodable
        )
        return read_pieces(matching_files(patterns), form, position)


READING = ("separator", "text_field", "undecodable", "clean")
"""The settings of `TextFiles` that say how its files are read."""


def other_files(
    sources: Iterable[Source], files: tuple[str, ...], split: str, **settings: Any
) -> TextFiles:
    """Returns files as one split, read as the sources of a run read theirs.

    `settings` replace some of `READING`. Raises InputError if the sources differ in another one.
    """
    for name in set(READING) - set(settings):
        found = {getattr(source, name): None for source in sources if hasattr(source, name)}
        if len(found) > 1:
            values = " and ".join(f"{value!r}" for value in found)
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"the parts of this run have {name}={values}: say with {option} how to read "
                f"{', '.join(files)}"
            )
        settings |= dict.fromkeys([name], *found) if found else {}
    named = {} if split == "train" else {split: files}
    return TextFiles(train=files, valid_fraction=0, test_fraction=0, **named, **settings)


@dataclass(frozen=True, kw_only=True)
class PythonReference(Source):
    """The language reference that is part of CPython (`pydoc_data.topics`), 0.46 MB of English.

    There is one document per topic, sorted by name. Topics quote one another (`function` is also a
    part of `compound`), so topics that share 12 consecutive words form a group that stays in one
    split: no 12 consecutive words of a held-out split occur in another. A group larger than half a
    held-out split stays in train; the others are distributed, largest first, so that each fraction
    of the characters (`valid_fraction`, `test_fraction`) is met and every split has long and short
    topics.

    The text differs a little between versions of Python; `name` includes the version.
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
