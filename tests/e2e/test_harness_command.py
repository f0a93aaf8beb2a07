"""`mdlm harness`, as the command line does it."""

import json

import pytest
import tiny
from made_run import made
from test_cli import mdlm, refused

from mdlm.data import Bytes, NoText, TextData, Wrap

pytest.importorskip("lm_eval", reason="needs the extra `harness`")
pytestmark = pytest.mark.e2e
TASK = """\
task: which
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["a", "b"]
doc_to_target: 0
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    data = TextData(source=NoText(), tokenizer=Bytes(), packing=Wrap(length=32, row_specials=False))
    made(folder / "run", tiny.experiment(folder, data=data))
    rows = [{"question": question} for question in ("one?", "two?", "three?")]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "which.jsonl").write_text(lines, encoding="utf-8")
    (folder / "tasks").mkdir()
    task = TASK.format(data=folder / "which.jsonl")
    (folder / "tasks" / "which.yaml").write_text(task, encoding="utf-8")
    return folder


def test_harness(work, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(work / "cache"))
    words = ["harness", "run", "--tasks", "which", "--include-path", "tasks", "--passes", 4]
    out = mdlm(*words, "--out", "found.json", cwd=work)
    assert out.returncode == 0, out.stderr[-2000:]
    assert "which acc" in out.stdout and "+- noise" in out.stdout
    assert "log p(response | prompt) >= -NELBO, order-agnostic" in out.stdout
    found = json.loads((work / "found.json").read_text(encoding="utf-8"))
    acc = found["results"]["which"]["acc,none"]
    kept = (work / "run" / "harness.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == 6 and sum(json.loads(line)["stderr"] > 0 for line in kept) > 2
    out = mdlm(*words, "--json", cwd=work)
    [row] = json.loads(out.stdout)
    assert (row["task"], row["metric"], row["value"]) == ("which", "acc", acc)
    assert row["stderr"] >= row["noise_stderr"] >= 0
    assert len((work / "run" / "harness.jsonl").read_text(encoding="utf-8").splitlines()) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "which", "--passes", "3"], "passes=3: must be even"),
        (["--tasks", "which", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--tasks", "which", "--limit", "0"], "--limit 0: must be at least 1"),
        (["--tasks", "which", "--num-fewshot", "-1"], "--num-fewshot -1: must be at least 0"),
        (["--tasks", "whic", "--include-path", "tasks"], "--tasks whic: no such task of lm-eval"),
        (["--tasks", "which", "--include-path", "none"], "--include-path none: no such folder"),
    ],
)
def test_refusals(work, words, message):
    assert message in refused("harness", "run", *words, cwd=work)
