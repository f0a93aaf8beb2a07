"""Genomes: FASTA files, whole or in the intervals of a BED file.

A FASTA file holds records: a line `>NAME ...`, then the bases, in lines of any length. A record,
or an interval of one, is a document of A, C, G, T and N, without line breaks.
"""

import gzip
import hashlib
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mdlm.data.text.files import Piece, matching_files
from mdlm.data.text.source import SPLITS, Source, as_tuple
from mdlm.data.text.splits import check_fractions, hold_out
from mdlm.errors import InputError

BASES = b"ACGT"
AMBIGUOUS = b"NRYKMSWBDHV"
"""IUPAC's codes for one of several bases: all become N."""
COMPLEMENT = str.maketrans("ACGTNacgtn", "TGCANtgcan")
PIECE = 2**20
"""Bases of a document per piece."""
SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "test": "test",
}
"""Names of the splits in a BED file."""


@dataclass(frozen=True, kw_only=True)
class Fasta(Source):
    """Genomes from FASTA files, named by `files` (`.fa`, `.fasta`, `.fna`, each also with `.gz`).

    `intervals` is a BED file with the columns record, start (from 0), end (excluded) and,
    optionally, split (train, valid or validation, test). Then only the intervals are read, each as
    a document, in the order of the records in the files. With `interval_length` each interval
    extends that many bases from its start, or to the end of its record. Without `intervals`, each
    record is a document.

    Splits are those of the BED file; else the records named in `valid` and `test` are held out;
    else the last `valid_fraction` and `test_fraction`, by the rule of `TextFiles`.

    `soft_masked` says how lower-case letters (repeats) are read: as upper case, as N, or kept, for
    `Dna(soft_masked=True)`. IUPAC's codes for ambiguous bases become N; with `unknown="part"` runs
    of N are left out, and a document ends there. With `reverse_complement` each document of the
    training split is followed by its reverse complement.

    Reading raises InputError if a file is not FASTA or BED, a letter stands for no base, a record
    occurs twice or has no bases, or an interval is of an unknown record or beyond its end.
    """

    paths: ClassVar[tuple[str, ...]] = ("files", "intervals")

    files: str | tuple[str, ...]
    intervals: str | None = None
    interval_length: int | None = None
    valid: str | tuple[str, ...] = ()
    test: str | tuple[str, ...] = ()
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    soft_masked: Literal["upper", "N", "keep"] = "upper"
    unknown: Literal["keep", "part"] = "keep"
    reverse_complement: bool = False

    def __post_init__(self):
        check_fractions(self.valid_fraction, self.test_fraction)
        if not as_tuple(self.files):
            raise ValueError("files is empty: name at least one FASTA file")
        if self.interval_length is not None and (
            self.intervals is None or self.interval_length < 1
        ):
            raise ValueError(
                f"interval_length={self.interval_length}: must be at least 1, and needs intervals"
            )
        if self.soft_masked not in ("upper", "N", "keep"):
            raise ValueError(f"soft_masked={self.soft_masked!r}: must be 'upper', 'N' or 'keep'")
        if self.unknown not in ("keep", "part"):
            raise ValueError(f"unknown={self.unknown!r}: must be 'keep' or 'part'")
        both = sorted(set(as_tuple(self.valid)) & set(as_tuple(self.test)))
        if both:
            raise ValueError(f"record {both[0]} is in both valid and test: name it in one")

    @property
    def name(self) -> str:
        where = "" if self.intervals is None else f", intervals of {self.intervals}"
        return f"genome {', '.join(as_tuple(self.files))}{where}"

    @property
    def splits(self) -> tuple[str, ...]:
        chosen = self._by_interval()
        if chosen is not None:
            there = {interval.split for found in chosen.values() for interval in found}
            if None not in there:
                return tuple(split for split in SPLITS if split in there)
        if self.valid or self.test:
            held_out = {"train": True, "valid": bool(self.valid), "test": bool(self.test)}
        else:
            held_out = {"train": 1.0, "valid": self.valid_fraction, "test": self.test_fraction}
        return tuple(split for split in SPLITS if held_out[split])

    def version(self) -> str:
        """Checksum of the names and sizes of all files."""
        state = hashlib.sha256()
        for path in matching_files([*as_tuple(self.files), *as_tuple(self.intervals)]):
            state.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        return state.hexdigest()

    def _documents(self, split: str) -> list[str]:
        documents = list(self._sequences(split))
        if not documents:
            raise InputError(f"{self.name}: the {split} split is empty")
        return documents

    def _pieces(self, split: str, position: Any) -> Iterator[Piece]:
        first, at = (position["document"], position["base"]) if position else (0, 0)
        number = -1
        for number, text in enumerate(self._sequences(split)):
            for start in range(at if number == first else 0, len(text), PIECE):
                if number < first:
                    break
                end = min(start + PIECE, len(text))
                after = {"document": number, "base": end}
                yield Piece(text=text[start:end], ends=end == len(text), position=after)
        if number < 0:
            raise InputError(f"{self.name}: the {split} split is empty")

    def _sequences(self, split: str) -> Iterator[str]:
        """Yields the documents of a split; all are in memory only if splits are by fractions."""
        chosen = self._by_interval()
        has_splits = chosen is not None and all(i.split for found in chosen.values() for i in found)
        if has_splits and (self.valid or self.test):
            raise InputError(
                f"{self.intervals} has a column of splits, and valid or test name records: "
                "give one of the two"
            )
        if has_splits or self.valid or self.test:
            found = (text for own, text in self._all(chosen) if own == split)
        else:
            everything = [text for _, text in self._all(chosen)]
            parts = hold_out(everything, self.valid_fraction, self.test_fraction)
            found = iter(parts[SPLITS.index(split)])
        for text in found:
            for part in re.split("[Nn]+", text) if self.unknown == "part" else (text,):
                if part:
                    yield part
                    if self.reverse_complement and split == "train":
                        yield reverse_complement(part)

    def _all(self, chosen: "dict[str, list[Interval]] | None") -> Iterator[tuple[str, str]]:
        """Yields the split (by intervals or records) and the bases of each document."""
        held_out = dict.fromkeys(as_tuple(self.valid), "valid")
        held_out |= dict.fromkeys(as_tuple(self.test), "test")
        seen: set[str] = set()
        for path in matching_files(as_tuple(self.files)):
            for name, bases in read_records(path, self.soft_masked):
                if name in seen:
                    raise InputError(f"{path}: record {name} occurs twice")
                seen.add(name)
                own = held_out.get(name, "train")
                if chosen is None:
                    yield own, bases
                    continue
                for interval in chosen.get(name, ()):
                    yield interval.split or own, self._within(interval, bases)
        for name in [*held_out, *(chosen or ())]:
            if name not in seen:
                known = ", ".join(sorted(seen)[:5]) + (", ..." if len(seen) > 5 else "")
                where = "" if name in held_out or not chosen else f"{chosen[name][0].where}: "
                raise InputError(f"{where}no record {name} in {self.name}, only {known}")

    def _within(self, interval: "Interval", bases: str) -> str:
        start, end = interval.start, interval.end
        if self.interval_length is not None:
            end = min(start + self.interval_length, len(bases))
        if not start < end <= len(bases):
            raise InputError(
                f"{interval.where}: {interval.record}:{start}-{end} is not within the "
                f"{len(bases)} bases of the record"
            )
        return bases[start:end]

    def _by_interval(self) -> "dict[str, list[Interval]] | None":
        return None if self.intervals is None else read_intervals(Path(self.intervals))


@dataclass(frozen=True)
class Interval:
    """A line of a BED file; `where` is FILE:LINE."""

    record: str
    start: int
    end: int
    split: str | None
    where: str


def reverse_complement(bases: str) -> str:
    """Returns the bases of the other strand, in its reading direction."""
    return bases.translate(COMPLEMENT)[::-1]


def read_intervals(path: Path) -> dict[str, list[Interval]]:
    """Returns the intervals of a BED file by record."""
    try:
        lines = Path(os.path.expanduser(path)).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{path} cannot be read: {reason}") from error
    found: dict[str, list[Interval]] = defaultdict(list)
    named = 0
    for number, line in enumerate(lines, 1):
        columns = line.split()
        if not columns or columns[0].startswith("#") or columns[0] in ("track", "browser"):
            continue
        where = f"{path}:{number}"
        if len(columns) < 3 or not (columns[1].isdecimal() and columns[2].isdecimal()):
            raise InputError(f"{where}: {line.strip()[:40]!r}: must be record, start and end")
        start, end = int(columns[1]), int(columns[2])
        if start >= end:
            raise InputError(f"{where}: {columns[0]}:{start}-{end} is empty: end must be larger")
        split = None
        if len(columns) > 3:
            split = SPLIT_NAMES.get(columns[3].lower())
            if split is None:
                known = ", ".join(SPLIT_NAMES)
                raise InputError(f"{where}: split {columns[3]!r}: must be one of {known}")
            named += 1
        found[columns[0]].append(Interval(columns[0], start, end, split, where))
    total = sum(map(len, found.values()))
    if not total:
        raise InputError(f"{path} has no intervals")
    if named not in (0, total):
        raise InputError(
            f"{path}: {named} of {total} intervals name a split: name it for all or for none"
        )
    return dict(found)


def read_records(path: Path, soft_masked: str) -> Iterator[tuple[str, str]]:
    """Yields the name and the bases of each record of a FASTA file."""
    name, lines = None, []
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                line = line.strip()
                if not line.startswith(b">"):
                    if name is None and line:
                        raise InputError(f"{path} is not a FASTA file: line {number} must be >NAME")
                    lines.append(line)
                    continue
                if name is not None:
                    yield name, as_bases(b"".join(lines), soft_masked, f"{path}, record {name}")
                words = line[1:].split(maxsplit=1)
                if not words:
                    raise InputError(f"{path}:{number}: the record has no name, must be >NAME")
                name, lines = words[0].decode(errors="replace"), []
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be unpacked: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if name is None:
        raise InputError(f"{path} is not a FASTA file: it is empty")
    yield name, as_bases(b"".join(lines), soft_masked, f"{path}, record {name}")


def as_bases(letters: bytes, soft_masked: str, where: str) -> str:
    """Returns letters as A, C, G, T and N, lower case if `soft_masked` keeps it."""
    known = BASES + AMBIGUOUS
    wrong = letters.translate(None, known + known.lower())
    if wrong:
        at = letters.index(wrong[:1])
        raise InputError(f"{where}: {chr(wrong[0])!r} at base {at + 1} stands for no base of DNA")
    if not letters:
        raise InputError(f"{where} has no bases")
    lower = {"upper": known, "N": b"N" * len(known), "keep": known.lower()}[soft_masked]
    table = bytes.maketrans(known + known.lower(), known + lower)
    n = len(AMBIGUOUS)
    to_n = bytes.maketrans(AMBIGUOUS + AMBIGUOUS.lower(), b"N" * n + b"n" * n)
    return letters.translate(table).translate(to_n).decode("ascii")
