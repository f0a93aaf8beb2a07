"""A recipe prepared, trained and scored on other texts, as the command line does it."""

import json

import datasets
import pytest
import tiny
from test_cli import mdlm, refused

pytestmark = pytest.mark.e2e

FILE = tiny.FILE.replace(
    "from mdlm.data import Bytes, TextData, TextFiles, Wrap\n",
    "from mdlm.data import Bytes, tinystories\n",
)


def one(folder, texts: list[str], *splits: str) -> str:
    """A saved data set, every split of which holds the same rows."""
    rows = datasets.Dataset.from_dict({"text": texts})
    datasets.DatasetDict(dict.fromkeys(splits, rows)).save_to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero_shot")
    text = tiny.write_text(folder / "text.txt").read_text()
    stories = [text[i : i + 150] for i in range(0, len(text), 150)] + [""]
    one(folder / "stories", stories, "train", "validation")
    start = FILE.index("    data=TextData(")
    end = FILE.index("    network=")
    call = '    data=tinystories("stories", tokenizer=Bytes(), length=32, store="store"),\n'
    (folder / "tiny.py").write_text(FILE[:start] + call + FILE[end:])
    one(folder / "wiki", ["", " = Title = \n", " a 1 @,@ 000 , b . \n" * 9], "validation", "test")
    one(folder / "passages", [" “one two”  ", "three four five " * 20], "test")
    assert "store is not a token store" in refused("train", "tiny.py", cwd=folder)
    out = mdlm("prepare", "tiny.py", cwd=folder)
    assert out.returncode == 0, out.stderr[-2000:]
    out = mdlm("train", "tiny.py", "--train.steps", 4, "--out", "run", cwd=folder)
    assert out.returncode == 0, out.stderr[-2000:]
    return folder


def scored(work, *words) -> dict[str, dict]:
    out = mdlm("eval", "run", "--passes", 2, "--json", *words, cwd=work)
    assert out.returncode == 0, out.stderr[-2000:]
    return {metric["name"]: metric for metric in json.loads(out.stdout)}


@pytest.mark.slow
def test_well_known_texts(work):
    found = scored(work, "--on", "wikitext2", "--data", "wiki")["bits per byte"]
    assert found["protocol"].startswith(
        "data set wiki, cleaned by WikiText(), valid, wrapped rows of 32, BOS and EOS in each, "
        "no EOS between documents, "
    )
    assert found["n"] == len(" = Title =\n" + " a 1,000, b.\n" + "a 1,000, b.\n" * 8)
    (work / "wiki.txt").write_text(" = Title = \n" + " a 1 @,@ 000 , b . \n" * 3)
    found = scored(work, "--on", "wikitext2", "--data", "wiki.txt")["bits per byte"]
    assert "wiki.txt, cleaned by WikiText(), valid, " in found["protocol"]
    found = scored(work, "--on", "lambada", "--data", "passages")["bits per byte"]
    assert "cleaned by Lambada(), test, " in found["protocol"]
    assert found["n"] == len('\n"one two"\n' + ("three four five " * 20).strip())


@pytest.mark.slow
def test_own_texts_and_the_store(work):
    found = scored(work)["bits per byte"]
    assert found["protocol"].startswith("valid, wrapped rows of 32")
    found = scored(work, "--data", "text.txt")["bits per byte"]
    assert found["protocol"].startswith("text files text.txt, valid, wrapped rows of 32")
    assert found["n"] == (work / "text.txt").stat().st_size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--on", "wikitext"],
            "--on wikitext: allowed are ptb, wikitext2, wikitext103, lm1b",
        ),
        (["--on", "ptb", "--split", "test"], "--split test: not allowed with --on"),
        (["--on", "ptb", "--data", "a", "b"], "file not found: a"),
        (["--on", "lm1b"], "data set dvruette/lm1b cannot be read"),  # the hub is out of reach
    ],
)
def test_refusals(work, words, message):
    assert message in refused("eval", "run", *words, cwd=work)
