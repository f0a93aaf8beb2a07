"""Pieces of sources: the same documents, from any position, in bounded memory."""

import gzip
import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from mdlm.data.sources import PythonReference, TextFiles
from mdlm.data.text import files as reading
from mdlm.data.text import hub_stream, hugging_face, utf8
from mdlm.data.text.files import EMPTY, NOT_UTF8, NULL, gather
from mdlm.data.text.hugging_face import HuggingFace
from mdlm.errors import InputError

TEXT = (
    "\ufeffπ one\r\n\n\n\n  \n\n\n\u3000\n\n\ntwo 𝄞𝄞\n\nstill two, long \t"
    + " " * 30
    + "\n\n\n\n\n\nthrée\n\n\n"
)


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def write_parquet(path, values, kind=None):
    table = pyarrow.table({"text": pyarrow.array(values, kind), "n": list(range(len(values)))})
    parquet.write_table(table, path, row_group_size=3)
    return str(path)


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub_stream, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(hub_stream, "STATE_EVERY", 4)
    monkeypatch.setattr(hugging_face, "ROWS", 4)
    monkeypatch.setattr(reading, "BATCH", 2)


def text_files(folder):
    names = [write(folder / "a.txt", TEXT), write(folder / "b.txt.gz", TEXT[1:] + "end")]
    return TextFiles(train=tuple(names), valid=names[1], test=names[0])


def separated(folder):
    names = [write(folder / "a.txt", TEXT), write(folder / "b.txt.gz", TEXT[1:] + "end")]
    return TextFiles(train=tuple(names), valid=names[1], separator="\n\n\n")


def json_lines(folder):
    lines = "".join(json.dumps({"text": t}) + "\n\n" for t in ["a\nb", "", "π" * 99, "é"])
    names = [write(folder / "a.jsonl", lines), write(folder / "b.jsonl.gz", "\ufeff" + lines)]
    return TextFiles(train=tuple(names), valid=names[0])


def parquet_files(folder):
    names = [write_parquet(folder / f"{i}.parquet", [f"{i} {j}π" for j in range(8)]) for i in "ab"]
    return TextFiles(train=tuple(names), valid=names[0])


def held_out(folder):
    return TextFiles(train=write(folder / "a.txt", "line of text\n" * 400))


def hub_rows(n):
    return datasets.Dataset.from_dict({"text": [f"sentence {i} é" for i in range(n)]})


def saved(folder):
    whole = {"train": hub_rows(30), "test": hub_rows(3)}
    datasets.DatasetDict(whole).save_to_disk(str(folder / "set"))
    return HuggingFace(path=str(folder / "set"), held_out_documents=7)


def mapped(folder):
    (folder / "set").mkdir()
    hub_rows(11).to_parquet(str(folder / "set" / "train-0.parquet"))
    hub_rows(9).to_parquet(str(folder / "set" / "train-1.parquet"))
    return HuggingFace(path=str(folder / "set"), valid=None, test=None)


def streamed(folder):
    return HuggingFace(**{**vars(mapped(folder)), "streaming": True})


def reference(folder):
    return PythonReference()


SMALL = [(kind, 7, 5) for kind in (json_lines, parquet_files, held_out, saved, mapped, streamed)]
CASES = [(kind, *sizes) for kind in (text_files, separated) for sizes in ((7, 5), (2, 3), (99, 99))]


@pytest.mark.parametrize(("kind", "piece", "chunk"), [*CASES, *SMALL, (reference, 7, 5)])
def test_pieces_are_the_documents_from_any_position(kind, piece, chunk, tmp_path, monkeypatch):
    source = kind(tmp_path)
    expected = {split: source.documents(split) for split in source.splits}
    monkeypatch.setattr(utf8, "PIECE", piece)
    monkeypatch.setattr(utf8, "CHUNK", chunk)
    for split in source.splits:
        pieces = list(source.pieces(split))
        assert gather(pieces) == expected[split] and pieces[-1].ends
        shares = [p.done for p in pieces if p.done is not None]
        assert shares == sorted(shares) and (not shares or 0.99 < shares[-1] <= 1)
        for k in {0, 1, 2, len(pieces) // 3, len(pieces) // 2, len(pieces) - 2, len(pieces) - 1}:
            if 0 <= k < len(pieces):
                position = json.loads(json.dumps(pieces[k].position))
                rest = [(p.text, p.ends) for p in source.pieces(split, position)]
                assert rest == [(p.text, p.ends) for p in pieces[k + 1 :]], (split, k)


def test_documents_of_a_text_file(tmp_path):
    """Compared with the rule applied to the whole text."""
    source, plain = separated(tmp_path), TEXT.removeprefix("\ufeff")
    parts = [p for t in (plain, plain + "end") for p in t.split("\n\n\n") if p.strip()]
    assert source.documents("train") == parts
    assert len(parts) == 7
    assert json_lines(tmp_path).documents("valid") == ["a\nb", "", "π" * 99, "é"]
    assert parquet_files(tmp_path).documents("valid") == [f"a {j}π" for j in range(8)]


def test_long_documents_come_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(utf8, "PIECE", 100)
    name = write(tmp_path / "a.txt", "é" * 1000)
    pieces = list(TextFiles(train=name, valid=name).pieces("train"))
    assert [len(p.text) for p in pieces] == [100] * 10
    assert [p.ends for p in pieces] == [False] * 9 + [True]


@pytest.mark.parametrize("chunk", [1, 2, 3, 64])
def test_offset_of_invalid_utf8(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(utf8, "CHUNK", chunk)
    for data, offset in ((b"ab\xc3(", 2), (b"abcd\xff", 4), ("\ufeffé".encode() + b"\xe2\x82", 5)):
        for name in ("a.txt", "a.txt.gz"):
            path = write(tmp_path / name, data)
            with pytest.raises(InputError, match=f"byte 0x.. at offset {offset}( |$)"):
                TextFiles(train=path, valid=path).documents("train")


def test_undecodable_documents_are_dropped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(utf8, "PIECE", 4)
    monkeypatch.setattr(utf8, "CHUNK", 3)
    text = b"\xef\xbb\xbfgood one||||b\xffd, and long||good two||also b\xe2\x82||\xf0bad"
    path = write(tmp_path / "a.txt.gz", text)
    source = TextFiles(train=path, valid=path, separator="||", undecodable="drop")
    pieces = list(source.pieces("train"))
    assert gather(pieces) == ["good one", "good two"]
    assert sum(p.dropped.get(NOT_UTF8, 0) for p in pieces) == 3
    for k, piece in enumerate(pieces):
        rest = list(source.pieces("train", piece.position))
        assert [(p.text, p.ends, p.dropped) for p in rest] == [
            (p.text, p.ends, p.dropped) for p in pieces[k + 1 :]
        ]
    cut = TextFiles(train=path, separator="||", undecodable="drop", valid_fraction=0.3)
    assert sum(p.dropped.get(NOT_UTF8, 0) for p in cut.pieces("train")) == 3

    lines = b'{"text": "one"}\n{"text": "b\xff"}\n{"text": "\\ud800"}\n{"text": "two"}\n\xff\n'
    path = write(tmp_path / "a.jsonl", lines)
    source = TextFiles(train=path, valid=path, undecodable="drop")
    pieces = list(source.pieces("train"))
    assert gather(pieces) == ["one", "two"]
    assert [p.dropped.get(NOT_UTF8, 0) for p in pieces] == [0, 2, 1]

    values = pyarrow.array([b"one", b"b\xff", b"two"]).view(pyarrow.string())
    path = write_parquet(tmp_path / "a.parquet", values)
    pieces = list(TextFiles(train=path, valid=path, undecodable="drop").pieces("train"))
    assert gather(pieces) == ["one", "two"] and pieces[1].dropped == {NOT_UTF8: 1}
    with pytest.raises(InputError, match=r"'text' of row 1 is not UTF-8 text: byte 0xff at off"):
        TextFiles(train=path, valid=path).documents("train")


def test_null_texts_are_dropped_and_counted(tmp_path):
    values = ["one", None, "two", None]
    lines = "\n".join(json.dumps({"text": value}) for value in values)
    for path in (
        write(tmp_path / "a.jsonl", lines),
        write_parquet(tmp_path / "a.parquet", values, pyarrow.string()),
    ):
        pieces = list(TextFiles(train=path, valid=path, undecodable="drop").pieces("train"))
        assert gather(pieces) == ["one", "two"]
        assert [p.dropped.get(NULL, 0) for p in pieces] == [0, 1, 1]
        with pytest.raises(InputError, match="'text' is null, not text: .*undecodable='drop'"):
            TextFiles(train=path, valid=path).documents("train")


def test_files_without_text_among_others_are_counted(tmp_path):
    names = [
        write_parquet(tmp_path / "a.parquet", [], pyarrow.string()),
        write_parquet(tmp_path / "b.parquet", ["b"]),
        write(tmp_path / "c.txt", ""),
        write(tmp_path / "d.jsonl", '{"text": "d"}'),
        write(tmp_path / "e.jsonl.gz", ""),
    ]
    source = TextFiles(train=tuple(names), valid=names[1])
    pieces = list(source.pieces("train"))
    assert gather(pieces) == ["b", "d"]
    assert sum(p.dropped.get(EMPTY, 0) for p in pieces) == 3
    for k, piece in enumerate(pieces):
        rest = list(source.pieces("train", piece.position))
        assert [(p.text, p.dropped) for p in rest] == [(p.text, p.dropped) for p in pieces[k + 1 :]]
    with pytest.raises(InputError, match="no text in .*c.txt"):
        TextFiles(train=(names[0], names[2]), valid=names[1]).documents("train")


@pytest.mark.parametrize("chunk", [3, 2**20])
@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_what_follows_packed_data_is_left_out(ending, chunk, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(utf8, "CHUNK", chunk)
    text = '{"text": "one"}\n{"text": "two"}'
    path = tmp_path / f"a.{ending}.gz"
    path.write_bytes(gzip.compress(text[:9].encode()) + gzip.compress(text[9:].encode()))
    whole = TextFiles(train=str(path), valid=str(path)).documents("train")
    assert caplog.messages == [] and len(whole) == (2 if ending == "jsonl" else 1)
    packed = path.read_bytes()
    path.write_bytes(packed + b"\r\n")
    pieces = list(TextFiles(train=str(path), valid=str(path)).pieces("train"))
    assert gather(pieces) == whole
    assert "a." in caplog.text and "what follows the packed data is left out" in caplog.text
    for damaged in (packed[:-1], packed[:-6] + b"x" + packed[-5:], b"\r\n" + packed):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be unpacked"):
            TextFiles(train=str(path), valid=str(path)).documents("train")


def test_parquet_that_cannot_be_read(tmp_path):
    good = write_parquet(tmp_path / "a.parquet", ["a", "b"])
    with pytest.raises(InputError, match="a.parquet: no field 'body', only text, n"):
        TextFiles(train=good, valid=good, text_field="body").documents("train")
    with pytest.raises(InputError, match="'n' of row 0 is int, not text"):
        TextFiles(train=good, valid=good, text_field="n").documents("train")
    broken = write(tmp_path / "b.parquet", (tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match="b.parquet cannot be read: "):
        TextFiles(train=broken, valid=broken).documents("train")
    none = write_parquet(tmp_path / "c.parquet", [], pyarrow.string())
    with pytest.raises(InputError, match="c.parquet is empty"):
        TextFiles(train=none, valid=none).documents("train")


def test_version_changes_with_the_text(tmp_path):
    source = separated(tmp_path)
    before = source.version()
    assert before == separated(tmp_path).version()
    write(tmp_path / "a.txt", TEXT + "more")
    assert source.version() != before
    assert saved(tmp_path).version() == saved(tmp_path).version() != None  # noqa: E711


class Flaky:
    """Rows whose connection is lost at some reads, and that can resume from a state."""

    def __init__(self, plan, error=None):
        self.plan, self.opened = list(plan), 0
        self.error = error or ConnectionResetError("reset by peer")

    def open(self):
        self.opened += 1
        inner = datasets.Dataset.from_dict({"text": [str(i) for i in range(20)]})
        rows = inner.to_iterable_dataset(num_shards=4)
        breaks = self.plan.pop(0) if self.plan else None
        outer = self

        class Broken:
            def load_state_dict(self, state):
                rows.load_state_dict(state)

            def state_dict(self):
                return rows.state_dict()

            def __iter__(self):
                for row in rows:
                    if breaks is not None and int(row["text"]) >= breaks:
                        raise outer.error
                    yield row

        return Broken()


START = {"state": None, "behind": 0, "row": 0}


def test_lost_connection_is_resumed(caplog):
    flaky = Flaky([3, 3, 9, 10, 10])
    found = [(row["text"], at) for row, at in hub_stream.stream(flaky.open, START, "set")]
    assert [text for text, _ in found] == [str(i) for i in range(20)]
    assert flaky.opened == 6
    assert "connection lost after row 3 (reset by peer)" in caplog.text
    for i, (_, position) in enumerate(found):
        rest = hub_stream.stream(Flaky([]).open, json.loads(json.dumps(position)), "set")
        assert [row["text"] for row, _ in rest] == [str(j) for j in range(i + 1, 20)]


def test_connection_that_stays_lost_is_reported_and_can_be_resumed():
    flaky, found = Flaky([6, 6, 6, 6]), []
    with pytest.raises(InputError, match=r"lost after row 6, and 2 attempts .*\(reset by") as e:
        for row, position in hub_stream.stream(flaky.open, START, "set"):
            found.append((row["text"], position))
    assert "\n" not in str(e.value) and flaky.opened == 3
    flaky.plan = []
    rest = [row["text"] for row, _ in hub_stream.stream(flaky.open, found[-1][1], "set")]
    assert [text for text, _ in found] + rest == [str(i) for i in range(20)]


def test_lasting_error_is_reported_at_once():
    flaky = Flaky([6, 6], KeyError("column"))
    with pytest.raises(InputError, match="set cannot be read after row 6: 'column'"):
        list(hub_stream.stream(flaky.open, START, "set"))
    assert flaky.opened == 1
    short = {"state": None, "behind": 21, "row": 21}
    with pytest.raises(InputError, match="ended before row 21"):
        list(hub_stream.stream(Flaky([]).open, short, "set"))


def test_network_errors_are_recognized():
    class ClientPayloadError(Exception):
        pass

    ClientPayloadError.__module__ = "aiohttp.client_exceptions"
    wrapped = RuntimeError("generating failed")
    wrapped.__cause__ = ClientPayloadError("short")
    assert hub_stream.may_pass(wrapped) and hub_stream.may_pass(TimeoutError())
    assert not hub_stream.may_pass(FileNotFoundError()) and not hub_stream.may_pass(ValueError())
    refused = InputError("cannot be read: no route")
    refused.__cause__ = ConnectionError("no route")
    calls = []

    def open_rows():
        calls.append(1)
        if len(calls) < 3:
            raise refused
        return Flaky([]).open()

    assert len(list(hub_stream.stream(open_rows, START, "set"))) == 20


def test_streaming_cannot_hold_out_the_end_of_unknown_length(tmp_path):
    source = HuggingFace(**{**vars(streamed(tmp_path)), "held_out_documents": 3})
    with pytest.raises(InputError, match="does not say how many rows.*streaming=False"):
        source.documents("train")
