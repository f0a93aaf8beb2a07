"""Text data of an experiment: a source, a tokenizer, a packing, and the dataset they make.

Each split is read and encoded on first use, or cut from a token store that `mdlm prepare` made.
With a folder, the tokenizer is saved there once and loaded from there afterwards, so evaluation
and sampling of a run use the tokenizer it was trained with.
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
from mdlm.data.store.manifest import Manifest
from mdlm.data.store.reader import Store
from mdlm.data.text.source import Source
from mdlm.data.tokenizers import TokenizerConfig
from mdlm.data.tokens.tokenizer import Report, Tokenizer
from mdlm.errors import InputError
from mdlm.types import Vocab


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The rows of one split, with the size of their text.

    `text_bytes` (of UTF-8) and `text_characters` count the source's text, of which a packing may
    drop a part. `text_fingerprint` is a checksum of the text.
    """

    rows: RowSet
    documents: int
    text_bytes: int
    text_characters: int
    text_fingerprint: str
    unk_id: int | None = None

    @functools.cached_property
    def unknown(self) -> float:
        """The fraction of the tokens that count in the loss which are the unknown token."""
        if self.unk_id is None:
            return 0.0
        found = sum(
            int((some.tokens[some.loss_mask] == self.unk_id).sum()) for some in self.rows.chunks()
        )
        return found / max(self.tokens, 1)

    @functools.cached_property
    def tokens(self) -> int:
        """The tokens that count in the loss, inserted special tokens included."""
        return self.rows.loss_tokens()

    @functools.cached_property
    def kept(self) -> float:
        """The fraction of the text's tokens that is in rows."""
        return self.rows.placed / max(self.rows.placed + self.rows.dropped, 1)

    @property
    def approximate_bytes(self) -> bool:
        """Whether `bytes` and `characters` are estimates, since the packing drops some text."""
        return self.rows.dropped > 0

    @property
    def bytes(self) -> float:
        """UTF-8 bytes of the text in the rows, by which bits per byte are divided."""
        return self.kept * self.text_bytes

    @property
    def characters(self) -> float:
        """Characters of the text in the rows."""
        return self.kept * self.text_characters


class Dataset:
    """Loaded text data: `train`, `valid`, `test` (each read on first use), `tokenizer`.

    Splits are read from `store`, or encoded from the source if `store` is None.
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
        """The available splits."""
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
        """How often each token occurs among those of the training split that count in the loss.

        With a store, all its tokens and the inserted special tokens are counted: also tokens that
        the rows drop.
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
        """A checksum of the text of all splits, the tokenizer and the packing. Without a store,
        all text is read."""
        texts = {split: self._text_fingerprint(split) for split in self.splits}
        parts = [texts, self.tokenizer.fingerprint, to_text(self.data.packing)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def protocol(self, split: str) -> str:
        """Returns a short description of how a split becomes rows, printed with a perplexity."""
        return self.data.packing.protocol + self.losses(split)

    def losses(self, split: str) -> str:
        """Returns which part of a split's text is in no row, which is unknown tokens, and whether
        it is one row only, as the end of a description; it is empty if nothing is to be said."""
        part: Split = getattr(self, split)
        words = ""
        if part.kept < 0.9995:
            words += f", rows hold {part.kept:.1%} of the text"
        if len(part.rows) == 1:
            words += ", one row"
        if part.unk_id is not None and part.unknown:
            name = self.tokenizer.backend.id_to_token(part.unk_id)
            words += f", {part.unknown:.2%} of the tokens are {name}"
        return words

    def _text_fingerprint(self, split: str) -> str:
        if self.store is not None:
            return self.store.fingerprint(split)
        return text_fingerprint(self.data.source.documents(split))

    def _load(self, split: str) -> Split:
        if self.store is None:
            return self.data.encode(split, self.tokenizer, self._report)
        return self._stored(self.store, split)

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
            unk_id=self.tokenizer.unk_id,
        )


def text_fingerprint(documents: Iterable[str]) -> str:
    """Returns a checksum of documents, their boundaries included."""
    state = hashlib.sha256()
    for text in documents:
        data = text.encode()
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()


@dataclass(frozen=True, kw_only=True)
class TextData:
    """The data of an experiment.

    With `store`, the folder of a token store (local, or any that fsspec opens), splits are read
    from there; `mdlm prepare` makes it. Without, the text is encoded anew each time and kept in
    memory.
    """

    source: Source
    tokenizer: TokenizerConfig
    packing: Packing
    store: str | None = None

    @property
    def classes(self) -> int | None:
        """The number of classes of which each row has one; 0 if each has a number instead, None if
        rows are text alone."""
        return None

    def load(self, directory: Path | None = None, report: Report | None = None) -> Dataset:
        """Loads the data, with the tokenizer in `directory`, or a new one that is saved there.

        `report(message, done, total)` is called now and then during long work. Raises InputError
        if the folder has a tokenizer of another configuration, or the store was made from another
        source or with another tokenizer.
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

    def encode(self, split: str, tokenizer: Tokenizer, report: Report | None = None) -> Split:
        """Returns a split, read and encoded. Raises InputError if that is not possible."""
        if split == "train":
            self.source.check_apart()
        documents = self.source.documents(split)
        try:
            encoded = tokenizer.encode(documents, report, f"tokenizing {split}, characters")
            rows = self.packing.of(encoded, tokenizer.vocab)
        except InputError as error:
            raise InputError(f"{self.source.name}, {split} split: {error}") from error
        return Split(
            rows=rows,
            documents=len(documents),
            text_bytes=sum(len(text.encode()) for text in documents),
            text_characters=sum(map(len, documents)),
            text_fingerprint=text_fingerprint(documents),
            unk_id=tokenizer.unk_id,
        )

    def open_store(self, url: str) -> Store:
        """Opens a store of this data.

        Raises InputError if it was made from other data, or lacks a split of them.
        """
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
        self.check_whole(made, store.url)
        return store

    def check_whole(self, made: Manifest, url: str) -> None:
        """Raises InputError if the store at `url` lacks a split that its text is known to have.

        A text that is not on a disk is not asked.
        """
        lacking = self.source.lacking(made.splits) if self.source.is_near else ()
        if lacking:
            raise InputError(
                f"{url}: its manifest lacks the {lacking[0]} split: make the store whole with:"
                " mdlm prepare FILE"
            )

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        """Returns the tokenizer saved in `directory`, without reading text.

        Raises InputError if it is missing, damaged, or of another configuration.
        """
        tokenizer = Tokenizer.load(directory)
        if not is_same(tokenizer.made_by, self.tokenizer, TokenizerConfig):
            raise InputError(
                f"{directory} holds the tokenizer of {tokenizer.made_by}, "
                f"this experiment has {to_text(self.tokenizer)}: use another folder"
            )
        return tokenizer
