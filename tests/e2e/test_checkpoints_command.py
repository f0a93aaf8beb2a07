"""Checkpoints on the command line: kept elsewhere, damaged, of other shapes, of other devices."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
import tiny

pytestmark = pytest.mark.e2e

PROGRESS = "device\\(s\\), step|^compil(ing|ed) "
STEPS = ("--train.steps", "4", "--train.eval_every", "0", "--train.checkpoint_every", "2")


def mdlm(*words, cwd, devices=1) -> subprocess.CompletedProcess:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, "-m", "mdlm", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "COLUMNS": "100"},
        timeout=600,
    )


def refused(*words, cwd) -> str:
    """What a refused command says: one line on standard error, exit code 2."""
    out = mdlm(*words, cwd=cwd)
    assert out.returncode == 2 and out.stdout == "", out.stderr[-3000:]
    lines = [s for s in out.stderr.strip().splitlines() if not re.search(PROGRESS, s)]
    assert len(lines) == 1 and lines[0].startswith("mdlm: "), out.stderr[-3000:]
    return lines[0]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with an experiment, and its run, whose checkpoints are outside of it."""
    folder = tmp_path_factory.mktemp("work")
    tiny.write_text(folder / "text.txt")
    (folder / "tiny.py").write_text(tiny.FILE.format(text=str(folder / "text.txt")))
    words = ("train", "tiny.py", "--out", "run", "--checkpoints", "store/tiny", *STEPS)
    out = mdlm(*words, cwd=folder)
    assert out.returncode == 0, out.stderr[-3000:]
    return folder


def test_checkpoints_elsewhere(work):
    assert {"2", "4"} <= {path.name for path in (work / "store" / "tiny").iterdir()}
    assert not (work / "run" / "checkpoints").exists()
    # From anywhere, and without being told.
    out = mdlm("eval", work / "run", "--step", 2, "--json", cwd="/")
    assert out.returncode == 0 and json.loads(out.stdout)[0]["value"] > 0, out.stderr
    out = mdlm("train", "tiny.py", "--out", "run", *STEPS, "--train.steps", 5, cwd=work)
    assert out.returncode == 0 and "step 4 of 5" in out.stderr, out.stderr
    said = refused("train", "tiny.py", "--out", "run", "--checkpoints", "other", *STEPS, cwd=work)
    assert "store/tiny; move them first" in said
    words = ("--out", "fresh", "--checkpoints", "store/tiny", "--seed", 7)
    said = refused("train", "tiny.py", *words, *STEPS, cwd=work)
    assert re.search("of another run; seed: 0 there, 7 here", said)
    assert not (work / "fresh").exists()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("gs://bucket/x", "gs://bucket/x: needs the package gcsfs"),
        ("ftp://host/x", "a folder, or on gs://"),
    ],
)
def test_checkpoints_where_there_can_be_none(work, where, expected):
    if where.startswith("gs") and importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    said = refused("train", "tiny.py", "--out", "x", "--checkpoints", where, *STEPS, cwd=work)
    assert said.startswith(f"mdlm: {where}: ") and expected in said
    assert not (work / "x").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_one_line_and_an_older_one_can_be_used(work):
    words = ("train", "tiny.py", "--out", "cut", *STEPS)
    assert mdlm(*words, cwd=work).returncode == 0
    checkpoints = work / "cut" / "checkpoints"
    for file in (checkpoints / "4" / "state" / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for command in (("eval", "cut"), (*words, "--train.steps", 6)):
        said = refused(*command, cwd=work)
        assert "the checkpoint of step 4 is damaged (" in said
        assert said.endswith(f"; to use the one of step 2, move {checkpoints / '4'} away")
    (checkpoints / "4").rename(work / "four")
    out = mdlm(*words, "--train.steps", 6, cwd=work)
    assert out.returncode == 0 and "step 2 of 6" in out.stderr, out.stderr
    log = (work / "cut" / "metrics.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in log.splitlines()]
    assert steps == sorted(steps) and steps.count(4) <= 1


@pytest.mark.slow
def test_other_shapes_and_other_devices(work):
    words = ("--out", "wide", "--init-from", "run", "--network.width", 64)
    said = refused("train", "tiny.py", *words, *STEPS, cwd=work)
    assert re.search(r"the checkpoint of step \d has ema.* of shape \(.*32.*\), this", said)
    words = ("--out", "split", "--mesh.data", 1, "--mesh.fsdp", 4, "--network.width", 64)
    out = mdlm("train", "tiny.py", *words, *STEPS, cwd=work, devices=4)
    assert out.returncode == 0 and "4 device(s)" in out.stderr, out.stderr
    there = mdlm("eval", "split", "--json", cwd=work, devices=4)
    here = mdlm("eval", "split", "--json", cwd=work)
    assert "mdlm: " not in there.stderr and here.returncode == 0
    assert "mdlm: trained on a mesh of fsdp=4, opened on one of data=1\n" in here.stderr
    values = [json.loads(out.stdout)[0]["value"] for out in (there, here)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    # To go on with training, the mesh is said anew; nothing else is.
    said = refused("train", "tiny.py", *words, *STEPS, "--train.steps", 6, cwd=work)
    assert "mesh fsdp=4 does not fit 1 devices" in said
    out = mdlm("train", "tiny.py", *words, *STEPS, "--train.steps", 6, "--mesh.fsdp", 1, cwd=work)
    assert out.returncode == 0 and "step 4 of 6" in out.stderr, out.stderr
