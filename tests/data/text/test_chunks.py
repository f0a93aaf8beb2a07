"""Chunks of text: the same however the source is cut into pieces, and cuts change no token."""

import json
import re

import numpy as np
import pytest
import tiny

from mdlm.data.text.chunks import Chunk, chunks, start_of
from mdlm.data.text.files import Piece
from mdlm.data.tokenizers import BPE, Bytes
from mdlm.errors import InputError

WORDS = re.compile(r"(?<=\S) ")


def documents(seed=0):
    """Documents of many lengths: empty, shorter than a chunk, many chunks long; odd spaces."""
    rng = np.random.default_rng(seed)
    texts = []
    for n in (0, 3, 0, 0, 40, 600, 1, 200, 0):
        words = [w + " " * rng.integers(0, 4) + "\n" * rng.integers(0, 2) for w in tiny.WORDS]
        texts.append("".join(rng.choice(words) for _ in range(n)))
    return texts


def cut_up(texts, seed, skip=0):
    """Pieces of documents, of random lengths; the position is the number of pieces."""
    rng, found = np.random.default_rng(seed), []
    for text in texts:
        places = np.sort(rng.integers(0, len(text) + 1, rng.integers(0, 1 + len(text) // 50)))
        borders = [0, *map(int, places), len(text)]
        for i, (a, b) in enumerate(zip(borders[:-1], borders[1:], strict=True)):
            ends = i + 2 == len(borders)
            dropped = {"bad": 1} if i == 0 and len(found) % 3 == 0 else {}
            found.append(Piece(text=text[a:b], ends=ends, position=len(found) + 1, dropped=dropped))
    found.append(Piece(text="", ends=False, position=len(found) + 1, dropped={"bad": 2}))
    return found[skip:]


def joined(found: list[Chunk]) -> list[str]:
    texts, is_open = [], False
    for chunk in found:
        for i, text in enumerate(chunk.texts):
            if is_open and i == 0:
                texts[-1] += text
            else:
                texts.append(text)
        is_open = chunk.open if chunk.texts else is_open
    assert not is_open
    return texts


@pytest.mark.parametrize("cut", [None, WORDS, re.compile("(?s).")])
@pytest.mark.parametrize("size", [16, 64, 1000, 10**6])
def test_chunks_do_not_depend_on_pieces(cut, size):
    texts = documents()
    first = list(chunks(cut_up(texts, 0), cut, size=size))
    assert joined(first) == texts
    if cut and size < 1000:
        assert len(first) > 10 and any(chunk.open for chunk in first)
    for seed in (1, 2):
        other = list(chunks(cut_up(texts, seed), cut, size=size))
        assert [(b.texts, b.open) for b in other] == [(b.texts, b.open) for b in first]


@pytest.mark.parametrize("cut", [None, WORDS])
def test_chunks_resume_from_any_position(cut):
    texts = documents()
    first = list(chunks(cut_up(texts, 3), cut, size=300))
    dropped = sum(b.dropped.get("bad", 0) for b in first)
    assert dropped == sum(p.dropped.get("bad", 0) for p in cut_up(texts, 3)) > 3
    for i, chunk in enumerate(first):
        position = json.loads(json.dumps(chunk.position))
        pieces = cut_up(texts, 3, skip=start_of(position) or 0)
        rest = list(chunks(pieces, cut, position, size=300))
        assert [(b.texts, b.open, b.dropped) for b in rest] == [
            (b.texts, b.open, b.dropped) for b in first[i + 1 :]
        ]


@pytest.mark.parametrize("config", [Bytes(), BPE(vocab_size=300)])
def test_cuts_change_no_token(config):
    texts = [text + "  a  b\n \n  c 'll 12 3" for text in documents()]
    tokenizer = config.build(texts)
    whole = np.concatenate(tokenizer.encode(texts))
    found = list(chunks(cut_up(texts, 0), tokenizer.cut_before, size=7))
    assert len(found) > 200
    parts = tokenizer.encode([text for chunk in found for text in chunk.texts])
    assert np.array_equal(np.concatenate(parts), whole)


def test_dropped_documents_are_counted_once():
    pieces = [Piece(text="aaa bbb ccc ddd eee fff", ends=True, position=1, dropped={"bad": 1})]
    first = list(chunks(pieces, WORDS, size=5))
    assert [chunk.dropped for chunk in first] == [{"bad": 1}, {}, {}]
    rest = list(chunks(pieces, WORDS, first[0].position, size=5))
    assert [(b.texts, b.dropped) for b in rest] == [(b.texts, {}) for b in first[1:]]


def test_text_after_a_cut_may_prevent_it():
    cut, texts = re.compile(r"(?<=\S) (?!t)"), ("aaaa bbbb ", "tttt cccc and so on and on")
    for parts in (texts, ("".join(texts),)):
        pieces = [Piece(text=t, ends=t == parts[-1], position=i) for i, t in enumerate(parts)]
        assert next(chunks(pieces, cut, size=9)).texts == ("aaaa bbbb tttt",)


def test_document_without_possible_cut_is_refused():
    pieces = [Piece(text="x" * 50, ends=False, position=i) for i in range(9)]
    with pytest.raises(InputError, match=r"\(at 'xxxx.*has 250 characters .* at most 200"):
        list(chunks(pieces, WORDS, size=10, limit=200))
    with pytest.raises(InputError, match="split it into documents"):
        list(chunks([Piece(text="a " * 500, ends=True, position=1)], None, size=10, limit=200))
    assert len(list(chunks([Piece(text="a " * 500, ends=True, position=1)], WORDS, size=10))) > 90
