"""Text data of an experiment: a source, a tokenizer, a packing, and what they give together.

Splits are read and encoded when first asked for, each by itself, or cut from a token store that
`mdlm prepare` made. With a folder, the tokenizer is written there once and taken from there ever
after, so that evaluation and sampling of a run use the very one it was trained with.
"""

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from mdlm.config.component_text import to_text
from mdlm.config.records import is_same
from mdlm.data.packing import Packing
from mdlm.data.rows.base import RowSet
from mdlm.data.store.reader import Store
from mdlm.data.text.source import Source
from mdlm.data.tokenizers import TokenizerConfig
from mdlm.data.tokens.tokenizer import Report, Tokenizer
from mdlm.errors import InputError
from mdlm.types import Vocab


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The rows of one split and what they stand for.

    `text_bytes` (of UTF-8) and `text_characters` count the source's text, of which a packing may
    drop a part. `text_fingerprint` tells texts apart.
    """

    rows: RowSet
    documents: int
    text_bytes: int
    text_characters: int
    text_fingerprint: str

    @functools.cached_property
    def tokens(self) -> int:
        """What is scored, inserted special tokens included."""
        return self.rows.scored()

    @functools.cached_property
    def kept(self) -> float:
        """The share of the text's tokens that is in rows."""
        return self.rows.placed / max(self.rows.placed + self.rows.dropped, 1)

    @property
    def approximate_bytes(self) -> bool:
        """Whether `bytes` and `characters` are scaled, for the packing drops a part of the text."""
        return self.rows.dropped > 0

    @property
    def bytes(self) -> float:
        """UTF-8 bytes of the text in the rows, the unit of bits per byte."""
        return self.kept * self.text_bytes

    @property
    def characters(self) -> float:
        """Characters of the text in the rows."""
        return self.kept * self.text_characters


class Dataset:
    """Loaded text data: `train`, `valid`, `test` (each read when first used), `tokenizer`.

    `store` is where splits are read from, None where they are encoded from the source.
    """

    def __init__(
        self,
        data: "TextData",
        tokenizer: Tokenizer,
        report: Report | None = None,
        store: Store | None = None,
    ):
        self.data = data
        self.tokenizer = tokenizer
        self.store = store
        self._report = report

    @property
    def vocab(self) -> Vocab:
        return self.tokenizer.vocab

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are."""
        return self.data.source.splits if self.store is None else self.store.splits

    @functools.cached_property
    def train(self) -> Split:
        return self._load("train")

    @functools.cached_property
    def valid(self) -> Split:
        return self._load("valid")

    @functools.cached_property
    def test(self) -> Split:
        return self._load("test")

    @functools.cached_property
    def counts(self) -> Int[np.ndarray, " v"]:
        """How often each token occurs among the scored ones of the training split.

        Of a store they are those of all its tokens and of what the rows insert: tokens that rows
        drop are counted too.
        """
        rows = self.train.rows
        if self.store is not None:
            counts = self.store.counts("train")
            for token, n in rows.inserted.items():
                counts[token] += n
            return counts
        counts = np.zeros(self.vocab.size, np.int64)
        for some in rows.chunks():
            counts += np.bincount(some.tokens[some.loss_mask], minlength=self.vocab.size)
        return counts

    @functools.cached_property
    def fingerprint(self) -> str:
        """Checksum of the text of all splits, the tokenizer and the packing (reads all text,
        where it is not in a store)."""
        texts = {split: self._text_fingerprint(split) for split in self.splits}
        parts = [texts, self.tokenizer.fingerprint, to_text(self.data.packing)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def protocol(self, split: str) -> str:
        """How a split becomes rows, in a few words, for the line in which a perplexity is given."""
        return self.data.packing.protocol

    def _text_fingerprint(self, split: str) -> str:
        if self.store is not None:
            return self.store.fingerprint(split)
        return text_fingerprint(self.data.source.documents(split))

    def _load(self, split: str) -> Split:
        return self._encoded(split) if self.store is None else self._stored(self.store, split)

    def _encoded(self, split: str) -> Split:
        documents = self.data.source.documents(split)
        encoded = self.tokenizer.encode(documents, self._report, f"tokenizing {split}")
        try:
            rows = self.data.packing.of(encoded, self.vocab)
        except InputError as error:
            raise InputError(f"{self.data.source.name}, {split} split: {error}") from error
        return Split(
            rows=rows,
            documents=len(documents),
            text_bytes=sum(len(text.encode()) for text in documents),
            text_characters=sum(map(len, documents)),
            text_fingerprint=text_fingerprint(documents),
        )

    def _stored(self, store: Store, split: str) -> Split:
        record = store.record(split)
        try:
            rows = self.data.packing.over(store.stream(split), self.vocab)
        except InputError as error:
            raise InputError(f"{store.url}, {split} split: {error}") from error
        return Split(
            rows=rows,
            documents=record.total("documents"),
            text_bytes=record.total("bytes"),
            text_characters=record.total("characters"),
            text_fingerprint=store.fingerprint(split),
        )


def text_fingerprint(documents: Iterable[str]) -> str:
    """Checksum of documents, their boundaries included."""
    state = hashlib.sha256()
    for text in documents:
        data = text.encode()
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()


@dataclass(frozen=True, kw_only=True)
class TextData:
    """The data of an experiment.

    With `store`, the folder of a token store (any that fsspec opens), splits are read from there;
    `mdlm prepare` makes it. Without, the text is encoded anew each time and held in memory.
    """

    source: Source
    tokenizer: TokenizerConfig
    packing: Packing
    store: str | None = None

    def load(self, directory: Path | None = None, report: Report | None = None) -> Dataset:
        """The data, with the tokenizer of `directory` if it holds one, else a new one kept there.

        `report(message, done, total)` is called now and then where work takes long. InputError
        where the folder holds a tokenizer of another configuration, or the store was made from
        another source or with another tokenizer.
        """
        store = None if self.store is None else self.open_store(self.store)
        if directory is not None and (directory / "tokenizer.json").exists():
            tokenizer = self.load_tokenizer(directory)
            if store is not None and store.manifest.fingerprint != tokenizer.fingerprint:
                raise InputError(
                    f"{store.url} was made with another tokenizer than the one in {directory} "
                    f"(fingerprint {store.manifest.fingerprint[:12]}, here "
                    f"{tokenizer.fingerprint[:12]}): use another store, or another folder"
                )
            return Dataset(self, tokenizer, report, store)
        if store is not None:
            tokenizer = store.tokenizer()
        else:
            needs_text = self.tokenizer.needs_text
            texts = self.source.documents("train") if needs_text else []
            tokenizer = self.tokenizer.build(texts, report)
        if directory is not None:
            tokenizer.save(directory)
        return Dataset(self, tokenizer, report, store)

    def open_store(self, url: str) -> Store:
        """The store of this data. InputError where it was made from something else."""
        store = Store.open(url)
        made = store.manifest
        for there, here, kind in (
            (made.source, self.source, Source),
            (made.tokenizer, self.tokenizer, TokenizerConfig),
        ):
            if not is_same(there, here, kind):
                raise InputError(
                    f"{store.url} was made of {there}, this experiment has {to_text(here)}: name"
                    " another store, or make one with: mdlm prepare FILE"
                )
        return store

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        """The tokenizer kept in `directory`; needs no text."""
        tokenizer = Tokenizer.load(directory)
        if not is_same(tokenizer.made_by, self.tokenizer, TokenizerConfig):
            raise InputError(
                f"{directory} holds the tokenizer of {tokenizer.made_by}, "
                f"this experiment has {to_text(self.tokenizer)}: use another folder"
            )
        return tokenizer
