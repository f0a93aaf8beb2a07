"""The description of a token store: `manifest.json`, beside its shards and its tokenizer.

    STORE/manifest.json            the values of `Manifest`
    STORE/tokenizer.json, special_tokens.json
    STORE/train-00000.bin          tokens, little-endian uint16 or uint32, nothing else
    STORE/train-00000.ends         uint64: positions in the shard at which documents end
    STORE/train-counts.npy         int64 [vocab_size]: how often each token occurs in the split

A split is one stream of tokens, cut into shards: the documents in order, an EOS after each (none
if `eos` is None). A document may continue in the next shard. The store does not depend on the
length of rows, which is chosen when it is read. The folder may be any that fsspec opens.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np

from mdlm.errors import InputError

FORMAT = 1
NAME = "manifest.json"
DTYPES = ("uint16", "uint32")
REMEDY = "put it back from a copy, or delete the folder and make it anew with: mdlm prepare FILE"
"""How to repair a damaged file, for error messages."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One finished shard. `documents` counts those that end in it, `empty` those of them without a
    token except EOS; `bytes` (of UTF-8) and `characters` are those of its text. The checksums are
    SHA-256 of the two files, and of the text (`preparation.text_digest`), which older versions did
    not keep."""

    name: str  # SPLIT-00000, without the endings of its two files
    tokens: int
    documents: int
    empty: int
    bytes: int
    characters: int
    sha256: str
    ends_sha256: str
    text_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """One split: its finished shards, in order, and the position to resume reading the source.

    `position` (JSON) is the end of the last chunk of text in the last shard; None before the first
    shard. `dropped` counts, by reason, the documents that were left out.
    """

    shards: tuple[Shard, ...] = ()
    complete: bool = False
    position: Any = None
    dropped: dict[str, int] = field(default_factory=dict)

    def total(self, what: str) -> int:
        """Returns the sum of a count over the shards: tokens (EOS included), documents, empty,
        bytes, characters."""
        return sum(getattr(shard, what) for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The origin and the contents of a store.

    `source` and `tokenizer` are the configurations, as an experiment writes them; `revision` is
    what the source calls its version, where it has one; `fingerprint` is `Tokenizer.fingerprint`.
    """

    source: str
    revision: str | None
    tokenizer: str
    fingerprint: str
    vocab_size: int
    eos: int | None
    dtype: str
    splits: dict[str, SplitRecord] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r}: must be one of {', '.join(DTYPES)}")
        if not 0 < self.vocab_size <= np.iinfo(self.dtype).max + 1:
            raise ValueError(f"vocab_size={self.vocab_size} does not fit {self.dtype}")

    @property
    def stored_dtype(self) -> np.dtype:
        """The dtype of the tokens in the shards' files, little-endian on every machine."""
        return np.dtype(self.dtype).newbyteorder("<")

    def write(self, url: str) -> None:
        """Writes the manifest to a temporary file, which is then renamed."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        fs, path = fsspec.core.url_to_fs(url)
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(f"{path}/.{NAME}", text.encode())
        fs.mv(f"{path}/.{NAME}", f"{path}/{NAME}")

    @staticmethod
    def read(url: str) -> "Manifest | None":
        """Returns the manifest of a store; None if there is none.

        Raises InputError if it is damaged or has the format of another version.
        """
        fs, path = fsspec.core.url_to_fs(url)
        if not fs.exists(f"{path}/{NAME}"):
            return None
        try:
            values = json.loads(fs.cat_file(f"{path}/{NAME}"))
            version = values["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(url, error) from error
        if version != FORMAT:
            raise InputError(f"{url}/{NAME} has format {version!r}, this version reads {FORMAT}")
        try:
            values["splits"] = {
                name: SplitRecord(**{**split, "shards": tuple(Shard(**s) for s in split["shards"])})
                for name, split in values["splits"].items()
            }
            return Manifest(**values)
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            raise damaged(url, error) from error


def damaged(url: str, error: Exception) -> InputError:
    reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return InputError(f"{url}/{NAME} is damaged ({reason}): {REMEDY}")


def counts_name(split: str) -> str:
    """Returns the name of the file with the token counts of a split."""
    return f"{split}-counts.npy"
