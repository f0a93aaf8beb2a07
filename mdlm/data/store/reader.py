"""A token store, read: its manifest, its tokenizer, and its splits as streams of tokens.

Opening one reads the manifest and compares the sizes of the files with it; what it holds then
grows with the number of shards, not of tokens or documents. What the files look like is said in
`manifest`.
"""

import hashlib
import io
import json

import fsspec
import numpy as np
from jaxtyping import Int64

from mdlm.data.store.manifest import REMEDY, Manifest, SplitRecord, counts_name
from mdlm.data.store.shard_files import StoredFile, files_of
from mdlm.data.store.stored_stream import StoredStream, files
from mdlm.data.tokens.tokenizer import FILES, Tokenizer
from mdlm.errors import InputError


class Store:
    """An open store. `Store.open` checks it; splits are streams, by name."""

    def __init__(self, url: str, manifest: Manifest):
        self.url, self.manifest = url, manifest
        self.files = files_of(url)

    @staticmethod
    def open(url: str) -> "Store":
        """InputError where there is no store, or a file of a finished shard is missing or has
        another size than the manifest says."""
        url = url.rstrip("/")
        try:
            manifest = Manifest.read(url)
            if manifest is None:
                raise InputError(f"{url} holds no token store; make it with: mdlm prepare FILE")
            fs, path = fsspec.core.url_to_fs(url)
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
        """The splits that there are."""
        return tuple(self.manifest.splits)

    def record(self, split: str) -> SplitRecord:
        """What the manifest says of a split. InputError where it is absent or not complete."""
        record = self.manifest.splits.get(split)
        if record is None:
            raise InputError(f"{self.url} has no {split} split, only {', '.join(self.splits)}")
        if not record.complete:
            raise InputError(
                f"{self.url}: the {split} split is not complete, it has "
                f"{record.total('documents')} documents so far; go on with: mdlm prepare FILE"
            )
        return record

    def stream(self, split: str) -> StoredStream:
        """The tokens of a split. InputError where it is absent or not complete."""
        return StoredStream(self.url, self.manifest, self.record(split).shards, self.files)

    def counts(self, split: str) -> Int64[np.ndarray, " v"]:
        """How often each token occurs in a split, EOS included. InputError where the file with
        them is missing or belongs to other tokens."""
        total, name = self.record(split).total("tokens"), counts_name(split)
        fs, path = fsspec.core.url_to_fs(self.url)
        try:
            counts = np.load(io.BytesIO(fs.cat_file(f"{path}/{name}")), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{self.url}: {name} cannot be read ({error}): {REMEDY}") from error
        if counts.shape != (self.manifest.vocab_size,) or counts.sum() != total:
            raise InputError(f"{self.url}: {name} counts other tokens than the shards: {REMEDY}")
        return counts.astype(np.int64)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the text was encoded with. InputError where it is missing or is not
        the one that the manifest names."""
        fs, path = fsspec.core.url_to_fs(self.url)
        found = {}
        for name in FILES:
            try:
                found[name] = fs.cat_file(f"{path}/{name}")
            except OSError as error:
                raise InputError(f"{self.url}: {name} is missing: {REMEDY}") from error
        try:
            tokenizer = Tokenizer.from_files({name: data.decode() for name, data in found.items()})
        except Exception as error:  # the library raises bare Exceptions
            raise InputError(f"{self.url}: its tokenizer is damaged: {REMEDY}") from error
        if tokenizer.fingerprint != self.manifest.fingerprint:
            raise InputError(
                f"{self.url}: tokenizer.json is not the tokenizer that the shards were made with "
                f"(fingerprint {tokenizer.fingerprint[:12]}, the manifest has "
                f"{self.manifest.fingerprint[:12]}): {REMEDY}"
            )
        return tokenizer

    def fingerprint(self, split: str) -> str:
        """Checksum of the checksums of a split's shards."""
        sums = [(shard.sha256, shard.ends_sha256) for shard in self.record(split).shards]
        return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def check_size(url: str, file: StoredFile, found: int | None) -> None:
    """InputError unless a file has the size that the manifest gives it."""
    if found is None:
        raise InputError(f"{url}: {file.name} is missing: {REMEDY}")
    if found != file.bytes:
        kind = "is truncated" if found < file.bytes else "is not the store's own"
        raise InputError(
            f"{url}: {file.name} {kind}, it has {found} bytes where the manifest has "
            f"{file.bytes}: {REMEDY}"
        )
