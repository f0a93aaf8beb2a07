"""Data of an experiment from several sources, mixed by weights.

Training takes samples from the parts in proportion to their weights, exactly so in every
`shuffle.PERIOD` samples, and each part has shuffled epochs of its own: a small part with a large
weight is repeated. Validation and test are the parts' own splits, concatenated, every token once:
the weights do not apply to them.
"""

import functools
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from mdlm.data.dataset import Dataset, Split, TextData
from mdlm.data.packing import Packing
from mdlm.data.pair_data import PairData
from mdlm.data.rows.joined import JoinedRows, MixedRows
from mdlm.data.rows.shuffle import shares
from mdlm.data.sentences import SentenceData
from mdlm.data.sources import other_files
from mdlm.data.store.reader import Store
from mdlm.data.text.source import SPLITS
from mdlm.data.tokenizers import TokenizerConfig
from mdlm.data.tokens.tokenizer import Report, Tokenizer
from mdlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several `TextData` with weights, in place of one.

    They share tokenizer and packing. A weight is the fraction of training rows from that part,
    relative to the other weights. A tokenizer that needs training is trained on the training text
    of all parts. If a part has a store, the tokenizer of the store is used for all instead.
    """

    parts: tuple[TextData, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if len(self.parts) != len(self.weights) or not self.parts:
            raise ValueError(
                f"{len(self.parts)} parts and weights={self.weights}: each part must have a weight"
            )
        if not all(weight > 0 and math.isfinite(weight) for weight in self.weights):
            raise ValueError(f"weights={self.weights}: each must be a positive number")
        for name in ("tokenizer", "packing"):
            first, *others = (getattr(part, name) for part in self.parts)
            for number, other in enumerate(others, 1):
                if other != first:
                    raise ValueError(
                        f"parts[{number}].{name}={other!r}, but parts[0].{name}={first!r}: "
                        "the parts of a mixture must share it"
                    )
        shares(self.weights)  # raises ValueError if a weight is too small

    @property
    def classes(self) -> None:
        """A mixture is text alone, see `TextData.classes`."""
        return None

    @property
    def tokenizer(self) -> TokenizerConfig:
        return self.parts[0].tokenizer

    @property
    def packing(self) -> Packing:
        return self.parts[0].packing

    def load(self, directory: Path | None = None, report: Report | None = None) -> "MixedDataset":
        """Loads the parts, as `TextData.load`. Also raises InputError if a part's store has another
        tokenizer."""
        stores = [
            None if part.store is None else part.open_store(part.store) for part in self.parts
        ]
        tokenizer, owner = self._tokenizer(directory, stores, report)
        for number, store in enumerate(stores):
            if store is not None and store.manifest.fingerprint != tokenizer.fingerprint:
                raise InputError(
                    f"parts[{number}]: {store.url} was made with another tokenizer than that of "
                    f"{owner} (fingerprint {store.manifest.fingerprint[:12]}, there "
                    f"{tokenizer.fingerprint[:12]}): the parts of a mixture must share one"
                )
        parts = [
            Dataset(part, tokenizer, report, store)
            for part, store in zip(self.parts, stores, strict=True)
        ]
        if directory is not None and not (directory / "tokenizer.json").exists():
            tokenizer.save(directory)
        return MixedDataset(self, tokenizer, tuple(parts))

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        """Returns the tokenizer saved in `directory`, without reading text."""
        return self.parts[0].load_tokenizer(directory)

    def _tokenizer(
        self, directory: Path | None, stores: list[Store | None], report: Report | None
    ) -> tuple[Tokenizer, str]:
        """Returns the tokenizer of all parts, and its origin, for messages."""
        if directory is not None and (directory / "tokenizer.json").exists():
            return self.load_tokenizer(directory), str(directory)
        for store in stores:
            if store is not None:
                return store.tokenizer(), store.url
        texts: list[str] = []
        if self.tokenizer.needs_text:
            texts = [text for part in self.parts for text in part.source.documents("train")]
        return self.tokenizer.build(texts, report), "this experiment"


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedSplit(Split):
    """The same split of several parts, concatenated."""

    parts: tuple[Split, ...]

    @property
    def bytes(self) -> float:
        return sum(part.bytes for part in self.parts)

    @property
    def characters(self) -> float:
        return sum(part.characters for part in self.parts)


class MixedDataset(Dataset):
    """The loaded parts of a mixture as one dataset."""

    def __init__(self, data: Mixture, tokenizer: Tokenizer, parts: tuple[Dataset, ...]):
        self.data, self.tokenizer, self.parts = data, tokenizer, parts
        self.store = next((part.store for part in parts if part.store is not None), None)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that at least one part has."""
        return tuple(name for name in SPLITS if any(name in part.splits for part in self.parts))

    @functools.cached_property
    def counts(self) -> Int[np.ndarray, " v"]:
        """How often each token occurs in the loss of training: the counts of the parts, each times
        a weight, at least 1."""
        factors = np.array(shares(self.data.weights)) / [len(p.train.rows) for p in self.parts]
        factors /= factors.min()
        terms = (f * part.counts for f, part in zip(factors, self.parts, strict=True))
        return np.rint(sum(terms)).astype(np.int64)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A checksum of the parts' fingerprints and the weights."""
        state = [[part.fingerprint for part in self.parts], list(self.data.weights)]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()

    def protocol(self, split: str) -> str:
        """Returns how the split becomes rows, and that it joins several parts."""
        n, having = len(self.parts), len(self._having(split))
        which = f"{n} sources" if n == having else f"{having} of {n} sources"
        return f"{super().protocol(split)}, {which} one after another"

    def _having(self, split: str) -> tuple[Dataset, ...]:
        """Returns the parts that have a split; for train all, since each part must have it."""
        if split == "train":
            return self.parts
        return tuple(part for part in self.parts if split in part.splits)

    def _load(self, split: str) -> Split:
        having = self._having(split)
        if not having:
            raise InputError(f"no part of the mixture has a {split} split")
        parts = tuple(getattr(part, split) for part in having)
        rows = tuple(part.rows for part in parts)
        fingerprints = json.dumps([part.text_fingerprint for part in parts])
        return JoinedSplit(
            rows=MixedRows(rows, shares(self.data.weights))
            if split == "train"
            else JoinedRows(rows),
            parts=parts,
            documents=sum(part.documents for part in parts),
            text_bytes=sum(part.text_bytes for part in parts),
            text_characters=sum(part.text_characters for part in parts),
            text_fingerprint=hashlib.sha256(fingerprints.encode()).hexdigest(),
            unk_id=self.tokenizer.unk_id,
        )


def other_data(
    data: TextData | Mixture, files: tuple[str, ...], split: str, **settings: Any
) -> TextData:
    """Returns files as one split of data that are read, encoded and packed as `data` are; see
    `sources.other_files`."""
    if isinstance(data, PairData | SentenceData):
        return data.of_files(files, split)
    parts = data.parts if isinstance(data, Mixture) else (data,)
    source = other_files([part.source for part in parts], files, split, **settings)
    return TextData(source=source, tokenizer=data.tokenizer, packing=data.packing)
