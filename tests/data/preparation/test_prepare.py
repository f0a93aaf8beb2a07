"""Token stores: their contents, which depend on the text alone, and what is refused."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tiny

from mdlm.cli.prepare import closing_words
from mdlm.config.component_text import to_text
from mdlm.data.dataset import TextData
from mdlm.data.packing import Wrap
from mdlm.data.preparation.pool import Pool
from mdlm.data.preparation.prepare import Prepared, Progressed, prepare, training_text
from mdlm.data.preparation.worker import Setting
from mdlm.data.sources import TextFiles
from mdlm.data.store import writer
from mdlm.data.store.manifest import Manifest
from mdlm.data.text.chunks import Chunk, Encoded
from mdlm.data.tokenizers import BPE, Bytes, Characters, Pretrained, WordPiece
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError

SHARD = 2000


@pytest.fixture
def source(tmp_path):
    """Three splits of a few documents, empty ones among them, as `.jsonl` and `.txt`."""
    rng = np.random.default_rng(0)
    sizes = {"train": (400, 0, 1, 0, 0, 900, 30), "valid": (50, 0), "test": (200,)}
    for split, words in sizes.items():
        texts = [" ".join(rng.choice(tiny.WORDS, n)) + " é\n" * (n > 0) for n in words]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    names = {split: str(tmp_path / f"{split}.jsonl") for split in sizes}
    return TextFiles(**names)


def data_of(source, tokenizer=None, **changes):
    packing = Wrap(length=32, row_specials=False)
    return TextData(source=source, tokenizer=tokenizer or Bytes(), packing=packing, **changes)


def made(data, url, workers=1, shard_tokens=SHARD) -> Prepared:
    last = list(prepare(data, str(url), workers=workers, shard_tokens=shard_tokens))[-1]
    assert isinstance(last, Prepared)
    return last


def content(url) -> dict[str, bytes]:
    """All files of a store; the manifest without its source."""
    fs, path = fsspec.core.url_to_fs(str(url))
    found = {name.rsplit("/", 1)[-1]: fs.cat_file(name) for name in fs.ls(path, detail=False)}
    return {name: data for name, data in found.items() if name != ".lock"}


def stream_of(url, split) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and ends of a split, read from the files alone."""
    manifest, files = Manifest.read(str(url)), content(url)
    tokens, ends, before = [], [], 0
    for shard in manifest.splits[split].shards:
        tokens.append(np.frombuffer(files[f"{shard.name}.bin"], "<u2"))
        ends.append(np.frombuffer(files[f"{shard.name}.ends"], "<u8").astype(np.int64) + before)
        before += shard.tokens
    return np.concatenate(tokens), np.concatenate(ends)


def test_unknown_tokens_are_counted(source, tmp_path):
    data = data_of(source, WordPiece(vocab_size=100))
    prepared = made(data, tmp_path / "store")
    tokens, _ = stream_of(tmp_path / "store", "train")
    assert prepared.unknown["train"] == (tokens == 4).sum()
    words = tmp_path / "words.txt"
    words.write_text("the \u2603 fox")
    known = Pretrained(name=str(tmp_path / "store"))
    alone = TextFiles(train=str(words), valid_fraction=0, test_fraction=0)
    found = made(data_of(alone, known), tmp_path / "other")
    assert found.unknown == {"train": 1}
    assert "25.00% of the tokens are unknown" in closing_words(found, "other", 1.0)
    assert made(data_of(source), tmp_path / "bytes").unknown == {}


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_held_out_file_among_the_training_files_is_refused(split, tmp_path, monkeypatch):
    for name in ("part-a.txt", "part-b.txt"):
        tiny.write_text(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    source = TextFiles(train="part-*.txt", **{split: str(tmp_path / "part-b.txt")})
    data = data_of(source)
    for work in (lambda: made(data, tmp_path / "store"), lambda: data.load().train):
        with pytest.raises(InputError, match=f"part-b.txt is a file of the {split} split and also"):
            work()
    assert not (tmp_path / "store").exists()
    assert getattr(data.load(), split).documents == 1


def test_text_without_tokens_is_one_line(tmp_path):
    import tokenizers

    vocab = {"[EOS]": 0, "[PAD]": 1, "[BOS]": 2, "the": 3}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab=vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[EOS]", "[PAD]", "[BOS]"])
    backend.save(str(tmp_path / "words.json"))
    (tmp_path / "text.txt").write_text("the the fox")
    source = TextFiles(train=str(tmp_path / "text.txt"), valid_fraction=0, test_fraction=0)
    data = data_of(source, Pretrained(name=str(tmp_path / "words.json")))
    for work in (lambda: made(data, tmp_path / "store"), lambda: data.load().train):
        with pytest.raises(InputError, match="word 'fox' has no token.*character 8 of"):
            work()


@pytest.mark.parametrize("config", [Bytes(), BPE(vocab_size=300), Characters()])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_store_holds_the_documents(config, where, source, tmp_path):
    url = tmp_path / "store" if where == "local" else f"memory://{tmp_path.name}"
    data = data_of(source, config)
    prepared = made(data, url, workers=2)
    assert prepared.is_new
    found = {split: r.total("empty") for split, r in prepared.manifest.splits.items()}
    assert found == {"train": 3, "valid": 1, "test": 0}
    manifest = Manifest.read(str(url))
    assert manifest == prepared.manifest
    assert manifest.source == to_text(source) and manifest.tokenizer == to_text(config)
    tokenizer = data.load().tokenizer
    assert manifest.fingerprint == tokenizer.fingerprint and manifest.dtype == "uint16"
    for split in source.splits:
        documents = source.documents(split)
        encoded = [[*ids, tokenizer.vocab.eos_id] for ids in tokenizer.encode(documents)]
        tokens, ends = stream_of(url, split)
        assert tokens.tolist() == sum(encoded, [])
        assert ends.tolist() == np.cumsum([len(ids) for ids in encoded]).tolist()
        record = manifest.splits[split]
        assert record.complete and record.dropped == {}
        assert record.total("documents") == len(documents)
        assert record.total("bytes") == sum(len(text.encode()) for text in documents)
        assert record.total("characters") == sum(map(len, documents))
        files = content(url)
        counts = np.load(fsspec.open(f"{url}/{split}-counts.npy").open())
        assert counts.tolist() == np.bincount(tokens, minlength=manifest.vocab_size).tolist()
        assert not any(name.endswith(".part") for name in files)
    assert len(manifest.splits["train"].shards) > 1
    if where == "local":
        assert Tokenizer.load(url).fingerprint == manifest.fingerprint


def test_a_store_without_eos(source, tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Joined(Wrap):
        eos: bool = False

    data = dataclasses.replace(data_of(source), packing=Joined(length=32, row_specials=False))
    prepared = made(data, tmp_path / "store")
    tokens, ends = stream_of(tmp_path / "store", "train")
    documents = source.documents("train")
    assert bytes(tokens.astype(np.uint8)).decode() == "".join(documents)
    assert ends.tolist() == np.cumsum([len(text.encode()) for text in documents]).tolist()
    assert prepared.manifest.eos is None and prepared.manifest.splits["train"].total("empty") == 3
    with pytest.raises(InputError, match="has no EOS after each document, .* asks for EOS 257"):
        made(data_of(source), tmp_path / "store")


def test_document_ending_in_next_chunk_is_not_empty(source, tmp_path):
    tally = writer.Tally(counts=np.zeros(4, np.int64))

    def add(tokens, ends):
        kind = {"tokens": np.array(tokens, np.uint16), "ends": np.array(ends, np.int64)}
        return tally.add(Encoded(**kind, bytes=0), 3)

    # Of the fourth document, begun in the first chunk, the second has only the EOS.
    assert [add([1, 3, 3, 3, 2], [2, 3, 4]), add([3, 3], [1, 2]), add([0], [])] == [2, 1, 0]
    assert tally.counts.tolist() == [1, 1, 1, 5] and tally.since == 1

    store = tmp_path / "store"
    begun(data_of(source), store, 1)
    assert Manifest.read(str(store)).splits["train"].shards[0].documents == 0
    begun(data_of(source), store, 3)
    assert Manifest.read(str(store)).splits["train"].shards[2].documents == 0
    tokens, ends = stream_of(store, "train")
    read = writer.verify(writer.Folder(str(store)), Manifest.read(str(store)), "train")
    assert len(ends) and read.since == len(tokens) - ends[-1] > 2000
    assert read.counts.tolist() == np.bincount(tokens, minlength=260).tolist()


def test_rows_of_a_store_are_those_of_memory(source, tmp_path):
    data = data_of(source, BPE(vocab_size=300))
    made(data, tmp_path / "store", shard_tokens=300)
    there, here = dataclasses.replace(data, store=str(tmp_path / "store")).load(), data.load()
    assert there.tokenizer.fingerprint == here.tokenizer.fingerprint
    for split in source.splits:
        mine, other = getattr(there, split), getattr(here, split)
        for name in ("tokens", "loss_mask", "is_valid"):
            assert np.array_equal(getattr(mine.rows.all(), name), getattr(other.rows.all(), name))
        assert (mine.documents, mine.bytes, mine.characters) == (
            other.documents, other.bytes, other.characters,
        )  # fmt: skip


def test_bos_replaces_missing_eos(source):
    vocab = Bytes().build([]).vocab
    assert Wrap(length=8).separator(vocab) == vocab.eos_id
    assert Wrap(length=8).separator(dataclasses.replace(vocab, eos_id=None)) == vocab.bos_id


def test_workers_and_interruptions_change_nothing(source, tmp_path):
    data = data_of(source, BPE(vocab_size=300))
    made(data, tmp_path / "whole", shard_tokens=300)
    expected = content(tmp_path / "whole")
    made(data, tmp_path / "three", workers=3, shard_tokens=300)
    assert content(tmp_path / "three") == expected
    rng, store, starts = np.random.default_rng(0), tmp_path / "stopped", 0
    while True:
        kept = {p.name: p.stat().st_mtime_ns for p in store.glob("*.bin")} if store.exists() else {}
        events = prepare(data, str(store), workers=int(rng.integers(1, 3)), shard_tokens=300)
        for _ in range(int(rng.integers(1, 9))):
            event = next(events, None)
        events.close()
        starts += 1
        assert not list(store.glob(".*.part"))
        assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in store.glob("*.bin")}.items()
        if event is None or isinstance(event, Prepared):
            break
    assert starts > 3
    assert content(store) == expected


def test_complete_store_is_verified_and_not_changed(source, tmp_path):
    data, store = data_of(source), tmp_path / "store"
    first = made(data, store)
    before = {p.name: p.stat().st_mtime_ns for p in store.iterdir() if p.name != ".lock"}
    Path(source.train).unlink()  # the text is no longer needed
    again = made(data, store)
    assert not again.is_new and again.manifest == first.manifest
    assert before == {p.name: p.stat().st_mtime_ns for p in store.iterdir() if p.name != ".lock"}


def begun(data, store, shards=2) -> None:
    """A store with some finished shards, the rest missing."""
    events = prepare(data, str(store), workers=1, shard_tokens=SHARD)
    for _ in events:
        if len(Manifest.read(str(store)).splits["train"].shards) == shards:
            break
    events.close()


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("train-00000.bin", "flip", "train-00000.bin has another checksum than the manifest"),
        ("train-00001.ends", "flip", "train-00001.ends has another checksum"),
        (
            "train-00000.bin",
            "shorten",
            r"train-00000.bin has [\d,]+ bytes, the manifest has [\d,]+",
        ),
        ("train-00001.bin", "remove", "train-00001.bin is missing"),
        ("train-00001.ends", "remove", "train-00001.ends is missing"),
        ("train-00000.bin", "outside", "has token 65535, outside the vocabulary of 260"),
        ("manifest.json", "shorten", "manifest.json is damaged"),
        ("tokenizer.json", "shorten", "its tokenizer cannot be read"),
        ("tokenizer.json", "other", "its tokenizer is not the one of its tokens"),
    ],
)
def test_damaged_file_is_named_and_nothing_written(complete, name, harm, message, source, tmp_path):
    data, store = data_of(source), tmp_path / "store"
    begun(data, store, 2) if not complete else made(data, store)
    path = store / name
    whole = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        changed = {
            "flip": bytes([whole[0] ^ 1]) + whole[1:] if whole else b"12345678",
            "shorten": whole[:-3],
            "outside": b"\xff\xff" + whole[2:],
            "other": whole.replace(b'"Z":90', b'"Z":0').replace(b'"Z": 90', b'"Z": 0'),
        }[harm]
        assert changed != whole
        path.write_bytes(changed)
    before = content(store)
    with pytest.raises(InputError, match=message) as raised:
        made(data, store)
    assert "\n" not in str(raised.value)
    assert content(store) == before
    path.write_bytes(whole)
    made(data, store)
    made(data, tmp_path / "whole")
    assert content(store) == content(tmp_path / "whole")


def test_unfinished_files_of_an_interrupted_writer_are_removed(source, tmp_path):
    data, store = data_of(source), tmp_path / "store"
    begun(data, store, 1)
    (store / ".manifest.json").write_text('{"format": 1, "sour')  # half-written, not renamed yet
    (store / ".train-00009.bin.part").write_bytes(b"half a shard")
    (store / "train-00001.bin").write_bytes(b"in place, but not in the manifest")
    made(data, store)
    made(data, tmp_path / "whole")
    files = content(store)
    assert not any(name.startswith(".train") for name in files)
    files.pop(".manifest.json", None)
    assert files == content(tmp_path / "whole")


def test_another_source_or_tokenizer_is_refused(source, tmp_path):
    data, store = data_of(source, BPE(vocab_size=300)), tmp_path / "store"
    made(data, store)
    before = content(store)
    with pytest.raises(InputError, match=r"tokenizer BPE\(vocab_size=300\), .* has Bytes\(\)"):
        made(data_of(source), store)
    with pytest.raises(InputError, match="was made from TextFiles.*, this experiment has"):
        other = dataclasses.replace(source, text_field="body")
        made(data_of(other, BPE(vocab_size=300)), store)
    with pytest.raises(InputError, match="has .* and no manifest.json, so it is not a token store"):
        made(data, tmp_path)
    assert content(store) == before


def test_changed_source_is_refused(source, tmp_path):
    data, store = data_of(source), tmp_path / "store"
    begun(data, store)
    before, text = content(store), Path(source.train).read_bytes()
    Path(source.train).write_bytes(text + b'{"text": "more"}\n')
    with pytest.raises(InputError, match="was begun with another version of text files"):
        made(data, store)
    assert content(store) == before
    Path(source.train).write_bytes(text)
    made(data, store)


def test_text_that_cannot_be_encoded_is_refused(source, tmp_path):
    Path(source.test).write_text('{"text": "Ω"}\n')
    data, store = data_of(source, Characters()), tmp_path / "store"
    with pytest.raises(
        InputError, match=r"character 'Ω' \(U\+03A9\) is not in the tokenizer's alphabet"
    ):
        made(data, store)
    shutil.rmtree(store)
    file = tmp_path / "t.json"
    backend = BPE(vocab_size=300).build(source.documents("train")).backend
    backend.save(str(file))
    data = data_of(source, Pretrained(name=str(file), mask="a"))
    with pytest.raises(InputError, match="mask='a' is a piece of text of"):
        made(data, store)


def test_preparing_resumes_after_invalid_text(source, tmp_path):
    data, store = data_of(source), tmp_path / "store"
    good = Path(source.train).read_bytes()
    Path(source.train).write_bytes(good[:-40] + b"\xff" + good[-39:])
    with pytest.raises(InputError, match="train.jsonl is not UTF-8 text: byte 0xff at offset"):
        made(data, store)
    assert len(Manifest.read(str(store)).splits["train"].shards) == 3
    Path(source.train).write_bytes(good)
    made(data, store)
    made(data, tmp_path / "whole")
    assert content(store) == content(tmp_path / "whole")


def test_dropped_documents_are_counted_once(source, tmp_path):
    """Also between shards and at the very end, interrupted or not."""
    lines = Path(source.train).read_bytes().split(b"\n")[:-1]
    bad = b'{"text": "\xff"}'
    Path(source.train).write_bytes(b"\n".join(part for line in lines for part in (bad, line, bad)))
    source = dataclasses.replace(source, undecodable="drop")
    data = data_of(source)
    whole = made(data, tmp_path / "whole").manifest
    assert whole.splits["train"].dropped == {"not UTF-8": 14}
    for shards_done in (1, 2):
        begun(data, tmp_path / f"store{shards_done}", shards_done)
        found = made(data, tmp_path / f"store{shards_done}").manifest
        assert found == whole


def test_full_disk_is_one_line_and_can_be_resumed(source, tmp_path, monkeypatch):
    data, store = data_of(source), tmp_path / "store"
    begun(data, store, 1)

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer.ShardWriter, "finish", full)
        with pytest.raises(InputError, match="No space left on device: finished shards stay"):
            made(data, store)
    made(data, store)
    made(data, tmp_path / "whole")
    assert content(store) == content(tmp_path / "whole")


def test_unreachable_store_is_one_line(source, tmp_path, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    class ClientPayloadError(Exception):
        pass

    ClientPayloadError.__module__ = "aiohttp.client_exceptions"
    data, url = data_of(source), f"memory://{tmp_path.name}-far"
    put, calls = MemoryFileSystem.put_file, []

    def flaky(self, *words, **more):
        calls.append(words)
        if len(calls) > 4:
            raise ClientPayloadError("connection closed\nsomewhere")
        return put(self, *words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", flaky)
        with pytest.raises(InputError, match="cannot be used: connection closed: finished sh"):
            made(data, url)
    assert len(Manifest.read(url).splits["train"].shards) == 2
    made(data, url)
    made(data, tmp_path / "whole")
    assert content(url) == content(tmp_path / "whole")


@pytest.mark.parametrize("lost", [1, 9])
def test_lost_stream_can_be_resumed(lost, tmp_path, monkeypatch):
    """Rows come from a real streamed data set whose connection is lost `lost` times in a row."""
    import datasets

    from mdlm.data.text import hub_stream
    from mdlm.data.text.hugging_face import HuggingFace

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub_stream, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(hub_stream, "STATE_EVERY", 3)
    (tmp_path / "set").mkdir()
    texts = [f"sentence {i} " * 20 for i in range(40)]
    for i in (0, 1):
        rows = datasets.Dataset.from_dict({"text": texts[i::2]})
        rows.to_parquet(str(tmp_path / "set" / f"train-{i}.parquet"))
    source = HuggingFace(path=str(tmp_path / "set"), valid=None, test=None, streaming=True)
    data, store, left = data_of(source), tmp_path / "store", [lost]
    iterate = datasets.IterableDataset.__iter__

    def breaking(self):
        for row in iterate(self):
            if left[0] and row["text"].startswith("sentence 11 "):
                left[0] -= 1
                raise ConnectionResetError("reset by peer")
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(datasets.IterableDataset, "__iter__", breaking)
        if lost > 2:
            with pytest.raises(InputError, match="connection lost after row 25, and 2 attempts"):
                made(data, store)
            assert len(Manifest.read(str(store)).splits["train"].shards) > 1
            left[0] = 0
        made(data, store)
    made(data, tmp_path / "whole")
    found, whole = content(store), content(tmp_path / "whole")
    # The library may describe the position of a stream in several ways.
    records = [json.loads(files.pop("manifest.json"))["splits"] for files in (found, whole)]
    assert found == whole and records[0]["train"]["shards"] == records[1]["train"]["shards"]
    tokens, _ = stream_of(store, "train")
    expected = [text for part in (texts[0::2], texts[1::2]) for text in part]
    assert bytes(tokens[tokens < 256].astype(np.uint8)).decode() == "".join(expected)


def test_workers_import_no_jax():
    import subprocess
    import sys

    words = (
        "import sys, mdlm.data.preparation.worker as w;"
        " print(sorted(m for m in sys.modules if m == 'jax'))"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_second_writer_is_refused(source, tmp_path):
    data = data_of(source)
    events = prepare(data, str(tmp_path / "store"), workers=1, shard_tokens=SHARD)
    assert isinstance(next(events), Progressed)
    with pytest.raises(InputError, match=r"being prepared by another process \(process \d+ on "):
        made(data, tmp_path / "store")
    events.close()


def test_dead_worker_is_reported(source, tmp_path, monkeypatch):
    from mdlm.data.preparation import pool

    events = prepare(data_of(source), str(tmp_path / "store"), workers=1, shard_tokens=200)
    started = []
    real = pool.subprocess.Popen

    def popen(*words, **more):
        started.append(real(*words, **more))
        return started[-1]

    monkeypatch.setattr(pool.subprocess, "Popen", popen)
    next(events)
    started[0].kill()
    with pytest.raises(InputError, match=r"tokenizes ended \(signal 9\): if memory ran out"):
        list(events)


def test_chunks_before_an_error_come_first(source):
    tokenizer = Bytes().build([])
    setting = Setting(tokenizer=tokenizer.files(), eos=None, dtype="<u2")

    def found():
        for text in ("a", "b"):
            yield Chunk(texts=(text,), open=False, position=None)
        raise InputError("lost")

    answers = []
    with Pool(1, setting) as pool, pytest.raises(InputError, match="lost"):
        for chunk, encoded in pool.encode(found()):
            answers.append((chunk.texts, encoded.tokens.tolist()))
    assert answers == [(("a",), [97]), (("b",), [98])]


def test_settings_are_checked(source, tmp_path):
    for name, value in (("workers", 0), ("shard_tokens", 0)):
        with pytest.raises(InputError, match=f"{name}=0"):
            list(prepare(data_of(source), str(tmp_path / "store"), **{name: value}))
    assert not (tmp_path / "store").exists()


def test_training_text_in_chunks_gives_the_same_tokenizer(source, monkeypatch):
    from mdlm.data.preparation import prepare as module

    monkeypatch.setattr(module, "TRAINING_CHUNK", 50)
    parts = list(training_text(source))
    assert len(parts) > 50
    assert "".join(parts) == "".join(source.documents("train"))
    config = BPE(vocab_size=350)
    built = config.build(training_text(source))
    assert built.fingerprint == config.build(source.documents("train")).fingerprint
