"""Packing: every token in its position, and correct masks of padding."""

from types import SimpleNamespace

import numpy as np
import pytest

from mdlm.data.packing import Pad, Wrap
from mdlm.errors import InputError
from mdlm.types import Vocab

VOCAB = Vocab(size=100, mask_id=3, bos_id=0, eos_id=1, pad_id=2)
GPT2 = Vocab(size=70000, mask_id=69999, bos_id=None, eos_id=1)


def documents(*sizes, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(4, 100, size).astype(np.int32) for size in sizes]


def made(packing, docs, vocab):
    """All rows, and the counts of their row set."""
    rows = packing.of(docs, vocab)
    whole = rows.all()
    assert rows.loss_tokens() == whole.loss_mask.sum()
    assert rows.is_padded == (not whole.is_valid.all())
    assert rows.length == packing.length and len(rows) == len(whole)
    return SimpleNamespace(**vars(whole), placed=rows.placed, dropped=rows.dropped)


@pytest.mark.parametrize("row_specials", [True, False])
@pytest.mark.parametrize("vocab", [VOCAB, GPT2])
def test_wrap_keeps_every_token_once(row_specials, vocab):
    docs = documents(5, 0, 17, 1, 40, 2)
    rows = made(Wrap(length=8, row_specials=row_specials), docs, vocab)
    stream = [token for doc in docs for token in [*doc.tolist(), 1]]
    found = []
    for tokens, is_valid in zip(rows.tokens, rows.is_valid, strict=True):
        row = tokens[is_valid].tolist()
        if row_specials:
            assert row[0] == (0 if vocab is VOCAB else 1) and row[-1] == 1
            row = row[1:-1]
        found += row
    assert found == stream
    np.testing.assert_array_equal(rows.loss_mask, rows.is_valid)
    assert rows.is_valid[:-1].all() and not rows.is_valid[-1].all()
    assert (rows.tokens[~rows.is_valid] == (2 if vocab is VOCAB else 1)).all()
    assert (rows.placed, rows.dropped) == (65, 0)
    assert rows.tokens.dtype == (np.uint16 if vocab is VOCAB else np.int32)


@pytest.mark.parametrize("row_specials", [True, False])
def test_wrap_drops_the_remainder_as_published(row_specials):
    docs = documents(10, 3, 9, 2)
    kept = made(Wrap(length=8, row_specials=row_specials), docs, VOCAB)
    dropped = made(Wrap(length=8, row_specials=row_specials, remainder="drop"), docs, VOCAB)
    np.testing.assert_array_equal(kept.tokens[:-1], dropped.tokens)
    assert dropped.is_valid.all() and dropped.loss_mask.all()
    # 28 tokens of stream: 4 x 6 + 4 (of which 2 EOS are not the documents'), or 3 x 8 + 4.
    assert (dropped.placed, dropped.dropped) == (22, 2)


def test_wrap_that_fits_has_no_padding():
    rows = made(Wrap(length=8), documents(5, 5), VOCAB)
    assert rows.tokens.shape == (2, 8) and rows.is_valid.all()


@pytest.mark.parametrize("remainder", ["pad", "drop"])
def test_wrap_needs_one_row(remainder):
    with pytest.raises(InputError, match=r"has 9 tokens, .* length=12 \(must be at least 10\)"):
        Wrap(length=12, remainder=remainder).of(documents(8), VOCAB)
    with pytest.raises(InputError, match="has 0 tokens"):
        Wrap(length=12, remainder=remainder).of([], VOCAB)
    assert len(Wrap(length=12, remainder=remainder).of(documents(9), VOCAB)) == 1


def test_pad_by_hand():
    docs = [np.array(doc, np.int32) for doc in ([4, 5], [], [6, 7, 8], [9, 10, 11, 12])]
    rows = made(Pad(length=5), docs, VOCAB)
    assert rows.tokens.tolist() == [[0, 4, 5, 1, 2], [0, 6, 7, 8, 1], [0, 9, 10, 11, 1]]
    assert rows.loss_mask.tolist() == [[True] * 4 + [False], [True] * 5, [True] * 5]
    np.testing.assert_array_equal(rows.is_valid, rows.loss_mask)
    assert (rows.placed, rows.dropped) == (8, 1)
    published = made(Pad(length=5, pad="as_published"), docs, VOCAB)
    np.testing.assert_array_equal(published.tokens, rows.tokens)
    np.testing.assert_array_equal(published.loss_mask, rows.loss_mask)
    assert published.is_valid.all()
    plain = made(Pad(length=3, specials=False), docs, VOCAB)
    assert plain.tokens.tolist() == [[4, 5, 2], [6, 7, 8], [9, 10, 11]]
    assert plain.loss_mask.tolist() == [[True, True, False], [True] * 3, [True] * 3]


def test_pad_against_a_loop():
    docs = documents(*np.random.default_rng(1).integers(0, 30, 200))
    rows = made(Pad(length=16), docs, VOCAB)
    expected = [[0, *doc[:14].tolist(), 1] for doc in docs if len(doc)]
    assert [row[m].tolist() for row, m in zip(rows.tokens, rows.loss_mask, strict=True)] == expected
    assert (rows.tokens[~rows.loss_mask] == 2).all()


def test_pad_without_bos():
    rows = made(Pad(length=5), [np.array([4], np.int32)], GPT2)
    assert rows.tokens.tolist() == [[1, 4, 1, 1, 1]]
    assert rows.loss_mask.tolist() == [[True, True, True, False, False]]
    with pytest.raises(InputError, match="no document has a token"):
        Pad(length=5).of(documents(0, 0), VOCAB)


def test_vocabulary_without_bos_and_eos():
    bare = Vocab(size=9, mask_id=0)
    for packing in (Wrap(length=4), Pad(length=4)):
        with pytest.raises(InputError, match="neither BOS nor EOS"):
            packing.of(documents(9), bare)
    seen = Pad(length=4, specials=False, pad="as_published")
    with pytest.raises(InputError, match="neither BOS nor EOS"):
        seen.of(documents(3), bare)
    # Padding that nothing reads may be any token but the mask.
    docs = [np.array([4, 5, 6, 7, 8], np.int32)]
    for packing in (
        Wrap(length=4, row_specials=False, eos=False),
        Pad(length=8, specials=False),
    ):
        rows = made(packing, docs, bare)
        assert rows.tokens[rows.is_valid].tolist() == [4, 5, 6, 7, 8]
        assert (rows.tokens[~rows.is_valid] == 1).all() and not rows.is_valid.all()


def test_settings_are_checked():
    with pytest.raises(ValueError, match="length=2"):
        Wrap(length=2)
    with pytest.raises(ValueError, match="length=1"):
        Pad(length=1)
