"""The benchmark of preparing, as a process of its own, on a text that takes no time."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.e2e


@pytest.mark.slow
def test_prepare_beside_map(tmp_path):
    text = tiny.write_text(tmp_path / "text.txt", 40_000).read_bytes()
    (tmp_path / "train-0.txt.gz").write_bytes(gzip.compress(text))
    words = [str(tmp_path), "--vocab", "300", "--rounds", "2", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", *words],
        cwd=ROOT, env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    rows = {row["case"]: row for row in written["rows"]}
    assert {"prepare, 1 process", "datasets.map, 1 process"} <= rows.keys()
    row = rows["prepare, 1 process"]
    assert 0.9 * len(text) < written["bytes"] <= len(text)
    assert row["MB/s"] == pytest.approx(written["bytes"] / 1e6 / row["s"])
    assert rows["datasets.map, 1 process"]["x map"] == 1.0
    for row in rows.values():
        assert row["MB/s per core"] > 0 and len(row["seconds"]) == 2
