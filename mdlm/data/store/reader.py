"""Reads a token store: its manifest, its tokenizer, and its splits as streams of tokens.

Opening a store reads the manifest and compares the sizes of the files with it. The memory of an
open store grows with the number of shards, not of tokens or documents. `manifest` describes the
files.
"""

import hashlib
import json

import numpy as np
from jaxtyping import Int64

from mdlm.data.store.location import opened
from mdlm.data.store.manifest import REMEDY, Manifest, SplitRecord, counts_name
from mdlm.data.store.shard_files import StoredFile, files_of
from mdlm.data.store.stored_stream import StoredStream, files
from mdlm.data.tokens.tokenizer import FILES, Tokenizer
from mdlm.errors import InputError
from mdlm.foreign.arrays import numbers


class Store:
    """An open store, made by `Store.open`."""

    def __init__(self, url: str, manifest: Manifest):
        self.url, self.manifest = url, manifest
        self.files = files_of(url)

    @staticmethod
    def open(url: str) -> "Store":
        """Opens a store.

        Raises InputError if there is no store, or a file of a finished shard is missing or has
        another size than in the manifest.
        """
        url = url.rstrip("/")
        try:
            manifest = Manifest.read(url)
            if manifest is None:
                raise InputError(f"{url} is not a token store: make one with: mdlm prepare FILE")
            fs, path = opened(url)
            fs.invalidate_cache(path)
            there = fs.ls(path, detail=True)
        except (OSError, ImportError) as error:
            raise InputError(f"{url} cannot be read: {error}") from error
        sizes = {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in there}
        for record in manifest.splits.values():
            for shard in record.shards:
                for file in files(shard, manifest):
                    check_size(url, file, sizes.get(file.name))
        return Store(url, manifest)

    @property
    def splits(self) -> tuple[str, ...]:
        """The available splits."""
        return tuple(self.manifest.splits)

    def record(self, split: str) -> SplitRecord:
        """Returns the manifest's record of a split.

        Raises InputError if the split does not exist or is not complete.
        """
        record = self.manifest.splits.get(split)
        if record is None:
            raise InputError(f"{self.url} has no {split} split, only {', '.join(self.splits)}")
        if not record.complete:
            raise InputError(
                f"{self.url}: the {split} split is not complete, it has "
                f"{record.total('documents')} documents so far: resume with: mdlm prepare FILE"
            )
        return record

    def stream(self, split: str) -> StoredStream:
        """Returns the tokens of a split. Raises InputError if it is missing or not complete."""
        return StoredStream(self.url, self.manifest, self.record(split).shards, self.files)

    def counts(self, split: str) -> Int64[np.ndarray, " v"]:
        """Returns how often each token occurs in a split, EOS included.

        Raises InputError if the file of counts is missing or does not match the shards.
        """
        total, name = self.record(split).total("tokens"), counts_name(split)
        fs, path = opened(self.url)
        try:
            counts = numbers(fs.cat_file(f"{path}/{name}"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.url}: {name} cannot be read ({error}): {REMEDY}") from error
        if counts.shape != (self.manifest.vocab_size,) or counts.sum() != total:
            raise InputError(f"{self.url}: {name} does not match the shards: {REMEDY}")
        return counts

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer that the text was encoded with.

        Raises InputError if it is missing, damaged, or not the one in the manifest.
        """
        fs, path = opened(self.url)
        found = {}
        for name in FILES:
            try:
                found[name] = fs.cat_file(f"{path}/{name}")
            except FileNotFoundError as error:
                raise InputError(f"{self.url}: {name} is missing: {REMEDY}") from error
            except OSError as error:
                reason = error.strerror or error
                raise InputError(f"{self.url}: {name} cannot be read: {reason}") from error
        try:
            tokenizer = Tokenizer.from_files({name: data.decode() for name, data in found.items()})
        except Exception as error:  # the library raises bare Exceptions
            raise InputError(f"{self.url}: its tokenizer is damaged: {REMEDY}") from error
        if tokenizer.fingerprint != self.manifest.fingerprint:
            raise InputError(
                f"{self.url}: tokenizer.json is not the tokenizer of the shards "
                f"(fingerprint {tokenizer.fingerprint[:12]}, the manifest has "
                f"{self.manifest.fingerprint[:12]}): {REMEDY}"
            )
        return tokenizer

    def fingerprint(self, split: str) -> str:
        """Returns a checksum of the checksums of a split's shards."""
        sums = [(shard.sha256, shard.ends_sha256) for shard in self.record(split).shards]
        return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def check_size(url: str, file: StoredFile, found: int | None) -> None:
    """Raises InputError if a file is missing or its size differs from the manifest."""
    if found is None:
        raise InputError(f"{url}: {file.name} is missing: {REMEDY}")
    if found != file.bytes:
        kind = "is truncated" if found < file.bytes else "is too large"
        raise InputError(
            f"{url}: {file.name} {kind}, it has {found} bytes, the manifest has {file.bytes}: "
            f"{REMEDY}"
        )
