"""The benchmarks' commands, as processes of their own, at sizes that take no time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TINY = "--width 32 --depth 1 --heads 2 --length 16 --vocab 64 --batch 4 --seconds 0.1".split()

pytestmark = pytest.mark.e2e


def run(*words: str) -> subprocess.CompletedProcess:
    """`python -m benchmarks...` on one CPU device, as people run it."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", *words]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def table(done: subprocess.CompletedProcess, path: Path) -> dict[str, dict]:
    """Rows by case, after a look at what was printed."""
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    rows = {row["case"]: row for row in written["rows"]}
    for name in rows:
        assert any(line.startswith(name) for line in done.stdout.splitlines()), done.stdout
    assert written["environment"]["command"].startswith("python -m benchmarks.")
    return rows


@pytest.mark.slow
def test_train_step_alone(tmp_path):
    out = tmp_path / "step.json"
    words = ["benchmarks.train_step", *TINY, "--no-torch", "--network.norm", "rms"]
    rows = table(run(*words, "--rounds", "2", "--json", str(out)), out)
    mine = rows["mdlm"]
    assert mine["tokens/s"] == pytest.approx(4 * 16 / (mine["ms/step"] / 1e3))
    for name in ("model TFLOP/s", "MFU %", "peak MiB", "compile s"):
        assert mine[name] > 0, name
    written = json.loads(out.read_text())
    assert 0 < written["scored"] < 4 * 16
    assert written["settings"] == ["--network.norm", "rms"]


@pytest.mark.slow
def test_train_step_beside_the_pytorch_reference(tmp_path):
    pytest.importorskip("torch", reason="the bench extra (PyTorch) is not installed")
    out = tmp_path / "step.json"
    words = ["benchmarks.train_step", *TINY, "--rounds", "3", "--json", str(out)]
    rows = table(run(*words), out)
    assert set(rows) == {"mdlm", "torch eager", "torch.compile"}
    best = min(rows["torch eager"]["ms/step"], rows["torch.compile"]["ms/step"])
    ratio = [row["x torch"] for row in rows.values() if row["ms/step"] == best]
    assert ratio == [1.0] and rows["mdlm"]["x torch"] > 0
    assert all(len(row["seconds"]) == 3 for row in rows.values())


def test_loss_head(tmp_path):
    out = tmp_path / "head.json"
    sizes = "--vocab 300 --width 16 --batch 2 --length 128 --chunk 9000 --seconds 0.05".split()
    rows = table(run("benchmarks.loss_head", *sizes, "--json", str(out)), out)
    assert rows["dense"]["x dense"] == 1.0 and rows["dense"]["of dense"] == 1.0
    assert rows["mdlm"]["temp MiB"] < rows["dense"]["temp MiB"]
    difference = json.loads(out.read_text())["difference"]
    assert set(difference) == {"loss", "hidden", "kernel", "bias"}
    assert max(difference.values()) < 1e-5


def test_sample_alone(tmp_path):
    out = tmp_path / "sample.json"
    sizes = [*TINY, "--steps", "8", "--no-torch", "--json", str(out)]
    mine = table(run("benchmarks.sample", *sizes), out)["mdlm"]
    assert 1 <= mine["NFE"] <= 9
    assert mine["tokens/s"] == pytest.approx(4 * 16 / mine["s/batch"])


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--network.nrom", "rms", "--no-torch"], "did you mean --network.norm?"),
        (["--network.norm", "rms"], "--no-torch"),
        (["--wdith", "8"], "--wdith"),
    ],
)
def test_mistakes_are_one_line(words, expected):
    done = run("benchmarks.train_step", *TINY, *words)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and expected in line
