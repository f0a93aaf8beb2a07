"""Sources: the documents read, the held-out text, and error messages."""

import gzip
import json
from dataclasses import replace

import datasets
import pytest

from mdlm.data.sources import PythonReference, TextFiles, other_files
from mdlm.data.text.cleaning import PTB
from mdlm.data.text.hugging_face import HuggingFace
from mdlm.data.text.splits import quoting_groups
from mdlm.errors import InputError


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def lines(n, start=0):
    return "".join(f"line number {i}\n" for i in range(start, start + n))


@pytest.mark.parametrize("ending", ["txt", "txt.gz"])
def test_text_file_is_one_document(tmp_path, ending):
    name = write(tmp_path / f"a.{ending}", "\ufeffπ one\r\n\n\n\ntwo\n")
    source = TextFiles(train=name, valid=name, test=name)
    assert source.documents("train") == ["π one\r\n\n\n\ntwo\n"]
    assert source.splits == ("train", "valid", "test")


def test_separator_splits_documents(tmp_path):
    name = write(tmp_path / "a.txt", "one\n\n\ntwo\n\nstill two\n\n\n\n\n\nthree\n")
    source = TextFiles(train=name, valid=name, separator="\n\n\n")
    assert source.documents("train") == ["one", "two\n\nstill two", "three\n"]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_json_lines(tmp_path, ending):
    entries = [{"text": "a\nb\u2028c"}, {"text": ""}, {"text": "é", "more": 1}]
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n\n" for entry in entries)
    name = write(tmp_path / f"a.{ending}", text)
    assert TextFiles(train=name, valid=name).documents("train") == ["a\nb\u2028c", "", "é"]
    with pytest.raises(InputError, match=rf"a.{ending}:1: no field 'body', only text"):
        TextFiles(train=name, valid=name, text_field="body").documents("train")


def test_patterns_and_several_files(tmp_path):
    for letter in "cab":
        write(tmp_path / f"{letter}.txt", letter)
    other = write(tmp_path / "z[1].txt", "literal")
    source = TextFiles(train=(str(tmp_path / "?.txt"), other), valid=other)
    assert source.documents("train") == ["a", "b", "c", "literal"]
    assert source.splits == ("train", "valid")
    with pytest.raises(InputError, match="no test split, only train, valid"):
        source.documents("test")
    with pytest.raises(ValueError, match="'dev': must be one of"):
        source.documents("dev")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.txt", None, "file not found: .*no.txt"),
        ("no*.txt", None, r"no file matches .*no\*.txt"),
        ("a.txt", "", "a.txt is empty"),
        ("a.jsonl", "\n\n", "no text in .*a.jsonl"),
        ("a.txt", b"abc\xff", "a.txt is not UTF-8 text: byte 0xff at offset 3$"),
        ("a.txt.gz", b"ab\xc3(", "byte 0xc3 at offset 2 of the unpacked data"),
        ("a.csv", "a", "a.csv: unknown ending: must be .txt, .jsonl"),
        ("a.jsonl", '{"text": "a"}\n{"text"', "a.jsonl:2: not JSON: .* at column"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: list, must be a JSON object"),
        ("a.jsonl", '{"text": 1}\n', "a.jsonl:1: 'text' is int, not text"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "a.jsonl:1: 'text' has half a surrogate"),
    ],
)
def test_unreadable_file_is_named(tmp_path, name, content, message):
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as raised:
        TextFiles(train=str(tmp_path / name)).documents("train")
    assert "\n" not in str(raised.value)


def test_broken_gzip_and_folder(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(b"plain text")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"text" * 99)[:-9])
    for name in ("a.txt.gz", "b.txt.gz"):
        with pytest.raises(InputError, match=f"{name} cannot be unpacked"):
            TextFiles(train=str(tmp_path / name)).documents("train")
    with pytest.raises(InputError, match="is a folder: name its files"):
        TextFiles(train=str(tmp_path)).documents("train")


def test_many_documents_are_held_out_whole(tmp_path):
    name = write(tmp_path / "a.txt", "|".join(f"d{i}" for i in range(40)))
    source = TextFiles(train=name, separator="|", valid_fraction=0.1, test_fraction=0.05)
    assert source.documents("train") == [f"d{i}" for i in range(34)]
    assert source.documents("valid") == ["d34", "d35", "d36", "d37"]
    assert source.documents("test") == ["d38", "d39"]


@pytest.mark.parametrize("separator", [None, "line number 500\n"])
def test_a_long_text_is_cut_at_line_ends(tmp_path, separator):
    text = lines(2000)
    name = write(tmp_path / "a.txt", text)
    source = TextFiles(train=name, separator=separator)
    parts = {split: source.documents(split) for split in source.splits}
    joined = "".join(part for documents in parts.values() for part in documents)
    assert joined == text.replace(separator or "~", "")
    for split in ("valid", "test"):
        size = sum(map(len, parts[split]))
        assert abs(size - 0.05 * len(joined)) < 20
        assert parts[split][0].startswith("line number") and parts[split][-1].endswith("\n")


def test_a_text_of_one_line_is_cut_exactly(tmp_path):
    name = write(tmp_path / "a.txt", "abcdefghij" * 1000)
    source = TextFiles(train=name)
    assert [len(source.documents(split)[0]) for split in source.splits] == [9000, 500, 500]


def test_held_out_follows_the_files_that_are_named(tmp_path):
    name = write(tmp_path / "a.txt", lines(1000))
    assert TextFiles(train=name, valid=name).documents("train") == [lines(1000)]
    only_test = TextFiles(train=name, test=name)
    assert only_test.splits == ("train", "valid", "test")
    assert only_test.documents("train")[0] + only_test.documents("valid")[0] == lines(1000)
    nothing = TextFiles(train=name, valid_fraction=0, test_fraction=0)
    assert nothing.splits == ("train",)
    tiny = write(tmp_path / "b.txt", "abc")
    with pytest.raises(InputError, match="too little text to hold out a valid split"):
        TextFiles(train=tiny).documents("valid")


def test_settings_are_checked():
    with pytest.raises(ValueError, match="sum must be below 1"):
        TextFiles(train="a.txt", valid_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValueError, match="train is empty"):
        TextFiles(train=())
    with pytest.raises(ValueError, match="separator is empty"):
        TextFiles(train="a.txt", separator="")
    with pytest.raises(ValueError, match="held_out_documents=-1"):
        HuggingFace(path="x", held_out_documents=-1)
    assert hash(TextFiles(train=("a.txt",))) == hash(TextFiles(train=("a.txt",)))


def sentences(n):
    features = datasets.Features({"text": datasets.Value("string")})
    return datasets.Dataset.from_dict({"text": [f"sentence {i} ." for i in range(n)]}, features)


@pytest.fixture(params=["saved", "parquet", "json"])
def stored(request, tmp_path):
    """A data set with LM1B's features and splits (train and test), stored in one of three ways."""
    whole = datasets.DatasetDict({"train": sentences(30), "test": sentences(3)})
    folder = tmp_path / "set"
    if request.param == "saved":
        whole.save_to_disk(folder)
    else:
        folder.mkdir()
        for split, rows in whole.items():
            name = str(folder / f"{split}.{request.param}")
            getattr(rows, f"to_{request.param}")(name)
    return str(folder)


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_hub_format(stored):
    source = HuggingFace(path=stored, valid="test")
    assert source.splits == ("train", "valid", "test")
    assert len(source.documents("train")) == 30
    assert source.documents("valid") == ["sentence 0 .", "sentence 1 .", "sentence 2 ."]
    assert HuggingFace(path=stored).splits == ("train", "test")
    with pytest.raises(InputError, match="no valid split, only train, test"):
        HuggingFace(path=stored).documents("valid")
    with pytest.raises(InputError, match="no field 'body', only text"):
        HuggingFace(path=stored, text_field="body").documents("train")


def test_last_documents_of_train_are_valid(stored):
    source = HuggingFace(path=stored, test=None, held_out_documents=4)
    assert source.splits == ("train", "valid")
    assert source.documents("train") == sentences(30)["text"][:26]
    assert source.documents("valid") == sentences(30)["text"][26:]
    with pytest.raises(InputError, match="held_out_documents=30 of 30 documents leaves none"):
        HuggingFace(path=stored, held_out_documents=30).documents("train")


def test_single_saved_split(tmp_path):
    sentences(5).save_to_disk(tmp_path / "one")
    source = HuggingFace(path=str(tmp_path / "one"), held_out_documents=1)
    assert source.splits == ("train", "valid")
    assert source.documents("valid") == ["sentence 4 ."]


def test_hub_errors_are_one_line(tmp_path):
    for path in ("nobody/has-this-data-set", str(tmp_path / "missing")):
        with pytest.raises(InputError, match="cannot be read: ") as raised:
            HuggingFace(path=path).documents("train")
        assert "\n" not in str(raised.value)
    labels = datasets.Dataset.from_dict({"text": [1, 2]})
    labels.save_to_disk(tmp_path / "labels")
    with pytest.raises(InputError, match="'text' of train row 0 is int, not text"):
        HuggingFace(path=str(tmp_path / "labels")).documents("train")


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25])
def test_reference_splits(share):
    from pydoc_data.topics import topics

    source = PythonReference(valid_fraction=share, test_fraction=share)
    parts = {split: source.documents(split) for split in source.splits}
    assert sorted(sum(parts.values(), [])) == sorted(topics.values())
    total = sum(map(len, topics.values()))
    for split in ("valid", "test"):
        sizes = [len(text) for text in parts[split]]
        assert abs(sum(sizes) / total - share) < 0.005
        assert len(sizes) >= 8 and max(sizes) < share * total / 2
    assert {topics["specialnames"], topics["compound"]} <= set(parts["train"])
    assert source.name.startswith("language reference of Python 3.")


def test_reference_splits_share_no_passage():
    source = PythonReference()
    passages = {}
    for split in source.splits:
        words = [text.split() for text in source.documents(split)]
        passages[split] = {tuple(t[i : i + 12]) for t in words for i in range(len(t) - 11)}
    assert not passages["valid"] & passages["train"]
    assert not passages["test"] & passages["train"]
    assert not passages["test"] & passages["valid"]


def test_quoting_is_transitive():
    topics = {"a": "1 2 3", "b": "0 2 3 4", "c": "3 4 5", "d": "5 6", "e": "6"}
    assert quoting_groups(topics, words=2) == [("a", "b", "c"), ("d",), ("e",)]


@pytest.mark.parametrize("typed", ["\n\n\n", "\\n\\n\\n"])
def test_a_separator_may_be_typed_with_backslashes(typed, tmp_path):
    name = write(tmp_path / "a.txt", "one\n\n\ntwo")
    source = TextFiles(train=name, valid=name, separator=typed)
    assert source.documents("train") == ["one", "two"]
    assert source == TextFiles(train=name, valid=name, separator="\n\n\n")


def test_names_with_commas_and_brackets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("v[1]", "v1x", "c,d"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "t.txt", folder)
    write(tmp_path / "a,b.txt", "comma")
    write(tmp_path / "c.txt", "c")
    for train, texts in {
        ("a", "b.txt"): ["comma"],  # as a command line divides them
        ("c.txt", "a", "b.txt", "c", "d/*.txt"): ["c", "comma", "c,d"],
        ("v[1]/*.txt",): ["v[1]"],
        ("v[1]*/*.txt",): ["v1x"],
    }.items():
        assert TextFiles(train=train, valid="c.txt").documents("train") == texts
    with pytest.raises(InputError, match="file not found: a$"):
        TextFiles(train=("a", "c.txt"), valid="c.txt").documents("train")


def test_other_fields_of_a_line_are_not_read(tmp_path):
    lines = [f'{{"id": {"9" * 5000}, "text": "one"}}', '{"x": 1e999, "y": NaN, "text": "two"}']
    name = write(tmp_path / "a.jsonl", "\n".join(lines))
    assert TextFiles(train=name, valid=name).documents("train") == ["one", "two"]
    deep = write(tmp_path / "b.jsonl", f'{{"x": {"[" * 99999}{"]" * 99999}, "text": "three"}}')
    with pytest.raises(InputError, match="b.jsonl:1: a field is nested too deeply.*than 'text'"):
        TextFiles(train=deep, valid=deep).documents("train")


def test_other_files_are_read_as_those_of_a_run():
    mine = TextFiles(train="a.txt", separator="|", text_field="body", clean=PTB())
    assert other_files([mine], ("b.txt",), "valid") == TextFiles(
        train=("b.txt",), valid=("b.txt",), valid_fraction=0, test_fraction=0,
        separator="|", text_field="body", clean=PTB(),
    )  # fmt: skip
    found = other_files([mine], ("b.txt",), "train", separator=None, clean=None)
    assert found.splits == ("train",) and found.separator is found.clean is None
    hub = HuggingFace(path="x", text_field="body", clean=PTB())
    assert other_files([hub], ("b.txt",), "test").text_field == "body"
    assert other_files([mine, hub], ("b.txt",), "test").separator == "|"
    with pytest.raises(InputError, match="text_field=.body. and .text.: say with --text-field"):
        other_files([mine, replace(hub, text_field="text")], ("b.txt",), "test")
    assert other_files([PythonReference()], ("b.txt",), "test").text_field == "text"
