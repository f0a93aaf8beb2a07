"""Every layout on the command line: imported, evaluated, sampled, exported, imported again."""

import json

import jax
import numpy as np
import pytest
from checkpoint_maker import GOLDENS

import mdlm
from mdlm.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.golden]
TEXT = "some words to read and to write again " * 8
"""Of letters that each of the tokenizers has."""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", sorted({*GOLDENS} - {"llada_gqa", "dream_tied"}))
def test_a_checkpoint_in_and_out(tmp_path, golden_folder, capsys, text, name):
    golden = GOLDENS[name]
    source = golden.source(tmp_path / "source", golden_folder)

    def said(*words) -> str:
        code = main([*map(str, words)])
        out, err = capsys.readouterr()
        assert code == 0, err[-3000:]
        return out

    changes = [word for key, value in golden.changes for word in (f"--{key}", value)]
    length = 32 if golden.chats else 16
    said("import", source, "--out", tmp_path / "run", "--data.packing.length", length, *changes)

    values = json.loads(said("eval", tmp_path / "run", "--data", text, "--passes", 1, "--json"))
    found = {value["name"]: value["value"] for value in values}
    # Random weights compress no text.
    assert 3 < found["nats per token"] < 30 and np.isfinite([*found.values()]).all()

    words = ("--chat", "hello") if golden.chats else ("--prompt", "he")
    told = json.loads(said("sample", tmp_path / "run", *words, "--length", 8, "--json"))
    (made,) = told["texts"]
    assert 0 < len(made["tokens"]) <= length and made["text"] and told["nfe"] > 0
    if name == "sedd":
        return  # is imported only
    said("export", tmp_path / "run", "--to", tmp_path / "out")
    blocks = [word for word in changes if name == "llada2"]
    said("import", tmp_path / "out", "--out", tmp_path / "again", *blocks)
    first, again = (mdlm.load(tmp_path / folder) for folder in ("run", "again"))
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert again.experiment.network == first.experiment.network
    assert (tmp_path / "out" / "chat_template.jinja").is_file() == golden.chats
