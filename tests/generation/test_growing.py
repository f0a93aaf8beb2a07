"""A text given out piece by piece is the whole text, and no piece is taken back."""

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mdlm.data import BPE, Bytes
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.generation.growing import Growing, pieces, shown_pieces
from mdlm.generation.texts import text_of
from mdlm.vocab import Vocab

SAID = "né\n\n of 😀 the ☃ cat's 漢字, \x1b[31m\n"
"""Text with characters of one to four bytes, line breaks and what a terminal would obey."""


def with_bytes() -> Tokenizer:
    """A tokenizer as Llama's: words with a space in front, and a token for each byte."""
    words = ["<mask>", "<s>", "</s>", "<unk>", "▁", "▁the", "▁cat", "s", "▁a", "."]
    names = [*words, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(
        models.BPE(
            {name: i for i, name in enumerate(names)},
            [],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.add_special_tokens(["<mask>", "<s>", "</s>"])
    backend.normalizer = normalizers.Prepend("▁")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1),
        ]
    )
    return Tokenizer(backend, Vocab(size=len(names), mask_id=0, bos_id=1, eos_id=2))


def with_pieces() -> Tokenizer:
    """A tokenizer as BERT's."""
    names = ["[PAD]", "[MASK]", "[SEP]", "[UNK]", "the", "##s", "cat", ".", "'", "n't", "##é"]
    backend = Backend(
        models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    )
    backend.add_special_tokens(["[PAD]", "[MASK]", "[SEP]"])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=True)
    return Tokenizer(backend, Vocab(size=len(names), mask_id=1, eos_id=2, pad_id=0))


def with_metaspace() -> Tokenizer:
    names = ["<mask>", "</s>", "<unk>", "▁", "▁the", "▁cat", "s", "\n"]
    backend = Backend(models.Unigram([(name, -1.0 - i) for i, name in enumerate(names)], unk_id=2))
    backend.add_special_tokens(["<mask>", "</s>"])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return Tokenizer(backend, Vocab(size=len(names), mask_id=0, eos_id=1))


MADE = {
    "bytes": lambda: Bytes().build([]),
    "byte-level BPE": lambda: BPE(vocab_size=300).build([SAID * 20]),
    "byte fallback": with_bytes,
    "word pieces": with_pieces,
    "metaspace": with_metaspace,
}


def cut(ids: list[int], rng: np.random.Generator) -> list[list[int]]:
    """The tokens in pieces of nought to four."""
    found, at = [], 0
    while at < len(ids):
        step = int(rng.integers(0, 5))
        found.append(ids[at : at + step])
        at += step
    return found


def streams(tokenizer: Tokenizer, rng: np.random.Generator):
    """Random tokens, many of them special; random bytes among text; text."""
    vocab = tokenizer.vocab
    ends = [i for i in (vocab.eos_id, vocab.bos_id) if i is not None]
    for _ in range(25):
        some = rng.choice(vocab.size, rng.integers(0, 40))
        few = rng.choice(rng.choice(vocab.size, 4), rng.integers(0, 40))
        for ids in (some, few):
            yield np.where(rng.random(len(ids)) < 0.15, rng.choice(ends, len(ids)), ids).tolist()


@pytest.mark.parametrize("name", MADE)
def test_pieces_join_to_the_text(name):
    tokenizer, rng = MADE[name](), np.random.default_rng(0)
    for ids in streams(tokenizer, rng):
        whole, parts = text_of(tokenizer, ids), cut(ids, rng)
        assert "".join(pieces(parts, tokenizer)) == whole.text, ids
        assert "".join(shown_pieces(parts, tokenizer)) == whole.shown, ids


@pytest.mark.parametrize("name", ["bytes", "byte-level BPE"])
def test_no_character_is_cut_in_two_and_none_waits(name):
    tokenizer = MADE[name]()
    [ids] = tokenizer.encode([SAID])
    given, growing = [], Growing(tokenizer)
    for number, token in enumerate(ids.tolist(), 1):
        given.append(growing.add([token]))
        known = tokenizer.decode(ids[:number]).rstrip("\ufffd")
        assert "".join(given) == known
    assert "".join(given) == SAID and growing.end() == ""


def test_a_byte_waits_for_the_bytes_around_it():
    """Bytes in a row are characters together, or none of them is one."""
    tokenizer = with_bytes()
    byte = {value: tokenizer.id_of(f"<0x{value:02X}>") for value in (0xC3, 0xA9, 0xE1)}
    the = tokenizer.id_of("▁the")
    whole = [[the], [byte[0xC3]], [byte[0xA9]], [the]]
    assert list(pieces(whole, tokenizer)) == ["the", "é the"]
    broken = [[the], [byte[0xC3]], [byte[0xA9]], [byte[0xE1]], [the]]
    assert list(pieces(broken, tokenizer)) == ["the", "\ufffd\ufffd\ufffd the"]
