"""Loaded data: counts, lazy splits, and one tokenizer per folder."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from mdlm.data.dataset import TextData
from mdlm.data.packing import Pad, Wrap
from mdlm.data.sources import PythonReference
from mdlm.data.text.source import Source
from mdlm.data.tokenizers import BPE, Bytes, Characters, WordPiece
from mdlm.errors import InputError

READ = []


@dataclass(frozen=True, kw_only=True)
class FakeSource(Source):
    """A source that records which splits are read."""

    text: str = "the cat sat on the mät"
    copies: int = 30

    @property
    def splits(self):
        return ("train", "valid")

    @property
    def name(self):
        return "fake text"

    def _documents(self, split):
        READ.append(split)
        return [f"{split} {i} {self.text}" for i in range(self.copies)]


@pytest.fixture(autouse=True)
def nothing_read():
    READ.clear()


def test_counts_are_exact_when_nothing_is_dropped():
    data = TextData(source=FakeSource(), tokenizer=Bytes(), packing=Wrap(length=32))
    valid = data.load().valid
    texts = FakeSource().documents("valid")
    assert valid.documents == 30
    assert valid.characters == sum(map(len, texts))
    assert valid.bytes == sum(len(text.encode()) for text in texts) == valid.characters + 30
    assert not valid.approximate_bytes
    stream = valid.bytes + 30
    assert valid.tokens == stream + 2 * len(valid.rows)
    assert valid.tokens == valid.rows.all().loss_mask.sum()


@pytest.mark.parametrize("packing", [Wrap(length=32, remainder="drop"), Pad(length=16)])
def test_counts_are_scaled_when_text_is_dropped(packing):
    dataset = TextData(source=FakeSource(), tokenizer=Bytes(), packing=packing).load()
    valid = dataset.valid
    assert valid.approximate_bytes
    special = [dataset.vocab.bos_id, dataset.vocab.eos_id, dataset.vocab.pad_id]
    shown = (~np.isin(valid.rows.all().tokens, special)).sum()  # a token of Bytes is a byte
    assert valid.bytes == pytest.approx(shown)
    assert valid.characters < valid.bytes < 30 * len("valid 10 the cat sat on the mat") + 30


def test_a_protocol_says_what_the_rows_leave_out():
    data = TextData(source=FakeSource(), tokenizer=Bytes(), packing=Pad(length=16))
    dataset = data.load()
    kept = dataset.valid.kept
    assert 0.1 < kept < 0.9
    assert dataset.protocol("valid") == f"padded to rows of 16, rows hold {kept:.1%} of the text"
    one = replace(data, source=FakeSource(copies=1), packing=Wrap(length=20)).load()
    assert one.protocol("valid").endswith("in each") and len(one.valid.rows) == 2
    assert replace(one.data, packing=Wrap(length=34)).load().protocol("valid").endswith(", one row")
    whole = replace(data, packing=Wrap(length=16)).load()
    assert whole.protocol("valid") == "wrapped rows of 16, BOS and EOS in each"


def test_a_protocol_counts_unknown_tokens(tmp_path):
    texts = FakeSource(text="the cat \u2603 sat")
    config = WordPiece(vocab_size=60)
    config.build(["the cat sat on the mat valid train 0123456789"]).save(tmp_path)
    data = TextData(source=texts, tokenizer=config, packing=Pad(length=300))
    dataset = data.load(tmp_path)
    rows = dataset.valid.rows.all()
    share = (rows.tokens[rows.loss_mask] == dataset.tokenizer.unk_id).mean()
    assert share > 0 and dataset.valid.unknown == share
    assert dataset.protocol("valid").endswith(f", {share:.2%} of the tokens are [UNK]")


def test_splits_are_read_when_used():
    dataset = TextData(source=FakeSource(), tokenizer=Bytes(), packing=Wrap(length=32)).load()
    assert READ == [] and dataset.splits == ("train", "valid")
    assert dataset.valid is dataset.valid
    assert READ == ["valid"]
    with pytest.raises(InputError, match="fake text has no test split, only train, valid"):
        _ = dataset.test


def test_one_tokenizer_per_folder(tmp_path):
    data = TextData(source=FakeSource(), tokenizer=BPE(vocab_size=280), packing=Wrap(length=32))
    first = data.load(tmp_path / "data")
    assert READ == ["train"]
    changed = replace(data, source=FakeSource(text="wholly other words"))
    again = changed.load(tmp_path / "data")
    assert READ == ["train"]
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert data.load_tokenizer(tmp_path / "data").vocab == first.vocab
    assert changed.load().tokenizer.fingerprint != first.tokenizer.fingerprint
    other = replace(data, tokenizer=BPE(vocab_size=281))
    with pytest.raises(InputError, match=r"tokenizer of BPE\(vocab_size=280\), this experiment"):
        other.load(tmp_path / "data")


def test_fingerprint_follows_everything():
    data = TextData(source=FakeSource(), tokenizer=Bytes(), packing=Wrap(length=32))
    variants = [
        data,
        replace(data, source=FakeSource(text="x")),
        replace(data, tokenizer=Characters()),
        replace(data, packing=Wrap(length=33)),
        replace(data, packing=Pad(length=32)),
    ]
    found = [variant.load().fingerprint for variant in variants]
    assert len(set(found)) == len(variants)
    assert data.load().fingerprint == found[0]
    assert data.load().train.text_fingerprint != data.load().valid.text_fingerprint


def test_progress_and_source_of_an_error():
    data = TextData(source=FakeSource(), tokenizer=BPE(vocab_size=280), packing=Wrap(length=32))
    calls = []
    _ = data.load(report=lambda *call: calls.append(call)).valid
    assert [message for message, _, _ in calls] == [
        "training the tokenizer",
        "training the tokenizer",
        "tokenizing valid, characters",
    ]
    assert all(0 <= done <= total for _, done, total in calls)
    long = replace(data, packing=Wrap(length=99999))
    with pytest.raises(InputError, match="fake text, valid split: the text has .* tokens"):
        _ = long.load().valid


def test_reference_end_to_end():
    data = TextData(
        source=PythonReference(), tokenizer=BPE(vocab_size=1024), packing=Wrap(length=128)
    )
    hash(data)
    dataset = data.load()
    assert dataset.vocab.size == 1024
    train = dataset.train.rows.all()
    text = "".join(dataset.tokenizer.decode(row) for row in train.tokens)
    assert text == "".join(PythonReference().documents("train"))
    assert dataset.train.bytes == len(text.encode())
