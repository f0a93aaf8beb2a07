"""A run folder made by version 0.1, before the package was divided into folders."""

import json
import shutil
from pathlib import Path

import pytest

import mdlm
from mdlm.cli.main import main

OLD = Path(__file__).parents[1] / "old_runs"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # where its text is
    return tmp_path / "before_folders"


def test_an_old_run_is_opened_evaluated_and_sampled(folder):
    run = mdlm.load(folder)
    assert run.step == 30
    nats = run.perplexity()[0]
    then = json.loads((OLD / "eval.json").read_text())[0]
    assert nats.value == pytest.approx(then["value"], rel=1e-5)
    assert nats.n == then["n"]
    said = json.loads((OLD / "sample.json").read_text())
    text = run.generate(seed=3).texts[0]
    assert list(text.tokens) == said["texts"][0]["tokens"]


def test_an_old_run_is_resumed(folder, tmp_path):
    file = folder / "experiment.py"
    shutil.copy(file, tmp_path / "old.py")
    command = ["train", "old.py", "--out", str(folder), "--train.steps", "40"]
    assert main(command) == 0
    assert mdlm.load(folder).step == 40
