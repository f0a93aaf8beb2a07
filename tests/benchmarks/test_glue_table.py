"""The table of a sweep of learning rates on GLUE."""

import json

import pytest

from benchmarks.glue import METRICS, results, table
from mdlm.data.glue import TASKS


def write(folder, task, rate, seed, **splits):
    (folder / f"{task}-{rate}-{seed}").mkdir()
    text = json.dumps({"task": task, "rate": rate, "seed": seed, "splits": splits})
    (folder / f"{task}-{rate}-{seed}" / "glue.json").write_text(text, encoding="utf-8")


def test_means_errors_and_the_best_rate(tmp_path):
    for seed, value in enumerate((0.8, 0.9)):
        write(tmp_path, "mrpc", "2e-5", seed, valid={"F1": value, "accuracy": 0.5})
        write(tmp_path, "mrpc", "5e-5", seed, valid={"F1": 0.7, "accuracy": 0.9})
    write(tmp_path, "mnli", "2e-5", 0, valid={"accuracy": 0.6}, test={"accuracy": 0.61})
    lines = table(results(tmp_path)).splitlines()
    assert lines[0] == "| task | metric | 2e-5 | 5e-5 |"
    assert lines[2:] == [
        "| mnli | accuracy | **60.00** |  |",
        "| mnli, mismatched | accuracy | **61.00** |  |",
        "| mrpc | F1 | **85.00 +- 5.00** | 70.00 +- 0.00 |",
        "",
        "1 to 2 seed(s); +- over seeds",
    ]


def test_metrics_are_of_tasks():
    assert set(METRICS) < set(TASKS)
    assert METRICS["stsb"] == "Spearman correlation" and "rte" not in METRICS


def test_nothing_is_no_table(tmp_path):
    with pytest.raises(ValueError):
        table(results(tmp_path))
