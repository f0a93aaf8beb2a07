"""Token stores: the same data as from the text itself, and all damage is detected."""

import json
import os
import tracemalloc
from dataclasses import dataclass, replace
from functools import partial

import fsspec
import numpy as np
import pytest
from store_maker import change_manifest, write_store

from mdlm.data.dataset import TextData
from mdlm.data.mixture import Mixture
from mdlm.data.packing import Pad, Wrap
from mdlm.data.store import shard_files
from mdlm.data.store.manifest import Manifest, Shard, SplitRecord
from mdlm.data.store.reader import Store
from mdlm.data.text.source import Source
from mdlm.data.tokenizers import BPE, Bytes
from mdlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FakeSource(Source):
    """Forty documents in each of two splits, some of them empty."""

    word: str = "mät"

    @property
    def splits(self):
        return ("train", "valid")

    @property
    def name(self):
        return "fake text"

    def _documents(self, split):
        return [f"{split} {i} {self.word}" * (i % 4) for i in range(40)]


DATA = TextData(source=FakeSource(), tokenizer=Bytes(), packing=Wrap(length=16))


def prepared(data, url, **options):
    """Writes the store of some data; returns the data as read from it."""
    tokenizer = data.load().tokenizer
    texts = {split: data.source.documents(split) for split in data.source.splits}
    options = {"eos": tokenizer.vocab.eos_id, "shard_tokens": 100, **options}
    write_store(
        url,
        {split: tokenizer.encode(documents) for split, documents in texts.items()},
        tokenizer,
        source=repr(data.source),
        made_by=repr(data.tokenizer),
        **options,
    )
    return replace(data, store=url)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_files, "PIECE", 64)
    monkeypatch.setattr(shard_files, "WAIT", 0.0)
    return tmp_path / "cache" / "mdlm" / "stores"


@pytest.fixture
def far(tmp_path):
    """A store on another machine."""
    return prepared(DATA, f"memory://{tmp_path.name}")


@pytest.mark.parametrize(
    "packing",
    [
        Wrap(length=16),
        Wrap(length=16, row_specials=False, remainder="drop"),
        Wrap(length=16, eos=False, segments=True),
        Pad(length=16),
        Pad(length=50, specials=False, pad="as_published"),
    ],
)
@pytest.mark.parametrize("where", ["local", "memory"])
def test_data_of_a_store_are_those_of_the_text(packing, where, tmp_path):
    data = replace(DATA, packing=packing)
    url = str(tmp_path / "store") if where == "local" else f"memory://{tmp_path.name}"
    eos = {} if getattr(packing, "eos", True) else {"eos": None}
    stored, plain = prepared(data, url, **eos).load(), data.load()
    assert stored.splits == plain.splits and stored.vocab == plain.vocab
    for split in stored.splits:
        ours, theirs = getattr(stored, split), getattr(plain, split)
        for name, value in vars(theirs.rows.all()).items():
            np.testing.assert_array_equal(vars(ours.rows.all())[name], value)
            assert value is None or value.dtype == vars(ours.rows.all())[name].dtype
        assert (ours.tokens, ours.documents, ours.kept) == (theirs.tokens, 40, theirs.kept)
        assert ours.text_bytes == 400 and ours.text_characters == 360  # as the manifest has them
    counts = stored.counts
    assert counts.sum() == plain.counts.sum() + stored.train.rows.dropped
    assert (counts >= plain.counts).all()
    if not stored.train.rows.dropped:
        np.testing.assert_array_equal(counts, plain.counts)
    assert stored.train.text_fingerprint != stored.valid.text_fingerprint
    assert stored.fingerprint == replace(data, store=url).load().fingerprint


def test_fingerprint_follows_the_shards(tmp_path):
    one = prepared(DATA, str(tmp_path / "one")).load()
    other = prepared(replace(DATA, source=FakeSource(word="mat")), str(tmp_path / "other")).load()
    assert one.fingerprint != other.fingerprint
    assert one.train.text_fingerprint != other.train.text_fingerprint


def test_tokenizer_is_that_of_the_store(tmp_path):
    data = replace(DATA, tokenizer=BPE(vocab_size=280))
    stored = prepared(data, str(tmp_path / "store"))
    first = stored.load(tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer.json").exists()
    assert stored.load(tmp_path / "run").tokenizer.fingerprint == first.tokenizer.fingerprint
    # With another text, the same configuration has other merges.
    replace(data, source=FakeSource(word="other words")).load(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="another tokenizer than the one in .*elsewhere"):
        stored.load(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": BPE(vocab_size=280)}, r"made of Bytes\(\), this experiment has BPE\(vocab"),
        (
            {"source": FakeSource(word="x")},
            r"made of FakeSource\(.*word='mät'\), this experiment has .*FakeSource\(word='x'\)",
        ),
        ({"packing": Wrap(length=16, eos=False)}, r"train split: .*use Wrap\(eos=True\)"),
        (
            {"store": "memory://nowhere"},
            "nowhere is not a token store: make one with: mdlm prepare",
        ),
    ],
)
def test_store_of_other_data_is_refused(changes, message, tmp_path):
    data = replace(prepared(DATA, str(tmp_path / "store")), **changes)
    with pytest.raises(InputError, match=message):
        _ = data.load().train


def test_padded_rows_need_no_eos(tmp_path):
    data = replace(DATA, packing=Pad(length=16))
    stored = prepared(data, str(tmp_path / "store"), eos=None).load()
    np.testing.assert_array_equal(
        stored.train.rows.all().tokens, data.load().train.rows.all().tokens
    )


def edit(url, name, change):
    fs, path = fsspec.core.url_to_fs(url)
    data = change(fs.cat_file(f"{path}/{name}"))
    fs.rm(f"{path}/{name}")
    if data is not None:
        fs.pipe_file(f"{path}/{name}", data)


def other_tokenizer(_):
    return BPE(vocab_size=270).build(["a b"]).backend.to_str().encode()


BIN, ENDS = "train-00001.bin", "train-00001.ends"
DAMAGE = {
    "missing": (BIN, lambda data: None, f"{BIN} is missing: put it back"),
    "truncated": (BIN, lambda data: data[:-1], f"{BIN} is truncated, it has 199 bytes, .* 200"),
    "longer": (BIN, lambda data: data + b"!", f"{BIN} is too large, it has 201 bytes"),
    "no ends": (ENDS, lambda data: None, f"{ENDS} is missing"),
    "short ends": (ENDS, lambda data: data[:-8], f"{ENDS} is truncated"),
    "no manifest": ("manifest.json", lambda data: None, "is not a token store: make one with"),
    "half a manifest": (
        "manifest.json",
        lambda data: data[: len(data) // 2],
        "manifest.json is damaged .*: put it back from a copy, or delete the folder",
    ),
    "an empty manifest": ("manifest.json", lambda data: b"", "manifest.json is damaged"),
    "another's manifest": ("manifest.json", lambda data: b"[]", "manifest.json is damaged"),
    "a bare manifest": (
        "manifest.json",
        lambda data: b"{}",
        "missing required field `format`",
    ),
    "no tokenizer": ("tokenizer.json", lambda data: None, "tokenizer.json is missing"),
    "half a tokenizer": ("tokenizer.json", lambda data: data[:99], "its tokenizer is damaged"),
    "another tokenizer": (
        "tokenizer.json",
        other_tokenizer,
        "tokenizer.json is not the tokenizer of the shards .fingerprint",
    ),
}


@pytest.mark.parametrize("where", ["local", "memory"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_when_a_store_is_opened(damage, where, tmp_path):
    name, change, message = DAMAGE[damage]
    url = str(tmp_path / "store") if where == "local" else f"memory://{tmp_path.name}"
    stored = prepared(DATA, url)
    stored.load()
    edit(url, name, change)
    with pytest.raises(InputError, match=message):
        stored.load()


CHANGES = {
    "newer": (lambda values: values.update(format=2), "format 2, this version reads 1"),
    "a lost field": (lambda values: values.pop("vocab_size"), "damaged .*vocab_size"),
    "a field too many": (lambda values: values.update(more=1), "damaged .*more"),
    "a lost checksum": (
        lambda values: values["splits"]["train"]["shards"][0].pop("sha256"),
        "damaged .*sha256",
    ),
    "splits of another kind": (lambda values: values.update(splits=[]), "damaged"),
    "another type": (
        lambda values: values.update(dtype="int8"),
        "damaged .*'int8' - at `\\$.dtype`",
    ),
    "too many words": (lambda values: values.update(vocab_size=2**17), "does not fit uint16"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_invalid_manifest_is_refused(name, tmp_path):
    stored = prepared(DATA, str(tmp_path / "store"))
    change_manifest(stored.store, CHANGES[name][0])
    with pytest.raises(InputError, match=CHANGES[name][1]):
        stored.load()


def test_missing_or_incomplete_split(tmp_path):
    stored = prepared(DATA, str(tmp_path / "store"))
    with pytest.raises(InputError, match="store has no test split, only train, valid"):
        _ = stored.load().test
    change_manifest(stored.store, lambda values: values["splits"]["valid"].update(complete=False))
    _ = stored.load().train
    with pytest.raises(
        InputError,
        match="valid split is not complete, it has 40 documents so far: resume with: mdlm",
    ):
        _ = stored.load().valid


@dataclass(frozen=True, kw_only=True)
class GoneSource(FakeSource):
    """A text whose splits are named in a file that is no longer there."""

    @property
    def splits(self):
        raise FileNotFoundError("splits.bed")


@dataclass(frozen=True, kw_only=True)
class FarSource(FakeSource):
    """A text on a hub, which opening a store must not ask."""

    is_near = False

    @property
    def splits(self):
        raise AssertionError("asked")


def test_a_store_that_lacks_a_split_of_its_text_is_refused(tmp_path):
    """Else a run would be evaluated on another split, without a word."""
    stored = prepared(DATA, str(tmp_path / "store"))
    change_manifest(stored.store, lambda values: values["splits"].pop("valid"))
    for data in (stored, Mixture(parts=(stored, stored), weights=(1.0, 1.0))):
        with pytest.raises(InputError, match="store: its manifest lacks the valid split: make"):
            data.load()
    for source in (GoneSource(), FarSource()):  # it cannot be known which splits there are
        change_manifest(stored.store, partial(dict.update, source=repr(source)))
        assert replace(stored, source=source).load().splits == ("train",)


def test_counts_that_do_not_match_are_refused(tmp_path):
    stored = prepared(DATA, str(tmp_path / "store"))
    path = tmp_path / "store" / "train-counts.npy"
    np.save(path, np.load(path) + np.eye(len(np.load(path)), dtype=np.int64)[0])
    with pytest.raises(InputError, match="train-counts.npy does not match the shards"):
        _ = stored.load().counts
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="train-counts.npy cannot be read"):
        _ = stored.load().counts


@pytest.mark.parametrize("where", ["local", "memory"])
def test_tokens_outside_the_vocabulary_are_refused(where, tmp_path):
    url = str(tmp_path / "store") if where == "local" else f"memory://{tmp_path.name}"
    stored = prepared(DATA, url)
    edit(url, BIN, lambda data: data[:20] + (60000).to_bytes(2, "little") + data[22:])
    rows = stored.load().train.rows
    rows.take(np.array([0, len(rows) - 1]))  # in other shards
    with pytest.raises(InputError, match=f"{BIN} is damaged, it has token 60000 outside the vocab"):
        rows.all()


def test_pieces_are_fetched_once(far, cache, monkeypatch):
    asked = []
    fs = fsspec.filesystem("memory")
    plain = type(fs).cat_ranges

    def counted(self, paths, starts, ends, **options):
        asked.extend(zip(paths, starts, ends, strict=True))
        return plain(self, paths, starts, ends, **options)

    monkeypatch.setattr(type(fs), "cat_ranges", counted)
    dataset = far.load()
    assert asked == []
    rows = dataset.train.rows
    few = rows.take(np.array([3]))
    assert len(asked) == 1  # 14 tokens of 2 bytes, of a piece of 64
    path, start, end = asked[0]
    assert path.endswith("train-00000.bin") and (start, end) == (64, 128)
    whole = rows.all()
    np.testing.assert_array_equal(whole.tokens[3], few.tokens[0])
    assert len(set(asked)) == len(asked)
    size = sum(shard.tokens for shard in dataset.store.manifest.splits["train"].shards) * 2
    assert sum(end - start for _, start, end in asked) == size
    before = len(asked)
    np.testing.assert_array_equal(far.load().train.rows.all().tokens, whole.tokens)
    assert len(asked) == before  # by another process, too
    for path in cache.rglob("*-of-64"):
        path.write_bytes(
            path.read_bytes()[:5]
        )  # an incomplete piece, as after a full disk or a crash
        break
    np.testing.assert_array_equal(far.load().train.rows.all().tokens, whole.tokens)
    assert len(asked) == before + 1


def test_lost_connection_is_retried(far, monkeypatch):
    fs = fsspec.filesystem("memory")
    plain, calls = type(fs).cat_ranges, []

    def failing(self, paths, starts, ends, **options):
        calls.append(len(paths))
        found = plain(self, paths, starts, ends, **options)
        return [OSError("reset") if len(calls) < 3 and i % 2 else x for i, x in enumerate(found)]

    expected = DATA.load().train.rows.all().tokens
    monkeypatch.setattr(type(fs), "cat_ranges", failing)
    np.testing.assert_array_equal(far.load().train.rows.all().tokens, expected)
    assert calls[0] // 2 == calls[1] and calls[1] // 2 == calls[2]  # fetched pieces were kept


def test_a_connection_that_stays_lost_is_one_line(far, monkeypatch):
    fs, calls = fsspec.filesystem("memory"), []

    def failing(self, paths, starts, ends, **options):
        calls.append(1)
        return [TimeoutError("no answer")] * len(paths)

    rows = far.load().train.rows
    monkeypatch.setattr(type(fs), "cat_ranges", failing)
    with pytest.raises(InputError, match="train-00000.bin cannot be read .TimeoutError: no answer"):
        rows.all()
    assert len(calls) == shard_files.TRIES


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda data: None, "train-00001.bin is missing"), (lambda data: data[:100], "is truncated")],
)
def test_damage_after_opening(far, change, message):
    rows = far.load().train.rows
    edit(far.store, BIN, change)
    with pytest.raises(InputError, match=message):
        rows.all()


def test_local_damage_after_opening(tmp_path):
    stored = prepared(DATA, str(tmp_path / "store"))
    for change in (lambda data: None, lambda data: data[:100]):
        rows = stored.load().train.rows
        (tmp_path / "kept").write_bytes((tmp_path / "store" / BIN).read_bytes())
        edit(stored.store, BIN, change)
        with pytest.raises(InputError, match=f"{BIN} cannot be read"):
            rows.all()
        os.replace(tmp_path / "kept", tmp_path / "store" / BIN)


def test_a_cache_that_cannot_be_written(far, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot write data fetched .*XDG_CACHE_HOME"):
        far.load().train.rows.all()


def test_ends_that_contradict_the_manifest(tmp_path):
    stored = replace(prepared(DATA, str(tmp_path / "store")), packing=Pad(length=16))

    def more_empty(values):
        shard = values["splits"]["train"]["shards"][0]
        shard["empty"] += 1

    change_manifest(stored.store, more_empty)
    with pytest.raises(InputError, match="train-00000.ends has . empty documents where the"):
        stored.load().train.rows.all()


def sparse_store(folder, shards, tokens=10**8, documents=200_000):
    """A store of zeros in sparse files, which take no disk space."""
    folder.mkdir()
    made = []
    for number in range(shards):
        name = f"train-{number:05d}"
        for end, size in (("bin", 2 * tokens), ("ends", 8 * documents)):
            with (folder / f"{name}.{end}").open("wb") as file:
                file.truncate(size)
        made.append(
            Shard(
                name=name,
                tokens=tokens,
                documents=documents,
                empty=0,
                bytes=4 * tokens,
                characters=4 * tokens,
                sha256="0" * 64,
                ends_sha256="0" * 64,
            )
        )
    Manifest(
        source="s",
        revision=None,
        tokenizer="t",
        fingerprint="f",
        vocab_size=50258,
        eos=50256,
        dtype="uint16",
        splits={"train": SplitRecord(shards=tuple(made), complete=True)},
    ).write(str(folder))
    return str(folder)


def row_set(url, packing, vocab):
    return packing.over(Store.open(url).stream("train"), vocab)


def held_by(make):
    """The result of `make`, and the bytes of memory that it holds."""
    tracemalloc.start()
    made = make()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return made, held, peak


@pytest.mark.parametrize("packing", [Wrap(length=1024), Pad(length=1024)])
def test_rows_of_twenty_billion_tokens_cost_as_much_as_few(packing, tmp_path, monkeypatch):
    vocab = replace(Bytes().build([]).vocab, size=50258, mask_id=50257, eos_id=50256)
    small = sparse_store(tmp_path / "small", 2)
    large = sparse_store(tmp_path / "large", 200)
    row_set(small, packing, vocab)  # imports and caches are made once
    few, small_held, _ = held_by(lambda: row_set(small, packing, vocab))
    many, held, peak = held_by(lambda: row_set(large, packing, vocab))
    assert many.stream.total == 20 * 10**9 and len(many) > 99 * len(few)
    # A few kB for each shard; the ends of all documents alone would be 320 MB.
    assert held - small_held < 198 * 4000 and peak < 5e6
    mapped = []
    plain = shard_files.ShardFiles._map
    monkeypatch.setattr(
        shard_files.ShardFiles,
        "_map",
        lambda self, piece: mapped.append(piece[0].name) or plain(self, piece),
    )
    rows = row_set(large, packing, vocab)
    assert len(rows) == len(many) and mapped == []
    assert rows.take(np.array([len(rows) - 1, 0])).tokens.shape == (2, 1024)
    assert len(mapped) == len(set(mapped)) <= 4


def test_rows_at_the_end_of_a_large_store(tmp_path):
    """Positions beyond 32 bits."""
    url = sparse_store(tmp_path / "store", 50)
    last = tmp_path / "store" / "train-00049.bin"
    with last.open("r+b") as file:
        file.seek(2 * (10**8 - 8))
        file.write(np.arange(1, 9, dtype="<u2").tobytes())
    stream = Store.open(url).stream("train")
    found = stream.read(np.array([5 * 10**9 - 8, 5 * 10**9 - 9]), 8)
    assert found.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7]]
    with pytest.raises(IndexError, match="8 tokens from 4999999993 of 5000000000"):
        stream.read(np.array([5 * 10**9 - 7]), 8)


def test_manifest_is_written_atomically(tmp_path):
    manifest = prepared(DATA, str(tmp_path / "store"))
    values = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert values["format"] == 1 and values["source"] == repr(manifest.source)
    assert not [path for path in (tmp_path / "store").iterdir() if path.name.startswith(".")]
    again = Manifest.read(manifest.store)
    assert again is not None and again == Store.open(manifest.store + "/").manifest
