"""What a report reads of a run folder, without its parameters."""

import json

import pytest
import tiny

from mdlm.errors import InputError
from mdlm.runs import evaluations
from mdlm.runs.folder import RunFolder
from mdlm.runs.kept import read


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.begin(None, [("train.steps", "20")], tiny.experiment(tmp_path / "text.txt"))
    return made


def test_a_run_that_has_just_begun(folder):
    run = read(folder.path)
    assert run.name == str(folder.path) and run.settings["name"] == "'tiny'"
    assert run.settings["network"].startswith("DiT(") and run.overrides == [("train.steps", "20")]
    assert (run.metrics, run.evaluations, run.samples, run.step) == ([], [], [], 0)
    assert len(run.starts) == 1 and run.starts[0]["packages"]


def test_the_newest_of_all(folder):
    for step in (10, 20):
        folder.log.add("train", step, {"nelbo": 5.0})
        folder.log.add_samples(step, [f"one at {step}\n=== no heading ===", "two\n"])
    folder.log.add("valid", 20, {"nats per token": 4.5, "protocol": "valid"})
    metric = {"name": "nats per token", "value": 1.0, "stderr": None, "protocol": "test"}
    evaluations.record(folder.path, 10, [metric])
    evaluations.record(folder.path, 20, [{**metric, "value": 2.0}])
    run = read(folder.path)
    assert run.step == 20 and [line["step"] for line in run.lines("train")] == [10, 20]
    assert run.lines("valid")[0]["nats per token"] == 4.5
    assert [(line["value"], line["step"]) for line in run.evaluations] == [(2.0, 20)]
    assert run.samples == [
        ("step 20, sample 1", "one at 20\n=== no heading ==="),
        ("step 20, sample 2", "two"),
    ]


def test_results_of_the_frontier(folder):
    assert read(folder.path).frontier is None
    (folder.path / "frontier").mkdir()
    file = folder.path / "frontier" / "results.json"
    row = {"settings": {"steps": "4"}, "texts": 2, "measures": {"MAUVE": {"value": None}}}
    found = {"step": 3, "protocol": ["judge"], "rows": [row]}
    row["measures"]["MAUVE"]["stderr"] = 0.5
    file.write_text(json.dumps(found), encoding="utf-8")
    assert (read(folder.path).frontier or {})["rows"][0]["measures"]["MAUVE"]["stderr"] == 0.5
    file.write_text(json.dumps({**found, "rows": 1}), encoding="utf-8")
    with pytest.raises(InputError, match=r"results.json: damaged, or not a file of mdlm"):
        read(folder.path)


def test_what_is_no_run_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="not a run folder"):
        read(tmp_path)
    with pytest.raises(InputError, match="not a run folder"):
        read(tmp_path / "none")
    folder.log.metrics_file.write_text('{"kind": 1}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics.jsonl, line 1: damaged"):
        read(folder.path)
    folder.log.metrics_file.unlink()
    config = json.loads((folder.path / "config.json").read_text(encoding="utf-8"))
    (folder.path / "config.json").write_text(json.dumps({**config, "overrides": 3}), "utf-8")
    with pytest.raises(InputError, match="config.json"):
        read(folder.path)
