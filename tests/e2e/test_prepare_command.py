"""`mdlm prepare` as its users run it: killed at any moment, and the store is the same."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.e2e

FILE = """\
from mdlm.data import TextData
from mdlm.data import Wrap
from mdlm.data import TextFiles
from mdlm.data import Bytes

data = TextData(
    source=TextFiles(train="train.txt.gz", valid="valid.jsonl", separator="|"),
    tokenizer=Bytes(),
    packing=Wrap(length=32),
)
"""


def command(*words) -> list[str]:
    return [sys.executable, "-m", "mdlm", "prepare", "data.py", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "COLUMNS": "100"}


def run(folder, *words) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*words), cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )


def checksums(store: Path) -> dict[str, str]:
    names = sorted(path for path in store.iterdir() if path.name != ".lock")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with texts of a few megabytes, a file of data, and the store of them."""
    import gzip

    folder = tmp_path_factory.mktemp("work")
    text = tiny.write_text(folder / "text.txt", 400_000).read_text()
    rng = np.random.default_rng(0)
    places = np.sort(rng.integers(0, len(text), 30))
    documents = [text[a:b] for a, b in zip([0, *places], [*places, None], strict=True)]
    (folder / "train.txt.gz").write_bytes(gzip.compress("|".join(documents).encode()))
    lines = [json.dumps({"text": t}) for t in ("", *documents[:3])]
    (folder / "valid.jsonl").write_text("\n".join(lines))
    (folder / "data.py").write_text(FILE)
    out = run(folder, "--out", "whole", "--shard-tokens", 20_000)
    assert out.returncode == 0, out.stderr[-3000:]
    assert "31 documents" in out.stdout and "1 empty, kept" in out.stdout
    assert "next: an experiment with data=TextData(..., store='whole')" in out.stdout
    return folder


def test_help_teaches():
    text = subprocess.run(command("--help"), capture_output=True, text=True, timeout=60).stdout
    assert "--data.tokenizer.vocab_size 8192" in text and "--shard-tokens" in text


def test_killed_at_any_moment(work):
    """Signals of three kinds after random times; shards that are there are not written again."""
    draw, store, stopped = random.Random(0), work / "killed", []
    kinds = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT]
    while True:
        before = {path.name: path.stat().st_mtime_ns for path in store.glob("*.bin")}
        known = len(before)
        words = ("--out", "killed", "--shard-tokens", 20_000, "--workers", draw.choice((1, 2)))
        process = subprocess.Popen(
            command(*words), cwd=work, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        # Not before it has written something, so that it comes to an end.
        while process.poll() is None and time.monotonic() < deadline and len(stopped) < 7:
            if len(list(store.glob("*.bin"))) > known:
                time.sleep(draw.random() * 0.2)
                process.send_signal(kinds[len(stopped) % len(kinds)])
                break
            time.sleep(0.01)
        _, errors = process.communicate(timeout=120)
        after = {path.name: path.stat().st_mtime_ns for path in store.glob("*.bin")}
        listed = json.loads((store / "manifest.json").read_text())["splits"]
        names = {f"{s['name']}.bin" for split in listed.values() for s in split["shards"]}
        assert names <= after.keys()
        # One that was moved into place a moment before it was listed is made once more, the same.
        renewed = [name for name in before if before[name] != after[name]]
        assert len(renewed) <= 1
        if process.returncode == 0:
            break
        stopped.append(process.returncode)
        if process.returncode > 0:
            assert process.returncode in (130, 143), errors
            assert "finished shard(s)" in errors and "to continue: mdlm prepare" in errors
    assert len(stopped) >= 4 and -signal.SIGKILL in stopped and 143 in stopped
    assert checksums(store) == checksums(work / "whole")


def test_once_more_verifies(work):
    before = checksums(work / "whole")
    out = run(work, "--out", "whole")
    assert out.returncode == 0 and "all its shards match their checksums" in out.stdout
    assert checksums(work / "whole") == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "whole", "--data.source.separator", "#"], "whole was made from TextFiles"),
        ([], "no folder for the token store is given"),
        (["--out", "/proc/none"], "/proc/none cannot be used: No such file"),
        (["--out", "x", "--workers", "0"], "workers=0: must be from 1 to 1024"),
        (["--out", "x", "--data.packing.lenght", "3"], "did you mean --data.packing.length?"),
        (["--out", "x", "--data.source.train", "no.txt"], "file not found: no.txt"),
    ],
)
def test_mistakes_are_one_line(words, message, work):
    out = run(work, *words)
    assert out.returncode == 2 and out.stdout == ""
    assert message in out.stderr and len(out.stderr.strip().splitlines()) == 1
    assert not (work / "x").exists()
