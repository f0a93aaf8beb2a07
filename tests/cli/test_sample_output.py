"""Texts of `mdlm sample` that are streamed, or written to a file and gone on with after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny

import mdlm
from mdlm.cli.main import main
from mdlm.cli.texts_file import TextsFile
from mdlm.errors import InputError
from mdlm.experiment import Training
from mdlm.generation.texts import Text

ALONE = {**os.environ, "XLA_FLAGS": "", "COLUMNS": "100"}
"""The environment of a process with one device."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a run."""
    folder = tmp_path_factory.mktemp("work")
    small = tiny.experiment(
        tiny.write_text(folder / "text.txt"), train=Training(steps=1, batch_size=8)
    )
    mdlm.train(small, folder / "run")
    return folder


@pytest.fixture(autouse=True)
def inside(work, monkeypatch):
    monkeypatch.chdir(work)


def command(*words) -> list[str]:
    return [sys.executable, "-m", "mdlm", "sample", "run", *map(str, words)]


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stream", "--json"], "--stream: not allowed with --json"),
        (["--stream", "--trace", "x"], "--stream: not allowed with --trace"),
        (["--stream", "--infill", "[MASK]"], "--stream: not allowed with --infill"),
        (["--stream", "--out", "x"], "--stream: not allowed with --out"),
        (["--stream", "--num", "2"], "leave --num out, or write many with --out FILE"),
        (["--out", "x", "--json"], "--out: not allowed with --json"),
        (["--out", "x", "--trace", "y"], "--out: not allowed with --trace"),
        (["--out", "x", "--batch", "0"], "--batch 0: must be from 1 to"),
        (["--batch", "4"], "--batch: allowed with --out FILE"),
        (["--out", "nowhere/x"], "nowhere/x: cannot be written; name a file in an existing folder"),
        (["--out", "."], ".: cannot be written"),
        (["--out", "/dev/null"], "/dev/null: is no file"),
    ],
)
def test_what_cannot_be_asked_for(work, words, message, capsys):
    before = sorted(work.iterdir())
    assert main(["sample", "run", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert sorted(work.iterdir()) == before


def test_a_stream_prints_what_is_printed_without_it(capsys):
    asked = ["sample", "run", "--prompt", "the ", "--length", "50", "--seed", "3"]
    assert main(asked) == 0
    whole = capsys.readouterr()
    assert main([*asked, "--stream"]) == 0
    streamed = capsys.readouterr()
    assert streamed.out == whole.out
    assert "(1 texts, 46 new tokens, NFE " in streamed.err


def test_text_i_depends_on_the_seed_and_on_i_only(work, capsys):
    asked = ["sample", "run", "--prompt", "a", "--length", "40", "--seed", "5"]
    assert main([*asked, "--num", "7", "--json"]) == 0
    texts = json.loads(capsys.readouterr().out)["texts"]
    for size in (1, 3, 7):
        file = work / f"by{size}.jsonl"
        assert main([*asked, "--num", "7", "--out", str(file), "--batch", str(size)]) == 0
        assert lines(file) == [{"index": i, **text} for i, text in enumerate(texts)]
    # A number larger than before goes on, in batches of another size too.
    assert main([*asked, "--num", "3", "--out", "grown.jsonl", "--batch", "2"]) == 0
    assert len(lines(work / "grown.jsonl")) == 3
    assert "3 texts, 3 of them new" in capsys.readouterr().err
    assert main([*asked, "--num", "7", "--out", "grown.jsonl", "--batch", "4"]) == 0
    assert "7 texts, 4 of them new" in capsys.readouterr().err
    assert (work / "grown.jsonl").read_bytes() == (work / "by3.jsonl").read_bytes()
    assert main([*asked, "--num", "5", "--out", "grown.jsonl"]) == 0
    assert "7 texts, 0 of them new" in capsys.readouterr().err
    assert (work / "grown.jsonl").read_bytes() == (work / "by3.jsonl").read_bytes()


def test_other_settings_are_refused_and_the_file_stays(work, capsys):
    file = work / "kept.jsonl"
    words = ["sample", "run", "--length", "9", "--num", "2", "--out", "kept.jsonl"]
    assert main([*words, "--infill", "a"]) == 2  # nothing is written of a wrong command
    assert not file.exists()
    assert main(words) == 0
    there = file.read_bytes()
    capsys.readouterr()
    for more, message in (
        (["--seed", "1"], "made with other settings (seed 0, not 1)"),
        (["--prompt", "b"], 'prompt "", not "b"'),
        (["--steps", "3"], 'sampler "Ancestral(steps=16)", not "Ancestral(steps=3)"'),
        (["--length", "10"], "length 9, not 10"),
    ):
        assert main([*words, *more]) == 2
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1 and file.read_bytes() == there
    file.with_name("kept.jsonl.settings.json").unlink()
    assert main(words) == 2
    assert "cannot be read, so it is not known how" in capsys.readouterr().err
    (work / "other.jsonl").write_text('{"text": "mine"}\n')
    assert main([*words[:-1], "other.jsonl"]) == 2
    assert "other.jsonl, line 1: is not text 0 of" in capsys.readouterr().err
    assert (work / "other.jsonl").read_text() == '{"text": "mine"}\n'
    (work / "notes").write_text("mine")  # no torn line, but a file of others
    assert main([*words[:-1], "notes"]) == 2
    assert (work / "notes").read_text() == "mine"


def test_two_at_once_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    with TextsFile(path, {"seed": 0}) as first:
        with pytest.raises(InputError, match="x.jsonl: another process writes it"):
            TextsFile(path, {"seed": 0})
        first.add([Text("a", (97,), ("a",))])
    assert lines(path) == [{"index": 0, "text": "a", "tokens": [97], "pieces": ["a"]}]
    with TextsFile(path, {"seed": 0}) as again:
        assert again.count == 1


@pytest.mark.e2e
def test_after_a_kill_the_file_becomes_that_of_an_unbroken_run(work):
    options = ("--length", 40, "--num", 203, "--batch", 2)
    whole, file = work / "whole.jsonl", work / "killed.jsonl"
    done = subprocess.run(command(*options, "--out", whole), env=ALONE, capture_output=True)
    assert done.returncode == 0 and done.stdout == b"", done.stderr
    process = subprocess.Popen(command(*options, "--out", file), env=ALONE)
    until = time.monotonic() + 200
    while not file.exists() or file.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = file.read_bytes()
    assert 5 <= kept.count(b"\n") < 203 and whole.read_bytes().startswith(kept)
    # An odd number of lines, of batches of two, and a part of the next one.
    torn = b"".join(kept.splitlines(keepends=True)[:5]) + b'{"index": 5, "te'
    file.write_bytes(torn)
    again = subprocess.run(command(*options, "--out", file), env=ALONE, capture_output=True)
    assert again.returncode == 0 and b"203 texts, 198 of them new" in again.stderr, again.stderr
    assert file.read_bytes() == whole.read_bytes() and len(lines(file)) == 203


@pytest.mark.e2e
def test_a_stream_whose_reader_goes_away_ends_quietly(work):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command("--length", 4000, "--stream"), env=ALONE, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        assert len(process.stdout.read(5)) == 5
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 0 and "Traceback" not in said and "mdlm:" not in said
