"""From text to token ids and back.

A configuration (`Bytes`, `Characters`, `Text8`, `BPE`, `Pretrained`) builds a `Tokenizer`, which
runs on the Hugging Face `tokenizers` library and is kept with a run as two files. Encoding adds no
special tokens, and text that spells one (`[MASK]`) is encoded as text: what is clean never holds
the mask. Rows get their special tokens from the packing.
"""

import abc
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import tokenizers
from jaxtyping import Int32, Integer
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from mdlm.types import InputError, Vocab

Report = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and out of how much."""

SPECIALS = ("[BOS]", "[EOS]", "[PAD]", "[MASK]")
USUAL = {
    "mask": ("[MASK]", "<mask>", "<|mask|>", "<|mdm_mask|>", "<MASK>"),
    "bos": ("[BOS]", "<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>")
    + ("<|endoftext|>", "[CLS]"),
    "eos": ("[EOS]", "<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>", "[SEP]"),
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>"),
}
"""Names under which special tokens go, the preferred first."""

PIECE = 2**16
"""Characters encoded at a time: the library needs about 100 bytes for each token it returns."""
BATCH = 2**22
"""Characters between two reports."""


class Tokenizer:
    """Text to ids and back, with the ids that have a meaning of their own.

    `closed_alphabet`: only characters that are tokens can be encoded. `made_by` names the
    configuration it comes from. `split_before_space`: a long text may be cut before a space.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        vocab: Vocab,
        *,
        closed_alphabet: bool = False,
        made_by: str = "",
    ):
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.vocab = vocab
        self.made_by = made_by
        self.alphabet = set(backend.get_vocab(with_added_tokens=False)) if closed_alphabet else None

    @property
    def mask_token(self) -> str:
        return self.backend.id_to_token(self.vocab.mask_id)

    @property
    def fingerprint(self) -> str:
        """Checksum of everything that decides how text is encoded."""
        return hashlib.sha256(self._state().encode()).hexdigest()

    def id_of(self, token: str) -> int:
        """The id of a token by its exact name. InputError where there is none."""
        found = self.backend.token_to_id(token)
        if found is None:
            raise InputError(f"the tokenizer has no token {token!r}")
        return found

    def encode(
        self, texts: list[str], report: Report | None = None, message: str = "tokenizing"
    ) -> list[Int32[np.ndarray, "..."]]:
        """The ids of each text. `report` is told the characters done, of all.

        InputError where a character is not in a closed alphabet.
        """
        if self.alphabet is not None:
            self._check_alphabet(texts)
        total, done = sum(map(len, texts)), 0
        encoded: list[list[np.ndarray]] = [[] for _ in texts]
        waiting: list[tuple[int, str]] = []
        size = 0

        def flush():
            found = self.backend.encode_batch_fast([piece for _, piece in waiting], False, False)
            for (i, _), encoding in zip(waiting, found, strict=True):
                encoded[i].append(np.array(encoding.ids, np.int32))
            waiting.clear()

        for i, text in enumerate(texts):
            for piece in self._pieces(text):
                waiting.append((i, piece))
                size += len(piece)
                if size >= BATCH:
                    flush()
                    done, size = done + size, 0
                    if report:
                        report(message, done, total)
        flush()
        if report:
            report(message, total, total)
        empty = np.zeros(0, np.int32)
        ids = [np.concatenate(parts) if parts else empty for parts in encoded]
        if any((part == self.vocab.mask_id).any() for part in ids):
            raise InputError(
                f"the text itself encodes to the mask token {self.mask_token!r}: "
                "name another mask token"
            )
        return ids

    def decode(
        self, ids: Sequence[int] | Integer[np.ndarray, " n"], keep_special: bool = False
    ) -> str:
        """The text of `ids`; special tokens (the mask too) are left out unless kept."""
        return self.backend.decode(
            np.asarray(ids, np.int64).tolist(), skip_special_tokens=not keep_special
        )

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `special_tokens.json`, each at once or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "special_tokens.json", self._special())
        replace_file(folder / "tokenizer.json", self.backend.to_str())

    @staticmethod
    def load(folder: str | Path) -> "Tokenizer":
        """What `save` wrote. InputError where it is missing or damaged."""
        folder = Path(folder)
        try:
            special = json.loads((folder / "special_tokens.json").read_text(encoding="utf-8"))
            return Tokenizer(
                tokenizers.Tokenizer.from_str(
                    (folder / "tokenizer.json").read_text(encoding="utf-8")
                ),
                Vocab(**special["vocab"]),
                closed_alphabet=special["closed_alphabet"],
                made_by=special["made_by"],
            )
        except Exception as error:  # the library raises bare Exceptions
            raise InputError(f"no tokenizer can be read in {folder}: {error}") from error

    def _special(self) -> str:
        values = {
            "vocab": vars(self.vocab),
            "closed_alphabet": self.alphabet is not None,
            "made_by": self.made_by,
        }
        return json.dumps(values, indent=1)

    def _state(self) -> str:
        return json.dumps([self.backend.to_str(), vars(self.vocab)])

    def _pieces(self, text: str) -> Iterator[str]:
        """Cuts a long text where that cannot change a token."""
        if len(text) <= PIECE:
            yield text
            return
        kind = type(self.backend.pre_tokenizer).__name__
        if kind not in ("NoneType", "ByteLevel", "BertPreTokenizer"):
            yield text
            return
        start = 0
        while start < len(text):
            end = start + PIECE
            if kind != "NoneType":  # words never reach over the start of a run of spaces
                found = re.compile(r"(?<=\S) ").search(text, end)
                end = found.start() if found else len(text)
            yield text[start:end]
            start = end

    def _check_alphabet(self, texts: list[str]) -> None:
        normalizer = self.backend.normalizer
        for text in texts:
            unknown = set(normalizer.normalize_str(text) if normalizer else text) - self.alphabet
            if unknown:
                char = min(unknown)
                remedy = (
                    "Characters(lowercase=True) would read it as one that is"
                    if char.lower() in self.alphabet
                    else "Bytes() and BPE() encode every character"
                )
                raise InputError(
                    f"character {char!r} (U+{ord(char):04X}) is not in the alphabet of "
                    f"{len(self.alphabet)} characters that the training text has; {remedy}"
                )


def replace_file(path: Path, text: str) -> None:
    """Writes a file under another name, then moves it to its place."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(abc.ABC):
    """How a tokenizer comes about."""

    needs_text: ClassVar[bool] = False
    """True where `build` learns from the training text."""

    @abc.abstractmethod
    def build(self, texts: list[str], report: Report | None = None) -> Tokenizer:
        """The tokenizer; `texts` (the training documents) is read only if `needs_text`."""


def finish(backend: tokenizers.Tokenizer, config: TokenizerConfig, closed: bool) -> Tokenizer:
    """Marks the house's special tokens in `backend` and wraps it up."""
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    bos, eos, pad, mask = (backend.token_to_id(token) for token in SPECIALS)
    vocab = Vocab(size=vocabulary_size(backend), mask_id=mask, bos_id=bos, eos_id=eos, pad_id=pad)
    return Tokenizer(backend, vocab, closed_alphabet=closed, made_by=repr(config))


def vocabulary_size(backend: tokenizers.Tokenizer) -> int:
    """One more than the highest id (ids may leave gaps)."""
    return max(backend.get_vocab(with_added_tokens=True).values()) + 1


def byte_characters() -> list[str]:
    """The character that stands for each byte inside byte-level vocabularies (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}
    return [table[byte] for byte in range(256)]


@dataclass(frozen=True, kw_only=True)
class Bytes(TokenizerConfig):
    """The bytes of the UTF-8 text, 0 to 255, then [BOS], [EOS], [PAD], [MASK]."""

    def build(self, texts: list[str], report: Report | None = None) -> Tokenizer:
        vocab = {character: byte for byte, character in enumerate(byte_characters())}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        return finish(backend, self, closed=False)


@dataclass(frozen=True, kw_only=True)
class Characters(TokenizerConfig):
    """The characters of the training text in the order of their code points, then the specials.

    A character that training does not have cannot be encoded (InputError).
    """

    needs_text: ClassVar[bool] = True
    lowercase: bool = False

    def build(self, texts: list[str], report: Report | None = None) -> Tokenizer:
        lower = normalizers.Lowercase()
        alphabet: set[str] = set()
        for text in texts:
            alphabet |= set(lower.normalize_str(text) if self.lowercase else text)
        if not alphabet:
            raise InputError("no text to collect an alphabet from")
        vocab = {character: i for i, character in enumerate(sorted(alphabet))}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
        if self.lowercase:
            backend.normalizer = lower
        backend.decoder = decoders.Fuse()
        return finish(backend, self, closed=True)


@dataclass(frozen=True, kw_only=True)
class Text8(TokenizerConfig):
    """a to z and space, in lower case, everything else [UNK]: 35 ids, as MDLM encodes text8."""

    def build(self, texts: list[str], report: Report | None = None) -> Tokenizer:
        special = ["[CLS]", "[SEP]", "[BOS]", "[EOS]", "[MASK]", "[PAD]", "[RESERVED]"]
        tokens = [*special, "[UNK]", *"abcdefghijklmnopqrstuvwxyz "]
        vocab = {token: i for i, token in enumerate(tokens)}
        model = models.BPE(vocab=vocab, merges=[], unk_token="[UNK]", fuse_unk=False)
        backend = tokenizers.Tokenizer(model)
        backend.normalizer = normalizers.Lowercase()
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens([AddedToken(token, special=True) for token in special])
        return finish(backend, self, closed=False)


@dataclass(frozen=True, kw_only=True)
class BPE(TokenizerConfig):
    """Byte-level byte-pair encoding learnt from the training text (with GPT-2's word rule).

    `vocab_size` counts everything: [BOS], [EOS], [PAD], [MASK] (ids 0 to 3), 256 bytes, merges.
    A small text may have fewer pairs to merge than that, and the vocabulary is then smaller.
    """

    needs_text: ClassVar[bool] = True
    vocab_size: int = 1024

    def __post_init__(self):
        least = 256 + len(SPECIALS)
        if self.vocab_size < least:
            raise ValueError(f"vocab_size={self.vocab_size}: bytes and specials alone are {least}")

    def build(self, texts: list[str], report: Report | None = None) -> Tokenizer:
        if not any(texts):
            raise InputError("no text to learn a tokenizer from")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=byte_characters(),
            min_frequency=2,
            show_progress=False,
        )
        if report:
            report("training the tokenizer", 0, 1)
        backend.train_from_iterator(texts, trainer)
        if report:
            report("training the tokenizer", 1, 1)
        return finish(backend, self, closed=False)


@dataclass(frozen=True, kw_only=True)
class Pretrained(TokenizerConfig):
    """Somebody's tokenizer: a `tokenizer.json`, a folder with one, or a name on the hub.

    The mask token is appended (`[MASK]`, as the last id) where there is none, as for GPT-2. The
    special tokens are known by their usual names (`<|endoftext|>`, `[CLS]`, `</s>`, ...); `mask`,
    `bos`, `eos`, `pad` name others. InputError for a token or a tokenizer that does not exist.
    """

    name: str
    mask: str | None = None
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    revision: str = "main"

    def build(self, texts: list[str], report: Report | None = None) -> Tokenizer:
        backend = self._backend()
        if self._find(backend, "mask") is None:
            backend.add_special_tokens([AddedToken("[MASK]", special=True)])
        ids = {f"{role}_id": self._find(backend, role) for role in USUAL}
        return Tokenizer(backend, Vocab(size=vocabulary_size(backend), **ids), made_by=repr(self))

    def _find(self, backend: tokenizers.Tokenizer, role: str) -> int | None:
        chosen = getattr(self, role)
        if chosen is not None and backend.token_to_id(chosen) is None:
            raise InputError(f"{role}={chosen!r} is not a token of {self.name}")
        names = USUAL[role] if chosen is None else (chosen,)
        return next((i for i in map(backend.token_to_id, names) if i is not None), None)

    def _backend(self) -> tokenizers.Tokenizer:
        path = Path(self.name).expanduser()
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            if path.suffix == ".json":
                return tokenizers.Tokenizer.from_file(str(path))
            return tokenizers.Tokenizer.from_pretrained(self.name, revision=self.revision)
        except Exception as error:  # the library raises bare Exceptions
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"tokenizer {self.name} cannot be loaded: {reason}") from error
