"""Rows cut from streams, in memory or stored, against a loop over documents and tokens."""

from types import SimpleNamespace

import numpy as np
import pytest
from store_maker import write_store

from mdlm.data.packing import Pad, Wrap
from mdlm.data.store import shard_files
from mdlm.data.store.reader import Store
from mdlm.errors import InputError
from mdlm.types import Vocab

VOCAB = Vocab(size=100, mask_id=3, bos_id=0, eos_id=1, pad_id=2)
TOKENIZER = SimpleNamespace(vocab=VOCAB, fingerprint="f")

PACKINGS = [
    *(
        Wrap(length=length, row_specials=specials, remainder=remainder, eos=eos, segments=segments)
        for length in (3, 8, 21)
        for specials in (True, False)
        for remainder in ("pad", "drop")
        for eos in (True, False)
        for segments in (True, False)
    ),
    *(
        Pad(length=length, specials=specials, pad=pad)
        for length in (3, 8, 21)
        for specials in (True, False)
        for pad in ("exclude", "as_published")
    ),
]


def documents(seed):
    """Documents of random lengths: many, few or none of them empty; sometimes all short."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(0, draw.choice([4, 12, 40]), draw.integers(1, 40))
    sizes[draw.random(len(sizes)) < draw.choice([0, 0.1, 0.5])] = 0
    return [draw.integers(4, 100, size).astype(np.int32) for size in sizes]


def written_out(packing, docs):
    """Rows as lists (tokens, loss mask, validity, segments), token by token; tokens in rows."""
    rows, placed = [], 0
    if isinstance(packing, Pad):
        for doc in docs:
            if not len(doc):
                continue
            own = [int(token) for token in doc[: packing.length - 2 * packing.specials]]
            placed += len(own)
            row = [0, *own, 1] if packing.specials else own
            fill = packing.length - len(row)
            scored = [True] * len(row) + [False] * fill
            seen = [True] * packing.length if packing.pad == "as_published" else scored
            rows.append((row + [2] * fill, scored, seen, None))
        return rows, placed
    stream = []  # token, document, whether it is the document's own
    for number, doc in enumerate(docs):
        stream += [(int(token), number, True) for token in doc]
        stream += [(1, number, False)] if packing.eos else []
    inside = packing.length - 2 * packing.row_specials
    for start in range(0, len(stream), inside):
        part = stream[start : start + inside]
        if len(part) < inside and packing.remainder == "drop":
            continue
        placed += sum(own for _, _, own in part)
        row, of = [token for token, _, _ in part], [number for _, number, _ in part]
        if packing.row_specials:
            row, of = [0, *row, 1], [of[0], *of, of[-1]]
        names = list(dict.fromkeys(of))
        fill = packing.length - len(row)
        seen = [True] * len(row) + [False] * fill
        segments = [names.index(number) for number in of]
        rows.append((row + [2] * fill, seen, seen, segments if packing.segments else None))
    return rows, placed


def assert_rows(found, expected):
    assert found.tokens.tolist() == [row[0] for row in expected]
    assert found.loss_mask.tolist() == [row[1] for row in expected]
    assert found.is_valid.tolist() == [row[2] for row in expected]
    if expected[0][3] is None:
        assert found.segment_ids is None
    else:
        for ids, seen, row in zip(found.segment_ids, found.is_valid, expected, strict=True):
            assert ids[seen].tolist() == row[3]


def assert_set(rows, packing, docs, seed):
    expected, placed = written_out(packing, docs)
    assert len(rows) == len(expected) and rows.length == packing.length
    assert_rows(rows.all(), expected)
    at = np.random.default_rng(seed).integers(0, len(rows), 7)
    assert_rows(rows.take(at), [expected[i] for i in at])
    assert rows.placed == placed and rows.dropped == sum(map(len, docs)) - placed
    assert rows.loss_tokens() == sum(sum(row[1]) for row in expected)
    assert rows.is_padded == (not all(all(row[2]) for row in expected))
    own = sum(map(len, docs)) + len(docs) * (packing.eos if isinstance(packing, Wrap) else 1)
    assert own + sum(rows.inserted.values()) == rows.loss_tokens() + rows.dropped
    for bad in (-1, len(rows)):
        with pytest.raises(IndexError, match=f"of {len(rows)}"):
            rows.take(np.array([0, bad]))


def too_little(packing, docs):
    if isinstance(packing, Pad):
        return not any(map(len, docs))
    total = sum(map(len, docs)) + packing.eos * len(docs)
    return total < packing.length - 2 * packing.row_specials


@pytest.mark.parametrize("seed", range(12))
def test_rows_against_a_loop(seed):
    docs = documents(seed)
    for packing in PACKINGS:
        if too_little(packing, docs):
            with pytest.raises(InputError, match="too few for one row|no document has a token"):
                packing.of(docs, VOCAB)
        else:
            assert_set(packing.of(docs, VOCAB), packing, docs, seed)


@pytest.mark.parametrize("where", ["local", "memory"])
@pytest.mark.parametrize("seed", range(4))
def test_stored_rows_against_a_loop(seed, where, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_files, "PIECE", 24)
    docs = documents(100 + seed)[:8]
    shard_tokens = [3, 7, 40, 10_000][seed]
    streams = {}
    for eos in (1, None):
        url = f"memory://rows-{seed}-{eos}" if where == "memory" else str(tmp_path / f"{eos}")
        dtype = "uint32" if seed % 2 else "uint16"
        write_store(
            url, {"train": docs}, TOKENIZER, eos=eos, shard_tokens=shard_tokens, dtype=dtype
        )
        streams[eos] = Store.open(url).stream("train")
    checked = 0
    for packing in PACKINGS:
        if packing.length != 8 or too_little(packing, docs):
            continue
        rows = packing.over(streams[1 if getattr(packing, "eos", True) else None], VOCAB)
        assert_set(rows, packing, docs, seed)
        assert rows.all().tokens.dtype == np.uint16
        checked += 1
    assert checked > 10
    pad = Pad(length=8)  # documents are found by their ends, with or without EOS between them
    assert_rows(pad.over(streams[None], VOCAB).all(), written_out(pad, docs)[0])


def test_first_rows():
    docs = documents(3)
    rows = Wrap(length=8).of(docs, VOCAB)
    few = rows.first(2)
    expected, _ = written_out(Wrap(length=8), docs)
    assert len(few) == 2 and few.loss_tokens() == 16
    assert_rows(few.all(), expected[:2])
    with pytest.raises(IndexError):
        few.take(np.array([2]))
    assert len(rows.first(10_000)) == len(rows)


def test_chunks_are_all_rows(monkeypatch):
    monkeypatch.setattr("mdlm.data.rows.base.CHUNK", 20)
    rows = Wrap(length=8).of(documents(3), VOCAB)
    parts = list(rows.chunks())
    assert [len(part) for part in parts[:-1]] == [2] * (len(parts) - 1) and len(parts) > 2
    np.testing.assert_array_equal(
        np.concatenate([part.tokens for part in parts]), rows.all().tokens
    )


@pytest.mark.parametrize("eos", [True, False])
def test_a_stream_made_for_another_packing_is_refused(eos):
    docs = documents(3)
    stream = Wrap(length=8, eos=not eos).of(docs, VOCAB).stream
    with pytest.raises(InputError, match=f"Wrap.eos={eos}. needs .*: use Wrap.eos={not eos}."):
        Wrap(length=8, eos=eos).over(stream, VOCAB)


def test_protocols_describe_what_changes_the_task():
    said = [packing.protocol for packing in PACKINGS]
    assert len(set(said)) == len(said) - 6  # the protocol of Pad does not name `specials`
    assert "attention inside documents" in Wrap(length=8, segments=True).protocol
    assert "no EOS between documents" in Wrap(length=8, eos=False).protocol
