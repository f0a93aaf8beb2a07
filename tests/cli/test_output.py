"""What is printed: control characters on terminals, odd characters, closed streams."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest

from mdlm.cli.main import main
from mdlm.cli.output import HANDLER, Output, raw
from mdlm.cluster.patient import apart
from mdlm.foreign.shown import LONGEST, one_line

ESCAPE = "a\x1b]0;owned\x07\n\tb\u202e"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_shown_what_a_file_gets():
    file, terminal = io.StringIO(), Terminal()
    for stream in (file, terminal):
        print(ESCAPE, file=Output(stream, outlives=False), end="")
    assert file.getvalue() == ESCAPE
    assert terminal.getvalue() == "a\\x1b]0;owned\\x07\n\tb\\u202e"
    assert raw(Output(terminal, outlives=False)) is terminal and raw(terminal) is terminal


def test_every_text_can_be_encoded():
    """The bytes of a file name pass; other halves of surrogate pairs are escaped."""
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="utf-8", errors=HANDLER, write_through=True)
    stream.write("\udcff \ud800 \u00e9")
    assert buffer.getvalue() == b"\xff \\ud800 \xc3\xa9"


@pytest.mark.parametrize("word", ["x\x1b[31m\ny", "x" * 100_000, "x\ud800"])
def test_an_error_is_one_short_line(word, capsys):
    assert main([word]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mdlm: x") and said.count("\n") == 1 and said.endswith("\n")
    assert len(said) < 2 * LONGEST and "\x1b" not in said


def test_a_line_is_cut_in_its_middle():
    assert one_line("begin" + "-" * 5000 + "end", 20) == "begin----- [...] -------end"


@pytest.mark.e2e
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams(closed):
    command = f"{sys.executable} -m mdlm experiments {closed}"
    assert subprocess.run(["sh", "-c", command], capture_output=True).returncode == 0


def test_signals_are_answered_during_a_long_call():
    def raises(*_):
        raise TimeoutError

    old = signal.signal(signal.SIGALRM, raises)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    began = time.monotonic()
    try:
        with pytest.raises(TimeoutError):
            apart(lambda: time.sleep(20))
    finally:
        signal.signal(signal.SIGALRM, old)
    assert time.monotonic() - began < 10
    assert apart(os.getpid) == os.getpid()
    with pytest.raises(ZeroDivisionError):
        apart(lambda: 1 // 0)
