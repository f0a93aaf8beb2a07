"""A batch that is given in tokens."""

import json

import pytest
import tiny

from mdlm.cli import main as cli
from mdlm.train.session import Session


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tiny.write_text(tmp_path / "text.txt")
    (tmp_path / "tiny.py").write_text(tiny.FILE.format(text=str(text)), encoding="utf-8")
    return "tiny.py"


def test_rows_follow_from_tokens(file, tmp_path, monkeypatch):
    monkeypatch.setattr(Session, "train", lambda *_, **__: iter(()))
    assert cli.main(["train", file, "--tokens-per-step", "1024", "--train.accumulate", "2"]) == 0
    config = json.loads((tmp_path / "runs/tiny/config.json").read_text(encoding="utf-8"))
    assert ["train.batch_size", "32"] in config["overrides"]
    words = ["train", file, "--tokens-per-step", "1024", "--data.packing.length", "64"]
    assert cli.main([*words, "--out", "runs/long"]) == 0
    config = json.loads((tmp_path / "runs/long/config.json").read_text(encoding="utf-8"))
    assert ["train.batch_size", "16"] in config["overrides"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["1000"],
            "1000: rows have 32 tokens (data.packing.length); give a multiple of that, such"
            " as 992 or 1024",
        ),
        (["7"], "such as 32"),
        (["0"], "such as 32"),
        (["-64"], "such as 32"),
        (["1024", "--train.batch_size", "8"], "give one of the two"),
        (["1024", "--train.accumulate", "5"], "does not divide over 8 devices in 5 micro-batches"),
    ],
)
def test_tokens_that_do_not_fit_are_refused_in_a_line(file, tmp_path, capsys, words, said):
    assert cli.main(["train", file, "--tokens-per-step", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()
