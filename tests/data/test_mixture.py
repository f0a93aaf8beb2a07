"""Mixtures: several sources as one dataset, training by weight, evaluation of all rows."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
from held import Held
from store_maker import write_store

from mdlm.config.overrides import apply
from mdlm.config.records import describe
from mdlm.data.dataset import TextData
from mdlm.data.loader import TrainLoader, evaluation_batches, process_part
from mdlm.data.mixture import Mixture
from mdlm.data.packing import Pad, Wrap
from mdlm.data.rows.base import Rows
from mdlm.data.rows.joined import JoinedRows, MixedRows
from mdlm.data.rows.shuffle import PERIOD
from mdlm.data.text.source import Source
from mdlm.data.tokenizers import BPE, Bytes, Characters
from mdlm.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeSource(Source):
    """A source whose splits are one letter each, repeated."""

    letter: str
    sizes: tuple[tuple[str, int], ...]

    @property
    def splits(self):
        return tuple(name for name, _ in self.sizes)

    @property
    def name(self):
        return f"fake {self.letter}"

    def _documents(self, split):
        return [self.letter * dict(self.sizes)[split]]


BYTES, ROWS_OF_8 = Bytes(), Wrap(length=8, row_specials=False)


def part(letter: str, tokenizer=BYTES, packing=ROWS_OF_8, **sizes):
    source = FakeSource(letter=letter, sizes=tuple(sizes.items()))
    return TextData(source=source, tokenizer=tokenizer, packing=packing)


def mixture(weights=(3.0, 1.0), **changes) -> Mixture:
    parts = (
        part("a", train=799, valid=30, test=9, **changes),
        part("b", train=7999, valid=21, **changes),
    )
    return Mixture(parts=parts, weights=weights)


def test_training_by_weight_and_evaluation_of_all_rows():
    dataset = mixture().load()
    assert dataset.splits == ("train", "valid", "test")
    loader = TrainLoader(dataset.train.rows, 100, seed=0)
    batches = [loader.batch_at(at)["tokens"] for at in range(0, PERIOD, 100)]
    first = np.concatenate(batches)[:, 0]
    assert (first == ord("a")).sum() == 7500 and (first == ord("b")).sum() == 2500
    for split, expected in (("valid", (30, 21)), ("test", (9, 0))):
        found = getattr(dataset, split)
        counts = np.zeros(dataset.vocab.size, int)
        for batch in evaluation_batches(found.rows, 3):
            counts += np.bincount(batch["tokens"][batch["loss_mask"]], minlength=dataset.vocab.size)
        assert (counts[ord("a")], counts[ord("b")]) == expected
        assert found.tokens == counts.sum() and found.bytes == sum(expected)
        assert found.characters == sum(expected) and found.documents == sum(n > 0 for n in expected)
    assert dataset.protocol("valid").endswith("wrapped rows of 8, 2 sources one after another")
    assert dataset.protocol("test").endswith("1 of 2 sources one after another")


def test_batches_for_any_number_of_processes_and_position():
    rows = mixture((2.0, 5.0)).load().train.rows
    alone = TrainLoader(rows, 12, 7)
    for position in (0, 12, PERIOD - 5, 3 * PERIOD + 1, 12 * 10**9):
        whole = alone.indices_at(position)
        for processes in (2, 3, 4):
            parts = [
                TrainLoader(rows, 12, 7, process_part(12, i, processes)) for i in range(processes)
            ]
            found = np.concatenate([loader.indices_at(position) for loader in parts])
            np.testing.assert_array_equal(found, whole)


def test_one_part_trains_as_without_mixture():
    only = part("a", train=799, valid=30)
    mixed, alone = Mixture(parts=(only,), weights=(2.0,)).load(), only.load()
    for position in (0, 64, 6400, 20_000):
        a, b = (TrainLoader(d.train.rows, 64, 3).batch_at(position) for d in (mixed, alone))
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    assert mixed.valid.tokens == alone.valid.tokens


def numbered(first: int, n: int, segments: bool = False, padded: bool = False) -> Held:
    tokens = (first + np.arange(n, dtype=np.int32))[:, None] * np.ones((1, 3), np.int32)
    valid = np.ones((n, 3), bool)
    valid[:, 2] = not padded
    ids = tokens % 7 if segments else None
    return Held(Rows(tokens=tokens, loss_mask=tokens % 2 == 0, is_valid=valid, segment_ids=ids))


@pytest.mark.parametrize("segments", [False, True])
def test_joined_rows_are_the_parts_rows(segments):
    parts = tuple(
        numbered(*at, segments=segments, padded=at[0] == 4) for at in ((0, 4), (4, 1), (5, 6))
    )
    rows = JoinedRows(parts)
    assert len(rows) == 11 and rows.is_padded and not JoinedRows(parts[::2]).is_padded
    at = np.random.default_rng(0).integers(0, 11, 40)
    found = rows.take(at)
    np.testing.assert_array_equal(found.tokens[:, 0], at)
    np.testing.assert_array_equal(found.loss_mask[:, 0], at % 2 == 0)
    np.testing.assert_array_equal(found.is_valid[:, 2], at != 4)
    if segments:
        np.testing.assert_array_equal(found.segment_ids[:, 0], at % 7)
    else:
        assert found.segment_ids is None
    assert rows.loss_tokens() == 18 == rows.all().loss_mask.sum()
    assert rows.take(at[:0]).tokens.shape == (0, 3)
    for wrong in (-1, 11):
        with pytest.raises(IndexError):
            rows.take(np.array([wrong]))
    batch = TrainLoader(rows, 4, 0).batch_at(0)
    assert "is_valid" in batch and ("segment_ids" in batch) == segments


def test_rows_of_other_lengths_are_not_joined():
    other = part("a", packing=Wrap(length=9), train=100).load().train.rows
    with pytest.raises(ValueError, match=r"rows of lengths \[3, 9\]"):
        MixedRows((numbered(0, 3), other), (5000, 5000))


def test_counts_are_in_the_proportions_of_training():
    dataset = mixture((3.0, 1.0)).load()
    loader = TrainLoader(dataset.train.rows, 1000, seed=0)
    seen = np.zeros(dataset.vocab.size)
    for at in range(0, 5 * PERIOD, 1000):
        batch = loader.batch_at(at)
        seen += np.bincount(batch["tokens"][batch["loss_mask"]], minlength=len(seen))
    share, expected = dataset.counts / dataset.counts.sum(), seen / seen.sum()
    np.testing.assert_allclose(share, expected, rtol=0.02)
    plain = sum(part.counts for part in dataset.parts)
    assert (dataset.counts >= plain).all() and dataset.counts.dtype == np.int64


def test_tokenizer_is_trained_on_all_parts_and_saved(tmp_path):
    data = mixture(tokenizer=Characters())
    dataset = data.load(tmp_path)
    assert dataset.tokenizer.alphabet == {"a", "b"}
    again = data.load(tmp_path)
    assert again.tokenizer.fingerprint == dataset.tokenizer.fingerprint
    assert data.load_tokenizer(tmp_path).fingerprint == dataset.tokenizer.fingerprint
    with pytest.raises(InputError, match="holds the tokenizer of Characters"):
        mixture().load(tmp_path)


def stored(tmp_path, name: str, tokenizer, letter: str, n: int):
    """A part in a store: one document of a letter, repeated `n` times, encoded by `tokenizer`."""
    data = part(letter, tokenizer=BPE(vocab_size=270), train=n)
    ids = tokenizer.encode([letter * n])
    write_store(
        str(tmp_path / name),
        {"train": ids},
        tokenizer,
        eos=tokenizer.vocab.eos_id,
        shard_tokens=500,
        source=repr(data.source),
        made_by=repr(data.tokenizer),
    )
    return replace(data, store=str(tmp_path / name))


def test_stores_of_one_tokenizer_are_mixed_and_others_refused(tmp_path):
    tokenizer = BPE(vocab_size=270).build(["abab " * 100])
    a = stored(tmp_path, "one", tokenizer, "a", 900)
    b = stored(tmp_path, "two", tokenizer, "b", 2999)
    loose = part("c", tokenizer=BPE(vocab_size=270), train=500)
    dataset = Mixture(parts=(loose, a, b), weights=(1, 1, 2)).load()
    assert dataset.tokenizer.fingerprint == tokenizer.fingerprint
    assert dataset.splits == ("train",) and dataset.store is not None
    loader = TrainLoader(dataset.train.rows, PERIOD, 0)
    text = [dataset.tokenizer.decode(row)[0] for row in loader.batch_at(0)["tokens"]]
    assert [text.count(letter) for letter in "cab"] == [2500, 2500, 5000]
    with pytest.raises(InputError, match="no part of the mixture has a valid split"):
        _ = dataset.valid
    other = stored(tmp_path, "three", BPE(vocab_size=270).build(["cdcd " * 100]), "d", 900)
    with pytest.raises(InputError, match=r"parts\[1\]: \S+three was made with another tokenizer"):
        Mixture(parts=(a, other), weights=(1, 1)).load()
    tokenizer.save(tmp_path / "kept")
    with pytest.raises(InputError, match=r"parts\[0\]: \S+three was .* than that of \S+kept"):
        Mixture(parts=(other,), weights=(1,)).load(tmp_path / "kept")


@pytest.mark.parametrize(
    "weights, message",
    [
        ((1.0,), "2 parts and weights="),
        ((1.0, 0.0), "each must be a positive number"),
        ((1.0, -2.0), "each must be a positive number"),
        ((1.0, float("nan")), "each must be a positive number"),
        ((1.0, float("inf")), "each must be a positive number"),
        ((1.0, 1e-5), "is less than one sample in 10,000"),
    ],
)
def test_invalid_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        mixture(weights)


def test_incompatible_parts():
    with pytest.raises(ValueError, match="0 parts"):
        Mixture(parts=(), weights=())
    one = part("a", train=100)
    for name, other in (
        ("tokenizer", part("b", tokenizer=Characters(), train=100)),
        ("packing", part("b", packing=Pad(length=8), train=100)),
    ):
        with pytest.raises(ValueError, match=rf"parts\[1\].{name}=.*but parts\[0\].{name}="):
            Mixture(parts=(one, other), weights=(1, 1))
    with pytest.raises(InputError, match="fake b has no train split"):
        _ = Mixture(parts=(one, part("b", valid=30)), weights=(1, 1)).load().train


def test_an_experiment_takes_a_mixture(tmp_path):
    experiment = tiny.experiment(tmp_path, data=mixture())
    other = apply(experiment, [("data.weights", "1,4")])
    assert other.data.weights == (1.0, 4.0)
    assert json.dumps(describe(experiment)) != json.dumps(describe(other))
    with pytest.raises(InputError, match="each must be a positive number"):
        apply(experiment, [("data.weights", "1,-4")])
    a, b = mixture().load(), mixture((1.0, 4.0)).load()
    assert a.fingerprint != b.fingerprint and a.fingerprint == mixture().load().fingerprint
