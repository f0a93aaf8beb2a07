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
from typing import Annotated, Any, Literal, TypedDict

import numpy as np

from mdlm.data.store.location import opened
from mdlm.errors import InputError
from mdlm.foreign.typed_json import Count, Meta, Name, Sha256, decoded

FORMAT = 1
NAME = "manifest.json"
REMEDY = "put it back from a copy, or delete the folder and make it anew with: mdlm prepare FILE"
"""How to repair a damaged file, for error messages."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One finished shard. `documents` counts those that end in it, `empty` those of them without a
    token except EOS; `bytes` (of UTF-8) and `characters` are those of its text. The checksums are
    SHA-256 of the two files, and of the text (`preparation.text_digest`), which older versions did
    not keep."""

    name: Name  # SPLIT-00000, without the endings of its two files
    tokens: Count
    documents: Count
    empty: Count
    bytes: Count
    characters: Count
    sha256: Sha256
    ends_sha256: Sha256
    text_sha256: Sha256 | None = None

    def __post_init__(self):
        if self.empty > self.documents:
            raise ValueError(f"{self.name} has {self.empty} empty of {self.documents} documents")


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """One split: its finished shards, in order, and the position to resume reading the source.

    `position` (JSON) is the end of the last chunk of text in the last shard; None before the first
    shard. `dropped` counts, by reason, the documents that were left out.
    """

    shards: tuple[Shard, ...] = ()
    complete: bool = False
    position: Any = None
    dropped: dict[str, Count] = field(default_factory=dict)

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
    vocab_size: Annotated[int, Meta(ge=1, le=2**32)]
    eos: Count | None
    dtype: Literal["uint16", "uint32"]
    splits: dict[Name, SplitRecord] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self):
        if self.vocab_size > np.iinfo(self.dtype).max + 1:
            raise ValueError(f"vocab_size={self.vocab_size} does not fit {self.dtype}")
        if self.eos is not None and self.eos >= self.vocab_size:
            raise ValueError(f"eos={self.eos} is no token of a vocabulary of {self.vocab_size}")

    @property
    def stored_dtype(self) -> np.dtype:
        """The dtype of the tokens in the shards' files, little-endian on every machine."""
        return np.dtype(self.dtype).newbyteorder("<")

    def write(self, url: str) -> None:
        """Writes the manifest to a temporary file, which is then renamed."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        fs, path = opened(url)
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(f"{path}/.{NAME}", text.encode())
        fs.mv(f"{path}/.{NAME}", f"{path}/{NAME}")

    @staticmethod
    def read(url: str) -> "Manifest | None":
        """Returns the manifest of a store; None if there is none.

        Raises InputError if it is damaged or has the format of another version.
        """
        fs, path = opened(url)
        if not fs.exists(f"{path}/{NAME}"):
            return None
        content = fs.cat_file(f"{path}/{NAME}")
        try:
            version = decoded(content, Versioned)["format"]
            if version == FORMAT:
                return _known(content)
        except ValueError as error:
            raise damaged(url, error) from error
        raise InputError(f"{url}/{NAME} has format {version!r}, this version reads {FORMAT}")


class Versioned(TypedDict):
    """What a manifest of any version has."""

    format: int


def _known(content: bytes) -> Manifest:
    """Returns a manifest of this version. Raises ValueError if it is none, or has more fields."""
    more = set(decoded(content, dict[str, Any])) - {f.name for f in dataclasses.fields(Manifest)}
    if more:
        raise ValueError(f"it has {', '.join(sorted(more))}, which no manifest has")
    return decoded(content, Manifest)


def damaged(url: str, error: Exception) -> InputError:
    return InputError(f"{url}/{NAME} is damaged ({error}): {REMEDY}")


def counts_name(split: str) -> str:
    """Returns the name of the file with the token counts of a split."""
    return f"{split}-counts.npy"
