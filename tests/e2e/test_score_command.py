"""`mdlm score`, as the command line does it."""

import json

import pytest
import tiny
from made_run import made
from test_cli import mdlm, refused

from mdlm.data import Bytes, NoText, TextData, Wrap

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    data = TextData(source=NoText(), tokenizer=Bytes(), packing=Wrap(length=32, row_specials=False))
    made(folder / "run", tiny.experiment(folder, data=data))
    rows = [{"prompt": "a fox", "response": " jumps"}, {"prompt": "", "response": "a dog"}]
    write(folder / "pairs.jsonl", *rows)
    return folder


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_score(work):
    out = mdlm("score", "run", "pairs.jsonl", "--passes", 4, "--out", "scores.jsonl", cwd=work)
    assert out.returncode == 0, out.stderr[-2000:]
    lines = [json.loads(line) for line in (work / "scores.jsonl").read_text().splitlines()]
    assert [(line["where"], line["tokens"]) for line in lines] == [
        ("pairs.jsonl:1", 6),
        ("pairs.jsonl:2", 5),
    ]
    assert all(line["stderr"] > 0 and line["passes"] == 4 for line in lines)
    assert "log p(response | prompt) >= -NELBO, order-agnostic, by counts of masked" in out.stdout
    assert f"{lines[0]['log_likelihood']:.4f}" in out.stdout and "perplexity" in out.stdout
    assert max(map(len, out.stdout.splitlines())) <= 80
    out = mdlm("score", "run", "pairs.jsonl", "--passes", 4, "--json", cwd=work)
    found = json.loads(out.stdout)
    assert found["pairs"] == lines
    assert [metric["name"] for metric in found["total"]] == ["nats per token", "perplexity"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.jsonl"], "file not found: none.jsonl"),
        (["pairs.jsonl", "--passes", "3"], "passes=3: must be even"),
        (["pairs.jsonl", "--sure", "0"], "sure=0.0: must be above 0"),
        (["pairs.jsonl", "--prompt-field", "q"], "pairs.jsonl:1: no field 'q'"),
        (["long.jsonl"], "long.jsonl:1: prompt and response have 40 + 1 tokens, a row of this run"),
        (["empty.jsonl"], "empty.jsonl:1: the response is empty"),
    ],
)
def test_refusals(work, words, message):
    write(work / "long.jsonl", {"prompt": "a" * 40, "response": "b"})
    write(work / "empty.jsonl", {"prompt": "a", "response": ""})
    assert message in refused("score", "run", *words, cwd=work)
