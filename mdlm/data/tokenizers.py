"""Which tokenizer: bytes, characters, one learnt from the training text, or a published one.

Each configuration builds an `encoding.Tokenizer`. Those of the house have four special tokens,
[BOS], [EOS], [PAD] and [MASK]; those of others keep what they have and get a mask where they have
none. What learns from text reads it once, as it comes, and keeps none of it.
"""

import abc
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from mdlm.config.component_text import to_text
from mdlm.data.tokens.tokenizer import Report, Tokenizer
from mdlm.data.tokens.training import SPECIALS, count_words, learn, reported, word_pieces
from mdlm.errors import InputError
from mdlm.vocab import Vocab

USUAL = {
    "mask": ("[MASK]", "<mask>", "<|mask|>", "<|mdm_mask|>", "<MASK>"),
    "bos": ("[BOS]", "<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>")
    + ("<|endoftext|>", "[CLS]"),
    "eos": ("[EOS]", "<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>", "[SEP]"),
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>"),
}
"""Names under which special tokens go, the preferred first."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(abc.ABC):
    """How a tokenizer comes about."""

    needs_text: ClassVar[bool] = False
    """True where `build` learns from the training text."""

    @abc.abstractmethod
    def build(self, texts: Iterable[str], report: Report | None = None) -> Tokenizer:
        """The tokenizer; `texts` (the training documents, or pieces of them) is read, once, only
        if `needs_text`. `report` is told what is done, the total 0 where nobody knows it."""


def finish(backend: tokenizers.Tokenizer, config: TokenizerConfig, closed: bool) -> Tokenizer:
    """Marks the house's special tokens in `backend` and wraps it up."""
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    ids = backend.get_vocab(with_added_tokens=True)
    bos, eos, pad, mask = (ids[token] for token in SPECIALS)
    vocab = Vocab(size=max(ids.values()) + 1, mask_id=mask, bos_id=bos, eos_id=eos, pad_id=pad)
    return Tokenizer(backend, vocab, closed_alphabet=closed, made_by=to_text(config))


def byte_characters() -> list[str]:
    """The character that stands for each byte inside byte-level vocabularies (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}
    return [table[byte] for byte in range(256)]


@dataclass(frozen=True, kw_only=True)
class Bytes(TokenizerConfig):
    """The bytes of the UTF-8 text, 0 to 255, then [BOS], [EOS], [PAD], [MASK]."""

    def build(self, texts: Iterable[str], report: Report | None = None) -> Tokenizer:
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

    def build(self, texts: Iterable[str], report: Report | None = None) -> Tokenizer:
        lower = normalizers.Lowercase()
        alphabet: set[str] = set()
        for text in reported(texts, report, "collecting the alphabet"):
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

    def build(self, texts: Iterable[str], report: Report | None = None) -> Tokenizer:
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

    def build(self, texts: Iterable[str], report: Report | None = None) -> Tokenizer:
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
        learn(backend, trainer, texts, report)
        return finish(backend, self, closed=False)


@dataclass(frozen=True, kw_only=True)
class WordPiece(TokenizerConfig):
    """BERT's kind of tokenizer, learnt from the training text: words, and parts of words in `##`.

    Words are parted at spaces and around punctuation; with `lowercase` they lose their case and
    their accents first. `vocab_size` counts everything: [BOS], [EOS], [PAD], [MASK], [UNK] (ids 0
    to 4), up to 1000 characters, twice (as a word and as a part of one), and what is put together
    from them. Decoding does not bring back the spaces as they were, and a character that the
    vocabulary lacks makes its word [UNK]: bits per byte of such text are no lossless code's.

    InputError where `vocab_size` is too small for the characters of the text.
    """

    needs_text: ClassVar[bool] = True
    vocab_size: int = 8192
    lowercase: bool = True

    def __post_init__(self):
        least = len(SPECIALS) + 3  # [UNK], and one character as a word and as a part
        if self.vocab_size < least:
            raise ValueError(f"vocab_size={self.vocab_size}: not even {least}, which is one letter")

    def build(self, texts: Iterable[str], report: Report | None = None) -> Tokenizer:
        normalizer = normalizers.BertNormalizer(lowercase=self.lowercase)
        words = count_words(texts, normalizer, pre_tokenizers.BertPreTokenizer(), report)
        vocab = word_pieces(words, self.vocab_size, report)
        if len(vocab) > self.vocab_size:
            raise InputError(
                f"vocab_size={self.vocab_size} is too small: the characters of the text alone "
                f"take {len(vocab)}"
            )
        backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
        backend.normalizer = normalizer
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        backend.add_special_tokens([AddedToken("[UNK]", special=True)])
        return finish(backend, self, closed=False)


@dataclass(frozen=True, kw_only=True)
class Dna(TokenizerConfig):
    """One token per base: A, C, G, T and N (unknown), then [BOS], [EOS], [PAD], [MASK].

    With `soft_masked` the lower-case letters, by which genomes mark repeats, are tokens of their
    own (`Fasta(soft_masked="keep")` leaves them in the text). Any other character cannot be
    encoded (InputError).
    """

    soft_masked: bool = False

    def build(self, texts: Iterable[str], report: Report | None = None) -> Tokenizer:
        letters = "ACGTN" + ("acgtn" if self.soft_masked else "")
        vocab = {letter: i for i, letter in enumerate(letters)}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
        backend.decoder = decoders.Fuse()
        return finish(backend, self, closed=True)


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

    def build(self, texts: Iterable[str], report: Report | None = None) -> Tokenizer:
        backend = self._backend()
        ids = backend.get_vocab(with_added_tokens=True)
        if self._find(ids, "mask") is None:
            backend.add_special_tokens([AddedToken("[MASK]", special=True)])
            ids = backend.get_vocab(with_added_tokens=True)
        vocab = Vocab(
            size=max(ids.values()) + 1,  # ids may leave gaps
            mask_id=ids[self._find(ids, "mask") or ""],
            bos_id=ids.get(self._find(ids, "bos") or ""),
            eos_id=ids.get(self._find(ids, "eos") or ""),
            pad_id=ids.get(self._find(ids, "pad") or ""),
        )
        return Tokenizer(backend, vocab, made_by=to_text(self))

    def _find(self, ids: dict[str, int], role: str) -> str | None:
        """The token that plays a role: the one chosen, or the first of the usual ones."""
        chosen = getattr(self, role)
        if chosen is not None and chosen not in ids:
            raise InputError(f"{role}={chosen!r} is not a token of {self.name}")
        names = USUAL[role] if chosen is None else (chosen,)
        return next((name for name in names if name in ids), None)

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
