"""Configurations of tokenizers: bytes, characters, trained on the training text, or published.

Each configuration builds a `tokens.tokenizer.Tokenizer`. All except `Pretrained` have the special
tokens [BOS], [EOS], [PAD] and [MASK]. A published tokenizer keeps its special tokens, and gets a
mask if it has none. Training reads the text once, as a stream, and keeps none of it.
"""

import abc
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from mdlm.config.component_text import to_text
from mdlm.data.tokens.plain_text import marked, settled
from mdlm.data.tokens.tokenizer import Report, Tokenizer
from mdlm.data.tokens.training import SPECIALS, count_words, reported, train, word_pieces
from mdlm.errors import InputError
from mdlm.vocab import Vocab

USUAL = {
    "mask": ("[MASK]", "<mask>", "<|mask|>", "<|mdm_mask|>", "<MASK>"),
    "bos": ("[BOS]", "<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>")
    + ("<|endoftext|>", "[CLS]"),
    "eos": ("[EOS]", "<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>", "[SEP]"),
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>"),
}
"""Usual names of special tokens, the preferred first."""
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
"""What a name on the hub looks like."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(abc.ABC):
    """The configuration of a tokenizer."""

    needs_text: ClassVar[bool] = False
    """Whether `build` trains on the training text."""

    @property
    def max_size(self) -> int | None:
        """Size of the largest vocabulary that it can learn from text; None: the text tells."""
        return None

    @abc.abstractmethod
    def build(self, texts: Iterable[str], report: Report | None = None) -> Tokenizer:
        """Builds the tokenizer.

        `texts` (the training documents, or pieces of them) are read once, and only if
        `needs_text`. `report(message, done, total)` is called now and then, with total 0 if it is
        unknown.
        """


def finish(backend: tokenizers.Tokenizer, config: TokenizerConfig, closed: bool) -> Tokenizer:
    """Adds [BOS], [EOS], [PAD] and [MASK] to `backend` and returns the tokenizer."""
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    ids = backend.get_vocab(with_added_tokens=True)
    bos, eos, pad, mask = (ids[token] for token in SPECIALS)
    vocab = Vocab(size=max(ids.values()) + 1, mask_id=mask, bos_id=bos, eos_id=eos, pad_id=pad)
    return Tokenizer(backend, vocab, closed_alphabet=closed, made_by=to_text(config))


def byte_characters() -> list[str]:
    """Returns the character for each byte in byte-level vocabularies (GPT-2's table)."""
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
    """The characters of the training text in the order of code points, then the special tokens.

    Encoding raises InputError if a character does not occur in the training text. With `lowercase`
    the text is read in lower case.
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
    """Lower-case a to z and space, everything else [UNK]: 35 ids, as MDLM encodes text8."""

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
    """Byte-level byte-pair encoding trained on the training text (with GPT-2's word rule).

    `vocab_size` counts everything: [BOS], [EOS], [PAD], [MASK] (ids 0 to 3), 256 bytes, merges.
    If a small text has too few pairs to merge, the vocabulary is smaller.
    """

    needs_text: ClassVar[bool] = True
    vocab_size: int = 1024

    def __post_init__(self):
        least = 256 + len(SPECIALS)
        if self.vocab_size < least:
            raise ValueError(
                f"vocab_size={self.vocab_size}: must be at least {least} (256 bytes and "
                f"{len(SPECIALS)} special tokens)"
            )

    @property
    def max_size(self) -> int:
        return self.vocab_size

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
        train(backend, trainer, texts, report)
        return finish(backend, self, closed=False)


@dataclass(frozen=True, kw_only=True)
class WordPiece(TokenizerConfig):
    """BERT's kind of tokenizer, trained on the training text: words, and parts of words in `##`.

    Words are split at spaces and around punctuation; with `lowercase`, case and accents are
    removed first. `vocab_size` counts everything: [BOS], [EOS], [PAD], [MASK], [UNK] (ids 0 to 4),
    up to 1000 characters, twice (as a word and as a part of one), and the longer pieces. Decoding
    does not restore the original spaces, and a word with an unknown character becomes [UNK]: bits
    per byte of such text are not those of a lossless code.

    `build` raises InputError if `vocab_size` is too small for the characters of the text.
    """

    needs_text: ClassVar[bool] = True
    vocab_size: int = 8192
    lowercase: bool = True

    def __post_init__(self):
        least = len(SPECIALS) + 3  # [UNK], and one character as a word and as a part
        if self.vocab_size < least:
            raise ValueError(
                f"vocab_size={self.vocab_size}: must be at least {least} "
                f"({len(SPECIALS) + 1} special tokens and one letter, twice)"
            )

    @property
    def max_size(self) -> int:
        return self.vocab_size

    def build(self, texts: Iterable[str], report: Report | None = None) -> Tokenizer:
        normalizer = normalizers.BertNormalizer(lowercase=self.lowercase)
        words = count_words(texts, normalizer, pre_tokenizers.BertPreTokenizer(), report)
        vocab = word_pieces(words, self.vocab_size, report)
        if len(vocab) > self.vocab_size:
            raise InputError(
                f"vocab_size={self.vocab_size} is too small: must be at least {len(vocab)} for the "
                "characters of the text"
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

    With `soft_masked` lower-case letters, which mark repeats in genomes, are separate tokens
    (`Fasta(soft_masked="keep")` keeps them in the text). Encoding raises InputError for any other
    character.
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
    """A published tokenizer: a `tokenizer.json`, a folder with one, or a name on the hub.

    `name` is that file, folder or name; `revision` a branch, tag or commit of the hub.
    If it has no mask token, `[MASK]` is appended as the last id, as for GPT-2. Special tokens are
    found by their usual names (`<|endoftext|>`, `[CLS]`, `</s>`, ...); `mask`, `bos`, `eos`, `pad`
    choose others. `build` raises InputError if a token or the tokenizer does not exist.
    """

    name: str
    mask: str | None = None
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    revision: str = "main"

    def build(self, texts: Iterable[str], report: Report | None = None) -> Tokenizer:
        backend = settled(self.backend(), self.name)
        added = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
        roles = {role: self._find(backend, added, role) for role in USUAL}
        roles["mask"] = roles["mask"] or "[MASK]"
        chosen = [AddedToken(name, special=True) for name in roles.values() if name is not None]
        backend.add_special_tokens(chosen)  # as they are if they exist, or new ones
        every = backend.get_vocab(with_added_tokens=True)
        ids = {role: every[name] for role, name in roles.items() if name is not None}
        vocab = Vocab(
            size=max(every.values()) + 1,  # ids may leave gaps
            mask_id=ids["mask"],
            bos_id=ids.get("bos"),
            eos_id=ids.get("eos"),
            pad_id=ids.get("pad"),
        )
        return Tokenizer(marked(backend, set(ids.values())), vocab, made_by=to_text(self))

    def _find(self, backend: tokenizers.Tokenizer, added: dict[str, int], role: str) -> str | None:
        """Returns the token of a role: the chosen one, or the first usual special token."""
        chosen = getattr(self, role)
        if chosen is None:
            return next((name for name in USUAL[role] if name in added), None)
        if backend.token_to_id(chosen) is None:
            raise InputError(f"{role}={chosen!r} is not a token of {self.name}")
        if chosen not in added and (chosen[0], chosen[-1]) not in (("<", ">"), ("[", "]")):
            raise InputError(
                f"{role}={chosen!r} is a piece of text of {self.name}: name a special token, "
                f"such as {', '.join(list(added)[:8]) or '<NAME>'}"
            )
        return chosen

    def backend(self) -> tokenizers.Tokenizer:
        """Returns the published tokenizer as it is. Raises InputError if it cannot be loaded."""
        path = Path(os.path.expanduser(self.name))
        file = path / "tokenizer.json" if path.is_dir() else path
        is_hub = HUB_NAME.fullmatch(self.name) and not file.is_file()
        model = path if path.suffix == ".model" else path / "tokenizer.model"
        if model.is_file() and not (path / "tokenizer.json").is_file():
            raise InputError(
                f"{model} is SentencePiece's file, no tokenizer.json: convert it with "
                f"transformers' AutoTokenizer.from_pretrained({str(model.parent)!r})"
                ".save_pretrained('NEW'), and name the folder NEW"
            )
        try:
            if is_hub and path.suffix != ".json":
                return tokenizers.Tokenizer.from_pretrained(self.name, revision=self.revision)
            return tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exceptions
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            here = f" (the folder {path} here has no tokenizer.json)" if path.is_dir() else ""
            raise InputError(f"tokenizer {self.name} cannot be loaded{here}: {reason}") from error
