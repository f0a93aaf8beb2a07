"""Real texts as long as generated ones."""

import pytest

from mdlm.data import Bytes, Pad, Wrap
from mdlm.generation.real_texts import real_texts

DOCUMENTS = ["abcdefghij" * 4, "klmnopqrst" * 3, "uvw", "xyz" * 9]


@pytest.fixture(scope="module")
def tokenizer():
    return Bytes().build([])


def drawn(tokenizer, packing, **settings):
    rows = packing.of(tokenizer.encode(DOCUMENTS), tokenizer.vocab)
    return real_texts(rows, packing, tokenizer, **{"num": 99, **settings})


@pytest.mark.parametrize(
    ("row_specials", "length", "joined"),
    [(False, 10, 1), (True, 8, 1), (False, 25, 3), (True, 8, 1)],
)
def test_texts_are_pieces_of_the_stream(tokenizer, row_specials, length, joined):
    packing = Wrap(length=10, row_specials=row_specials)
    found = drawn(tokenizer, packing, length=length)
    end = tokenizer.vocab.eos_id
    stream = [i for ids in tokenizer.encode(DOCUMENTS) for i in (*ids.tolist(), end)]
    step = joined * (10 - 2 * row_specials)
    expected = {tuple(stream[i : i + length]) for i in range(0, len(stream) - step + 1, step)}
    assert {text.tokens for text in found} == expected and len(found) == len(stream) // step
    assert [text.text for text in found] != [
        text.text for text in drawn(tokenizer, packing, length=length, seed=1)
    ]


def test_documents_are_texts_of_their_own(tokenizer):
    found = drawn(tokenizer, Pad(length=50), length=49)
    assert sorted(text.pieces for text in found) == sorted((one, "") for one in DOCUMENTS)
    short = drawn(tokenizer, Pad(length=50, pad="as_published"), length=5)
    assert sorted(text.text for text in short) == sorted(one[:5] for one in DOCUMENTS)


def test_no_more_than_asked_for(tokenizer):
    packing = Wrap(length=10, row_specials=False)
    assert len(drawn(tokenizer, packing, length=10, num=3)) == 3
    assert drawn(tokenizer, packing, length=500) == []
    first = [text.tokens for text in drawn(tokenizer, packing, length=10, num=3)]
    more = [text.tokens for text in drawn(tokenizer, packing, length=10, num=5)]
    assert more[:3] == first and len(more) == 5
