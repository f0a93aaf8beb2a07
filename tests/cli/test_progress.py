"""Progress: lines without a terminal, a bar on one, and what is compiled in both."""

import io
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from mdlm.cli import progress as module
from mdlm.cli.bars import Bars
from mdlm.cli.progress import Progress, Smoothed
from mdlm.cluster import compiling
from mdlm.train.events import Began, Spiked, Stepped
from mdlm.train.guard import Spike


@pytest.fixture
def lines(capsys, monkeypatch):
    """The lines that progress prints without a terminal, all of them."""
    monkeypatch.setattr(module, "PATIENCE", -1.0)
    return lambda: capsys.readouterr().err.splitlines()


def test_numbers_have_a_unit_and_tasks_without_one_no_numbers(lines):
    with Progress() as progress:
        progress.stage("training the tokenizer", 0, 1)
        progress.stage("training the tokenizer", 1, 1)
        progress.stage("tokenizing train, characters", 1000, 20000)
        progress.stage("reading text, MB", 3, 0)
        progress.bar("evaluating", "rows")(8, 468)
        progress.share("preparing train", 0.665, "7 tokens/s")
        progress.share("preparing train", None, "7 tokens/s")
    assert lines() == [
        "training the tokenizer",
        "tokenizing train: 1,000 of 20,000 characters",
        "reading text: 3 MB",
        "evaluating: 8 of 468 rows",
        "preparing train: 66.5%, 7 tokens/s",
        "preparing train: 7 tokens/s",
    ]


def test_the_loss_is_smoothed_and_forgotten_on_a_rewind(lines):
    progress = Progress()
    progress.show(Began(0, 40, 5, 1))
    for step, loss in ((10, 4.0), (20, 3.0), (30, float("nan"))):
        progress.show(Stepped(step, {"loss": loss}))
    progress.show(Spiked(30, Spike(loss=9.0, median=3.0), back_to=20))
    progress.show(Stepped(40, {"loss": 2.0}))
    said = [line.split("smoothed loss ")[1] for line in lines() if "smoothed" in line]
    assert said == ["4.000", "3.474", "3.474", "2.000"]  # 3.474 = (0.9 * 4 + 3) / 1.9


def test_a_loss_that_never_was_finite_is_shown():
    assert str(Smoothed().after(float("nan"))) == "nan"


@pytest.mark.parametrize("quick, said", [(0.01, True), (60.0, False)])
def test_what_compiles_long_is_named(quick, said, lines, monkeypatch):
    monkeypatch.setattr(module, "QUICK", quick)
    with Progress(), compiling.announced("the training step"):
        time.sleep(0.3)
    first = ["compiling the training step", "compiled the training step in 0 s"]
    assert lines() == (first if said else [])


def test_other_processes_are_silent(lines, monkeypatch):
    monkeypatch.setattr(module, "QUICK", 0.01)
    with Progress(quiet=True) as progress, compiling.announced("the training step"):
        progress.stage("reading text, MB", 3, 0)
        time.sleep(0.1)
    assert lines() == []


def drawn(console: Console) -> str:
    """What was written to a console, without the sequences that move and colour."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def console(**settings) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, **settings)


def test_the_bar_names_what_compiles_and_fits_the_terminal():
    bars = Bars(out := console())
    bars.show("training", 0, 1900, "0 of 1,900 steps", "")
    with bars.compiling("the training step"):
        time.sleep(0.3)
    bars.show("training", 20, 1900, "20 of 1,900 steps", "smoothed loss 5.123, 13,208 tokens/s")
    time.sleep(0.3)
    bars.close()
    text = drawn(out)
    assert "compiling the training step" in text and "20 of 1,900 steps" in text
    assert max(map(len, re.split(r"[\r\n]", text))) <= 80


def test_the_time_left_leaves_compilation_out():
    now = [0.0]
    bars = Bars(console(), clock=lambda: now[0])
    bars.show("training", 0, 100, "", "")
    with bars.compiling("the training step"):
        now[0] += 1000
    for step in (10, 20):
        now[0] += 10
        bars.show("training", step, 100, "", "")
    assert bars._task is not None
    assert bars._task.time_remaining == pytest.approx(80)
    bars.close()


SCRIPT = """
import time
from mdlm.cli.progress import Progress
from mdlm.cluster import compiling
with Progress() as progress:
    with compiling.announced("the evaluation"):
        time.sleep(0.5)
    progress.bar("evaluating", "rows")(8, 468)
    time.sleep(0.5)
print("done")
"""


def on_a_terminal(**environment) -> str:
    """What a terminal is sent while the script runs on it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )
    os.close(theirs)
    sent = b""
    try:
        while data := os.read(ours, 4096):
            sent += data
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, sent.decode()
    return sent.decode()


def test_a_terminal_gets_a_bar_a_dumb_one_lines_and_no_color_no_colours():
    coloured = on_a_terminal()
    assert "compiling the evaluation" in coloured and "\x1b[3" in coloured
    plain = on_a_terminal(NO_COLOR="1")
    assert "8 of 468 rows" in plain and not re.search(r"\x1b\[[0-9;]*3[0-9]", plain)
    dumb = on_a_terminal(TERM="dumb")
    assert dumb.splitlines() == ["evaluating: 8 of 468 rows", "done"]
