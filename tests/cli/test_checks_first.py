"""What is cheap is checked first: no text is read, and no run is opened, for a wrong option."""

from pathlib import Path

import pytest
import tiny

from mdlm.cli.main import main
from mdlm.data import TextData


@pytest.fixture
def file(tmp_path, monkeypatch):
    """An experiment file; reading its data is an error that nobody expects."""

    def load(*_):
        raise AssertionError("the data were read")

    monkeypatch.setattr(TextData, "load", load)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.py"
    path.write_text(tiny.FILE.format(text=str(tiny.write_text(tmp_path / "text.txt"))))
    return str(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "no.safetensors", "FILE", "--out", "x"], "no.safetensors: no such file"),
        (["import", "text.txt", "FILE", "--out", "x"], "must end in .safetensors"),
        (["train", "FILE", "--out", "x", "--init-from", "nowhere"], "nowhere: not a run folder"),
        (["eval", "x", "--objective", "Nope()"], "there is no Nope"),
        (["eval", "x", "--passes", "0"], "--passes 0: must be at least 1"),
        (["eval", "x", "--on", "wiki"], "--on wiki: allowed are"),
        (["frontier", "x", "--num", "1"], "--num 1: must be from 2 to"),
        (["frontier", "x", "--plot", "no/x.png"], "no/x.png: cannot be written"),
        (["frontier", "x", "--sampler", "Nope()"], "there is no Nope"),
        (["eval", "x", "--data", "no.txt"], "file not found: no.txt"),
        (["eval", "x", "--on", "ptb", "--data", "no.txt"], "file not found: no.txt"),
    ],
)
def test_cheap_checks_come_first(file, words, message, capsys):
    assert main([file if word == "FILE" else word for word in words]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert not Path("x").exists()


def test_a_missing_package_is_told_first(file, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["train", file, "--out", "x", "--wandb", "project"]) == 2
    assert capsys.readouterr().err == "mdlm: --wandb needs: pip install wandb\n"
    assert not Path("x").exists()
