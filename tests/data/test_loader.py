"""Loaders: the same global batches for any number of processes, from any position."""

import contextlib
import itertools
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from held import Held

from mdlm.data.loader import TrainLoader, evaluation_batches, process_part
from mdlm.data.packing import Wrap
from mdlm.data.rows.base import Rows, RowSet
from mdlm.errors import InputError
from mdlm.types import Batch, Vocab


def make_rows(n, length=4):
    tokens = np.arange(n * length).reshape(n, length).astype(np.uint16)
    draw = np.random.default_rng(0)
    is_valid = draw.random((n, length)) < 0.9
    is_valid[:, 0] = True
    is_valid[:1, -1] = False  # some padding, however few the rows
    return Held(
        Rows(
            tokens=tokens,
            loss_mask=is_valid & (draw.random((n, length)) < 0.8),
            is_valid=is_valid,
        )
    )


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == b[name].dtype


def joined(parts):
    whole = {name: np.concatenate([p[name] for p in parts]) for name in parts[0] if name != "rows"}
    return whole | {"rows": parts[0]["rows"]}


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("n", [3, 10, 17, 64])
def test_global_batches_do_not_depend_on_processes(processes, n):
    rows = make_rows(n)
    alone = TrainLoader(rows, 8, seed=5)
    parts = [TrainLoader(rows, 8, 5, process_part(8, i, processes)) for i in range(processes)]
    for position in (0, 8, 24, 8 * n, 8 * n + 3):
        assert_same(joined([p.batch_at(position) for p in parts]), alone.batch_at(position))


@pytest.mark.parametrize("n", [3, 10, 17])
def test_each_epoch_has_each_row_once(n):
    loader = TrainLoader(make_rows(n), 4, seed=1)
    first = [loader.batch_at(position)["tokens"][:, 0] // 4 for position in range(0, 8 * n, 4)]
    epochs = np.concatenate(first).reshape(8, n)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(n))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1
    other = TrainLoader(make_rows(n), 4, seed=2)
    assert any(
        (loader.batch_at(p)["tokens"] != other.batch_at(p)["tokens"]).any()
        for p in range(0, 8 * n, 4)
    )


def test_a_batch_is_the_rows_it_names():
    rows = make_rows(10)
    loader = TrainLoader(rows, 6, seed=0, here=process_part(6, 1, 2))
    batch = loader.batch_at(12)
    indices = loader.indices_at(12)
    np.testing.assert_array_equal(batch["tokens"], rows.rows.tokens[indices])
    np.testing.assert_array_equal(batch["loss_mask"], rows.rows.loss_mask[indices])
    np.testing.assert_array_equal(batch["is_valid"], rows.rows.is_valid[indices])
    assert batch["tokens"].dtype == np.int32
    assert batch["row"].tolist() == [3, 4, 5] and batch["rows"] == 6
    Batch(**batch)


def test_resumes_anywhere():
    rows = make_rows(13)
    batches = dict(itertools.islice(TrainLoader(rows, 4, seed=3).iterate(0), 12))
    assert list(batches) == list(range(4, 52, 4))
    for start in (0, 4, 20, 36):
        parts = [TrainLoader(rows, 4, 3, process_part(4, i, 2)).iterate(start) for i in range(2)]
        for step in range(1, 4):
            (position, first), (other, second) = map(next, parts)
            assert position == other == start + 4 * step
            assert_same(joined([first, second]), batches[position])
        for part in parts:
            part.close()


@pytest.mark.parametrize("before, after", [(4, 2), (4, 3), (2, 3), (1, 6)])
def test_run_resumes_with_another_number_of_processes(before, after):
    """The global batches are bitwise those of an uninterrupted run."""
    rows = make_rows(31)
    straight = dict(itertools.islice(TrainLoader(rows, 12, seed=3).iterate(0), 9))
    position = 0
    for processes, steps in ((before, 4), (after, 5)):
        parts = [
            TrainLoader(rows, 12, 3, process_part(12, i, processes)).iterate(position)
            for i in range(processes)
        ]
        for _ in range(steps):
            found = [next(part) for part in parts]
            (position,) = {position for position, _ in found}  # saved in a checkpoint
            assert_same(joined([batch for _, batch in found]), straight[position])
        for part in parts:
            part.close()
    assert position == 108


class Endless(RowSet):
    """Any number of rows, whose tokens are computed from the row numbers."""

    placed, dropped, inserted, is_padded, length = 0, 0, {}, False, 1024

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def loss_tokens(self):
        return self.n * self.length

    def take(self, at):
        self.check(at)
        tokens = np.broadcast_to((at % 50_000).astype(np.uint16)[:, None], (len(at), self.length))
        full = np.ones(tokens.shape, bool)
        return Rows(tokens=tokens, loss_mask=full, is_valid=full)


def test_memory_of_a_loader_does_not_grow_with_the_data():
    """20 billion tokens, and 100,000 times as many, need no more memory than a few."""
    peaks = []
    for n in (1000, 20_000_000, 2**41):
        tracemalloc.start()
        loader = TrainLoader(Endless(n), 8, seed=0)
        for position in (0, n - 3, 7 * n + 5):
            batch = loader.batch_at(position)
        assert batch["tokens"].shape == (8, 1024)
        if n < 2**31:  # an evaluation numbers rows in 32 bits
            next(evaluation_batches(loader.rows, 8))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 300_000 and max(peaks) < 1.5 * min(peaks), peaks


def test_prepare_runs_in_the_thread():
    main = threading.get_ident()

    def prepare(batch):
        return threading.get_ident(), batch["tokens"].sum()

    loader = TrainLoader(make_rows(10), 4, seed=0)
    with contextlib.closing(loader.iterate(8, prepare)) as feed:
        position, (thread, total) = next(feed)
    assert position == 12 and thread != main and total == loader.batch_at(8)["tokens"].sum()


def test_segment_ids_are_in_batches():
    plain = make_rows(9)
    ids = np.arange(36).reshape(9, 4).astype(np.int16)
    rows = Held(replace(plain.rows, segment_ids=ids))
    loader = TrainLoader(rows, 4, seed=0)
    batch = loader.batch_at(0)
    np.testing.assert_array_equal(batch["segment_ids"], ids[loader.indices_at(0)])
    assert batch["segment_ids"].dtype == np.int32
    found = [batch["segment_ids"] for batch in evaluation_batches(rows, 4)]
    np.testing.assert_array_equal(np.concatenate(found)[:9], ids)
    assert "segment_ids" not in TrainLoader(plain, 4, 0).batch_at(0)


@pytest.mark.parametrize("remainder, scored", [("pad", 61), ("drop", 56)])
def test_evaluation_has_every_token_of_a_stream_once(remainder, scored):
    tokens = np.arange(10, 70, dtype=np.int32)
    vocab = Vocab(size=100, mask_id=3, bos_id=0, eos_id=1, pad_id=2)
    rows = Wrap(length=8, row_specials=False, remainder=remainder).of([tokens], vocab)
    for processes in (1, 3):
        streams = [
            evaluation_batches(rows, 3, process_part(3, i, processes)) for i in range(processes)
        ]
        batches = [joined(list(parts)) for parts in zip(*streams, strict=True)]
        seen = np.concatenate([b["tokens"][b["loss_mask"]] for b in batches])
        assert seen.tolist() == [*tokens, 1][:scored]


def test_prefetching_stops_when_closed():
    before = threading.active_count()
    stream = TrainLoader(make_rows(5), 2, seed=0).iterate(0)
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before
    TrainLoader(make_rows(5), 2, seed=0).iterate(0)  # never started: no thread
    assert threading.active_count() == before


def test_errors_of_the_thread_arrive(monkeypatch):
    loader = TrainLoader(make_rows(5), 2, seed=0)
    plain = loader.batch_at

    def failing(position):
        if position >= 4:
            raise OSError("disk gone")
        return plain(position)

    monkeypatch.setattr(loader, "batch_at", failing)
    seen = []
    before = threading.active_count()
    with pytest.raises(OSError, match="disk gone"):
        for position, _ in loader.iterate(0):
            seen.append(position)
    assert seen == [2, 4]
    assert threading.active_count() == before


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 7, 8, 16, 19])
def test_evaluation_has_every_row_once(processes, n):
    rows = make_rows(n)
    streams = [evaluation_batches(rows, 8, process_part(8, i, processes)) for i in range(processes)]
    batches = [joined(list(parts)) for parts in zip(*streams, strict=True)]
    assert len(batches) == -(-n // 8)
    whole = {k: np.concatenate([b[k] for b in batches]) for k in batches[0] if k != "rows"}
    assert all(batch["tokens"].shape == (8, 4) for batch in batches)
    assert all(batch["rows"] == n for batch in batches)
    for name in ("tokens", "loss_mask", "is_valid"):
        np.testing.assert_array_equal(whole[name][:n], getattr(rows.rows, name))
    np.testing.assert_array_equal(whole["row"][:n], np.arange(n))
    filled = slice(n, None)
    assert not whole["loss_mask"][filled].any()
    assert whole["is_valid"][filled].any(axis=1).all()
    assert (whole["row"][filled] == n - 1).all()


def test_rows_without_padding_have_no_mask():
    rows = make_rows(8)
    whole = Held(replace(rows.rows, is_valid=np.ones_like(rows.rows.is_valid)))
    assert rows.is_padded and not whole.is_padded
    assert "is_valid" not in TrainLoader(whole, 4, 0).batch_at(0)
    assert all("is_valid" not in batch for batch in evaluation_batches(whole, 3))
    assert "is_valid" in TrainLoader(rows, 4, 0).batch_at(0)


def test_errors():
    rows = make_rows(4)
    with pytest.raises(InputError, match="batch_size=6: must be a positive multiple of .* 4"):
        process_part(6, 0, 4)
    with pytest.raises(InputError, match="batch_size=0"):
        TrainLoader(rows, 0, 0)
    with pytest.raises(InputError, match="no rows"):
        TrainLoader(make_rows(0), 2, 0)
    with pytest.raises(InputError, match="no rows"):
        evaluation_batches(make_rows(0), 2)
    with pytest.raises(ValueError, match="process_index=2"):
        process_part(4, 2, 2)
    with pytest.raises(ValueError, match="position=-1"):
        TrainLoader(rows, 4, 0).batch_at(-1)
    with pytest.raises(ValueError, match="seed=-1: must be in"):
        TrainLoader(rows, 4, -1)
