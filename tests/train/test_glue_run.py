"""A BERT is trained with diffusion, then on a task in GLUE's own format, from the command line."""

import json
import random
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from made_run import made

import mdlm
from mdlm.cli.main import main
from mdlm.data import TextData, WordPiece, Wrap
from mdlm.data.text.no_text import NoText
from mdlm.errors import InputError
from mdlm.models import Bert
from mdlm.runs.folder import RunFolder

GOOD = "bright kind fine lovely happy warm".split()
BAD = "dark cruel poor awful sad cold".split()
THINGS = "story song film meal".split()
SMALL = ["--data.packing.length", "16", "--train.batch_size", "16", "--train.eval_every", "60"]


def sentence(words) -> str:
    return f"the {random.choice(THINGS)} was {random.choice(words)}"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A separable task: sentences of good or of bad words. One label in ten of validation is wrong,
    so that no metric is 1."""
    folder = tmp_path_factory.mktemp("glue") / "sst2"
    folder.mkdir()
    random.seed(0)
    for split, n in (("train", 300), ("validation", 100)):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(n):
                label = random.randrange(2)
                row = {"sentence": sentence((BAD, GOOD)[label]), "idx": i}
                row["label"] = 1 - label if split == "validation" and i % 20 == 0 else label
                file.write(json.dumps(row) + "\n")
    return folder.parent


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The folder of an untrained BERT."""
    folder = tmp_path_factory.mktemp("bert")
    text = folder / "text.txt"
    text.write_text("".join(sentence(GOOD + BAD) + ".\n" for _ in range(500)), encoding="utf-8")
    base = tiny.experiment(
        text,
        data=TextData(
            source=NoText(),
            tokenizer=WordPiece(vocab_size=60),
            packing=Wrap(length=32, row_specials=False),
        ),
        network=Bert(width=32, depth=1, heads=2, hidden=48, positions=32),
    )
    tokenizer = base.data.tokenizer.build([text.read_text(encoding="utf-8")])
    return text, made(folder / "run", base, lambda params: params, tokenizer=tokenizer)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


def metrics_of(capsys, *words) -> dict[str, dict]:
    capsys.readouterr()
    assert main(["eval", *map(str, words), "--json"]) == 0
    return {one["name"]: one for one in json.loads(capsys.readouterr().out)}


@pytest.mark.slow
def test_a_bert_is_trained_with_diffusion_and_then_on_a_task(bert, task, tmp_path, capsys):
    text, run = bert
    out = tmp_path / "bert_mdlm"
    source = f"TextFiles(train={str(text)!r}, separator='\\n')"
    words = ["train", "bert_mdlm", "--init-from", str(run.folder.path), "--out", str(out)]
    words += ["--data.source", source, *SMALL, "--train.steps", "60", "--sampler.steps", "4"]
    words += ["--optimizer.learning_rate", "3e-3", "--optimizer.warmup_steps", "10"]
    assert main(words) == 0
    assert "head" not in mdlm.load(out).params

    glue = ["train", "glue", "--init-from", str(out), "--data.source.path", str(task), *SMALL]
    glue += ["--train.steps", "120", "--optimizer.learning_rate", "3e-3"]
    last = tmp_path / "sst2"
    capsys.readouterr()
    assert main([*glue, "--task", "sst2", "--out", str(last)]) == 0
    said = capsys.readouterr().out
    assert "accuracy" in said and "mdlm sample" not in said and f"next: mdlm eval {last}" in said
    found = metrics_of(capsys, last)
    assert list(found) == ["nats per row", "accuracy", "F1", "Matthews correlation"]
    assert found["accuracy"]["value"] > 0.9 and found["accuracy"]["n"] == 100
    p = found["accuracy"]["value"]
    assert found["accuracy"]["stderr_rows"] == pytest.approx(np.sqrt(p * (1 - p) / 100), rel=0.2)
    assert found["accuracy"]["stderr"] is None
    # The log has the same, and the record what was chosen, without executing the file.
    [*_, line] = [one for one in RunFolder(last).log.metrics() if one["kind"] == "valid"]
    assert line["accuracy"] == pytest.approx(p)
    opened = mdlm.load(last)
    data: Any = opened.experiment.data
    assert data.source.task == "sst2" and opened.experiment.name == "glue_sst2"
    assert opened.params["head"]["out"]["kernel"].shape == (32, 2)
    # The same command goes on; another task is another run.
    assert main([*glue, "--task", "sst2", "--out", str(last)]) == 0
    assert main([*glue, "--task", "cola", "--out", str(last)]) == 2
    assert "the run was begun with --task sst2" in capsys.readouterr().err
    for words in (["sample", str(last)], ["eval", str(last), "--bracket", "4"]):
        assert main(words) == 2
        assert "predicts classes of rows" in capsys.readouterr().err
    with pytest.raises(InputError, match="predicts classes of rows"):
        opened.log_likelihood([("a", "b")])
    best = glue[:-2] + ["--optimizer.learning_rate", "3e-3", "--train.best", "nats per token"]
    assert main([*best, "--task", "sst2", "--out", str(tmp_path / "x")]) == 2
    assert "no metric of a validation; did you mean nats per row?" in capsys.readouterr().err
