"""What is printed: control characters on terminals, odd characters, closed streams."""

import io
import os
import pty
import signal
import subprocess
import sys
import termios
import time

import jax
import pytest

from mdlm.cli.main import _prepare_jax, main
from mdlm.cluster.patient import apart
from mdlm.data.preparation.pool import Pool
from mdlm.data.preparation.worker import Setting
from mdlm.data.text.chunks import Chunk
from mdlm.errors import InputError
from mdlm.foreign.output import HANDLER, Output, raw
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


@pytest.fixture
def terminal():
    """The descriptor of a terminal, and a function that returns what it was sent."""
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST  # line breaks as they are
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    yield theirs, lambda: os.read(ours, 100_000).decode()
    os.close(ours)
    os.close(theirs)


JOINED = """
import os
from mdlm.cluster import launch
err = launch.open_errors()
launch.redirect_standard_output({is_main})
print({text!r}, flush=True)
print({text!r}, file=err, flush=True)
os.write(1, b"of a library")
"""


@pytest.mark.parametrize("is_main", [True, False])
def test_a_terminal_is_shown_what_one_of_many_processes_prints(is_main, terminal):
    """Of process 0 the output and the errors, of others the errors."""
    code = JOINED.format(is_main=is_main, text=ESCAPE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    subprocess.run(command, stdout=terminal[0], stderr=terminal[0], env=environment, check=True)
    assert terminal[1]() == (1 + is_main) * "a\\x1b]0;owned\\x07\n\tb\\u202e\n"


def test_a_terminal_is_shown_what_a_worker_of_the_preparation_prints(
    terminal, tmp_path, monkeypatch
):
    """It reads some of what it is given, prints, and ends."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nhead -c 1 > /dev/null; printf 'a\\033]0;owned\\007\\n' >&2\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    stream = open(terminal[0], "w", closefd=False, encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", Output(stream, outlives=True))
    setting = Setting(tokenizer={}, eos=None, dtype="<u2")
    chunk = Chunk(texts=("a",), open=False, position=None)
    with pytest.raises(InputError, match="tokenizes ended"), Pool(1, setting) as pool:
        list(pool.encode([chunk]))
    assert terminal[1]() == "a\\x1b]0;owned\\x07\n"


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


def test_without_a_home_folder_it_is_said_that_programs_are_not_kept(monkeypatch, capsys):
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.delenv("MDLM_CACHE", raising=False)
    monkeypatch.setattr("mdlm.cli.main.cache_folder", lambda name: None)
    _prepare_jax()
    assert jax.config.jax_compilation_cache_dir is None  # pyright: ignore
    jax.config.update("jax_compilation_cache_dir", before)
    said = "mdlm: no home folder: compiled programs are not kept; set MDLM_CACHE to a folder\n"
    assert capsys.readouterr().err == said


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
