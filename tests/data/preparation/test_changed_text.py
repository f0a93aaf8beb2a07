"""A store knows the text of its shards: another one is not mixed in, nor passed over."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from mdlm.cli import main as cli
from mdlm.data import Bytes, TextData, TextFiles, Wrap
from mdlm.data.preparation.comparing import changed_in
from mdlm.data.preparation.prepare import Prepared, prepare
from mdlm.data.store.manifest import NAME, Manifest, Shard, SplitRecord
from mdlm.data.store.text_digest import TextDigest
from mdlm.data.text.files import Piece
from mdlm.errors import InputError

SHARD = 1500


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for split, words in {"train": (200, 0, 300, 1, 0, 700), "valid": (300, 0)}.items():
        texts = [" ".join(rng.choice(tiny.WORDS, n)) for n in words]
        lines = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts))
        (tmp_path / f"{split}.jsonl").write_text(lines)
    source = TextFiles(train=str(tmp_path / "train.jsonl"), valid=str(tmp_path / "valid.jsonl"))
    return TextData(source=source, tokenizer=Bytes(), packing=Wrap(length=32, row_specials=False))


def made(data, store, shard_tokens=SHARD) -> Prepared:
    last = list(prepare(data, str(store), workers=1, shard_tokens=shard_tokens))[-1]
    assert isinstance(last, Prepared)
    return last


def begun(data, store, shards: int) -> None:
    """A store with some finished shards of its training split."""
    events = prepare(data, str(store), workers=1, shard_tokens=SHARD)
    for _ in events:
        if len(Manifest.read(str(store)).splits["train"].shards) == shards:
            break
    events.close()


def content(store: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in store.iterdir() if p.name != ".lock"}


def edited(path: str, where: float) -> None:
    """Changes a letter of a text without changing its size."""
    text = bytearray(Path(path).read_bytes())
    at = int(len(text) * where)
    while not chr(text[at]).isalpha() or text[at] == ord("x"):
        at += 1
    text[at] = ord("x")
    Path(path).write_bytes(text)


def test_a_text_that_changed_before_the_last_shard_is_refused(data, tmp_path):
    begun(data, tmp_path / "store", 2)
    before, text = content(tmp_path / "store"), Path(data.source.train).read_bytes()
    edited(data.source.train, 0.05)
    with pytest.raises(InputError, match=r"another text of .*differs in train-00000\): restore"):
        made(data, tmp_path / "store")
    assert content(tmp_path / "store") == before
    Path(data.source.train).write_bytes(text)
    made(data, tmp_path / "store")
    made(data, tmp_path / "whole")
    assert content(tmp_path / "store") == content(tmp_path / "whole")


def test_a_text_mended_behind_the_shards_is_resumed(data, tmp_path):
    begun(data, tmp_path / "store", 2)
    edited(data.source.train, 0.9)
    made(data, tmp_path / "store", shard_tokens=SHARD)
    made(data, tmp_path / "whole")
    assert content(tmp_path / "store") == content(tmp_path / "whole")


def test_resumed_with_shards_of_another_size(data, tmp_path):
    begun(data, tmp_path / "store", 2)
    made(data, tmp_path / "store", shard_tokens=400)
    assert made(data, tmp_path / "store").not_compared is None


@pytest.mark.parametrize(("split", "where"), [("train", 0.02), ("train", 0.97), ("valid", 0.5)])
def test_a_complete_store_says_that_its_text_has_changed(data, split, where, tmp_path):
    made(data, tmp_path / "store")
    before = content(tmp_path / "store")
    edited(getattr(data.source, split), where)
    with pytest.raises(
        InputError, match=rf"differs in {split}-0000\d\): delete .* to make it anew"
    ):
        made(data, tmp_path / "store")
    assert content(tmp_path / "store") == before


def test_more_text_is_said_too_and_other_fields_are_not_text(data, tmp_path):
    made(data, tmp_path / "store")
    path = Path(data.source.train)
    text = path.read_text()
    path.write_text(text.replace('"id": 0', '"id": 7'))
    assert made(data, tmp_path / "store").not_compared is None
    path.write_text(text + '{"text": "more"}\n')
    with pytest.raises(InputError, match=r"differs behind train-0000\d\)"):
        made(data, tmp_path / "store")


def test_a_complete_store_is_usable_without_its_text(data, tmp_path):
    made(data, tmp_path / "store")
    Path(data.source.train).unlink()
    found = made(data, tmp_path / "store")
    assert not found.is_new and "file not found" in (found.not_compared or "")
    stored = dataclasses.replace(data, store=str(tmp_path / "store")).load(None)
    assert len(stored.train.rows) > 10


def test_a_store_of_an_older_version_has_no_digests(data, tmp_path):
    begun(data, tmp_path / "store", 2)
    path = tmp_path / "store" / NAME
    values = json.loads(path.read_text())
    for shard in values["splits"]["train"]["shards"]:
        del shard["text_sha256"]
    path.write_text(json.dumps(values))
    assert made(data, tmp_path / "store").is_new
    made(data, tmp_path / "store")


def test_a_manifest_that_lacks_a_split_is_not_complete(data, tmp_path):
    made(data, tmp_path / "store")
    made(data, tmp_path / "whole")
    path = tmp_path / "store" / NAME
    values = json.loads(path.read_text())
    del values["splits"]["valid"]
    path.write_text(json.dumps(values))
    found = made(data, tmp_path / "store")
    assert found.is_new and tuple(found.manifest.splits) == ("train", "valid")
    assert content(tmp_path / "store") == content(tmp_path / "whole")


def test_the_command_says_so(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path / "text.txt")
    (tmp_path / "tiny.py").write_text(tiny.FILE.format(text="text.txt"))
    words = ["prepare", "tiny.py", "--out", "s", "--workers", "1", "--shard-tokens", "3000"]
    assert cli.main(words) == 0
    edited("text.txt", 0.3)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("mdlm: ") == 1 and "mdlm: s was made from another text" in said
    Path("text.txt").unlink()
    assert cli.main(words) == 0
    assert "the text could not be compared with it" in capsys.readouterr().out


def digest(*documents: str, open: bool = False) -> str:
    state = TextDigest()
    for number, text in enumerate(documents, 1):
        state.add(text)
        if number < len(documents) or not open:
            state.end()
    return state.hexdigest()


def shard(number: int, *documents: str, open: bool = False) -> Shard:
    return Shard(
        name=f"train-{number:05d}",
        tokens=0,
        documents=len(documents) - open,
        empty=0,
        bytes=0,
        characters=sum(map(len, documents)),
        sha256="",
        ends_sha256="",
        text_sha256=digest(*documents, open=open),
    )


SHARDS = (shard(0, "", "abc", open=True), shard(1, "def", "", "g"), shard(2, "hi", ""))
DOCUMENTS = ["", "abcdef", "", "g", "hi", ""]


@pytest.mark.parametrize("size", [1, 2, 5, 99])
@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("documents", "where"),
    [
        (DOCUMENTS, None),
        (["", "abcdef", "", "g", "hi", "", ""], "behind train-00002"),
        ([*DOCUMENTS, "more"], "behind train-00002"),
        (["", "abcdef", "", "g", "hi"], "in train-00002"),
        (["abcdef", "", "g", "hi", ""], "in train-00000"),
        (["", "abc", "def", "", "g", "hi", ""], "in train-00001"),
        (["", "abcdef", "g", "", "hi", ""], "in train-00001"),
        (["", "abcdef", "", "g", "hj", ""], "in train-00002"),
        (["", "abcdef", ""], "in train-00001"),
        ([], "in train-00000"),
    ],
)
def test_where_a_text_differs_however_it_comes(documents, where, complete, size):
    pieces = []
    for text in documents:
        parts = [text[i : i + size] for i in range(0, len(text), size)] or [""]
        pieces += [
            Piece(text=part, ends=i + 1 == len(parts), position=None)
            for i, part in enumerate(parts)
        ]
    expected = where if complete or not (where or "").startswith("behind") else None
    assert changed_in(pieces, SplitRecord(shards=SHARDS, complete=complete)) == expected
