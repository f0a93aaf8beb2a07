"""Tokenizers trained on a stream of text: WordPiece, and what BPE and Characters share."""

import re
import time

import numpy as np
import pytest

from mdlm.data.tokenizers import BPE, Characters, Dna, Pretrained, WordPiece
from mdlm.data.tokens import tokenizer as encoding
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.data.tokens.training import bounded
from mdlm.errors import InputError
from mdlm.types import Vocab

TEXTS = [
    "The players played; the player plays, and the playing is playful. " * 30,
    "Café crème, naïve rôle. " * 20,
    "",
    "walked walking talker talked talking walks\n" * 25,
]


def once(texts):
    """Texts that can be read only once."""
    yield from texts


@pytest.mark.parametrize("config", [Characters(), BPE(vocab_size=300), WordPiece(vocab_size=120)])
def test_texts_read_once_give_the_same_tokenizer(config):
    streamed = config.build(once(TEXTS))
    assert streamed.fingerprint == config.build(TEXTS).fingerprint
    # Another order, in pieces cut between words, gives the same counts and the same tokenizer.
    pieces = re.split(r"(?<=\S)(?= )", TEXTS[0])
    again = config.build(once([*TEXTS[1:], *pieces]))
    assert again.fingerprint == streamed.fingerprint
    with pytest.raises(InputError, match="no text to"):
        config.build(once(["", ""]))


def test_reading_is_reported_by_the_megabyte():
    reported = []
    text = "ab " * 200_000
    BPE(vocab_size=262).build(once([text] * 4), lambda *call: reported.append(call))
    assert reported[:2] == [
        ("reading text for the tokenizer, MB", 1, 0),
        ("reading text for the tokenizer, MB", 2, 0),
    ]
    assert reported[2:] == [("training the tokenizer", 0, 1), ("training the tokenizer", 1, 1)]


def test_reading_errors_are_raised():
    def broken():
        yield "some text"
        raise InputError("line 7: not JSON")

    for config in (BPE(vocab_size=300), WordPiece(), Characters()):
        with pytest.raises(InputError, match="line 7: not JSON"):
            config.build(broken())


def test_word_pieces():
    tokenizer = WordPiece(vocab_size=120).build(TEXTS)
    assert tokenizer.vocab == Vocab(
        size=tokenizer.vocab.size, mask_id=3, bos_id=0, eos_id=1, pad_id=2
    )
    assert tokenizer.vocab.size <= 120 and tokenizer.id_of("[UNK]") == 4
    [ids] = tokenizer.encode(["The PLAYER walked, crème!"])
    words = [tokenizer.backend.id_to_token(i) for i in ids.tolist()]
    assert words[:2] == ["the", "player"] and words[-1] == "[UNK]"  # no "!" in the text
    [ids] = tokenizer.encode(["Talkers played, crème"])
    words = [tokenizer.backend.id_to_token(i) for i in ids.tolist()]
    assert any(word.startswith("##") for word in words) and "##s" in words
    assert tokenizer.decode(ids) == "talkers played, creme"
    assert len({WordPiece(vocab_size=120).build(TEXTS).fingerprint for _ in range(5)}) == 1
    cased = WordPiece(vocab_size=150, lowercase=False).build(TEXTS)
    assert cased.decode(cased.encode(["The Café"])[0]) == "The Café"
    [spelt] = tokenizer.encode(["[MASK] the"])
    assert 3 not in spelt.tolist()


def test_word_pieces_of_a_long_text_are_those_of_its_parts(monkeypatch):
    tokenizer = WordPiece(vocab_size=120).build(TEXTS)
    whole = tokenizer.encode(TEXTS)
    monkeypatch.setattr(encoding, "PIECE", 50)
    for a, b in zip(whole, tokenizer.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(a, b)


def test_too_small_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size=6: must be at least 7"):
        WordPiece(vocab_size=6)
    with pytest.raises(
        InputError, match=r"vocab_size=20 is too small: must be at least \d+ .* characters"
    ):
        WordPiece(vocab_size=20).build(TEXTS)


@pytest.mark.parametrize("config", [BPE(vocab_size=300), WordPiece(vocab_size=120), Dna()])
def test_saved_tokenizer_opens_as_pretrained(config, tmp_path):
    """Special tokens are found by their names, and text is encoded to the same tokens."""
    made = config.build(TEXTS)
    made.save(tmp_path)
    opened = Pretrained(name=str(tmp_path)).build([])
    assert opened.vocab == made.vocab
    texts = ["ACGT"] if isinstance(config, Dna) else TEXTS
    for a, b in zip(opened.encode(texts), made.encode(texts), strict=True):
        np.testing.assert_array_equal(a, b)
    assert Tokenizer.load(tmp_path).vocab == made.vocab


def test_bases():
    tokenizer = Dna().build([])
    assert tokenizer.vocab == Vocab(size=9, mask_id=8, bos_id=5, eos_id=6, pad_id=7)
    assert tokenizer.encode(["NTGCA"])[0].tolist() == [4, 3, 2, 1, 0]
    for text in ("ACGa", "ACGR", "AC\n"):
        with pytest.raises(InputError, match="is not in the tokenizer's alphabet of 5 characters"):
            tokenizer.encode([text])
    soft = Dna(soft_masked=True).build([])
    assert soft.vocab.size == 14 and soft.decode(soft.encode(["ACgtN"])[0]) == "ACgtN"


@pytest.mark.parametrize("config", [BPE(vocab_size=300), WordPiece(vocab_size=120)])
@pytest.mark.parametrize("filler", ["ab" * 200_000, " " * 400_000])
def test_a_stretch_without_a_break_is_cut_for_learning(config, filler, caplog):
    """Learning takes time quadratic in the longest word: whole, these would take minutes."""
    began = time.process_time()
    tokenizer = config.build([TEXTS[0], TEXTS[0] + filler + TEXTS[2]])
    assert time.process_time() - began < 30
    assert "400 stretches of 1000 characters without a break were cut" in caplog.text
    assert tokenizer.vocab.size > 50


def test_other_texts_are_learnt_whole(caplog):
    texts = ["word " * 5000, "x" * 999 + " " + "y" * 999, ""]
    assert list(bounded(texts)) == texts and not caplog.text
    cut = list(bounded(["z" * 2500]))
    assert [len(piece) for piece in cut] == [1000, 1000, 500] and "2 stretches" in caplog.text
