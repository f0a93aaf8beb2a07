"""A disk that takes no more: the file is named once, nothing before it is lost."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mdlm import files
from mdlm.cli import main as cli
from mdlm.files import append, replaced, write
from mdlm.runs import weights
from mdlm.runs.log import WARNED, Log


@pytest.fixture
def small_disk():
    """Files of this process cannot grow beyond 1,000 bytes: a disk that is full, as far as it
    sees. Test reports, which are files too, are written after it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size: int = 1000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_file_is_written_whole_or_named_and_left_as_it_was(tmp_path, small_disk):
    path = tmp_path / "one.txt"
    write(path, "old")
    small_disk()
    for content in ("x" * 2000, b"x" * 2000):
        with pytest.raises(OSError) as caught:
            write(path, content)
        assert caught.value.filename == str(path) and caught.value.errno == errno.EFBIG
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_is_added_is_added_whole_or_not_at_all(tmp_path, small_disk):
    path = tmp_path / "log"
    append(path, b"a" * 900)
    small_disk()
    with pytest.raises(OSError) as caught:
        append(path, b"b" * 200)
    assert caught.value.filename == str(path) and path.read_bytes() == b"a" * 900
    append(path, b"c" * 100)
    assert path.stat().st_size == 1000


def test_a_pipe_and_a_link_stay_what_they_are(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "file")
    write(link, "text")
    assert link.is_symlink() and (tmp_path / "there" / "file").read_text() == "text"
    write(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()


def test_a_log_goes_on_when_there_is_room_again(tmp_path, small_disk, caplog):
    WARNED.clear()
    log = Log(tmp_path, writes=True)
    log.add("train", 1, {"loss": 1.0})
    small_disk(log.metrics_file.stat().st_size)
    for step in (2, 3):
        log.add("train", step, {"loss": 1.0})
        log.add_samples(step, ["text" * 50])
    assert [entry["step"] for entry in log.metrics()] == [1]
    assert caplog.text.count(f"writing {log.metrics_file} failed") == 1
    small_disk(10**9)
    log.close()
    assert [entry["step"] for entry in log.metrics()] == [1, 2, 3]
    assert log.samples_file.read_text().count("=== step") == 2


def test_weights_that_have_no_room_are_named(tmp_path, small_disk):
    weights.write(tmp_path, {"network": {"w": np.zeros(4, np.float32)}}, step=1)
    small_disk()
    with pytest.raises(OSError) as caught:
        weights.write(tmp_path, {"network": {"w": np.zeros(4000, np.float32)}}, step=2)
    assert caught.value.filename == str(tmp_path / weights.NAME)
    small_disk(10**9)
    there = weights.Weights.of(tmp_path)
    assert there is not None and there.step == 1


def test_a_command_says_what_is_kept_and_how_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def full(path, content):
        raise files._of(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    monkeypatch.setattr("mdlm.cli.new.write", full)
    assert cli.main(["new", "mine"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mdlm: ") and said.count("\n") == 1
    assert "mine.py: No space left on device; files written before are intact" in said


def test_a_replaced_file_that_vanishes_is_named(tmp_path):
    with pytest.raises(OSError) as caught, replaced(tmp_path / "a") as new:
        new.write_text("a")
        new.unlink()
    assert caught.value.filename == str(tmp_path / "a")


CODE = """
import resource, signal, sys
import jax.numpy as jnp
from mdlm.errors import InputError
from mdlm.runs.checkpoints import Checkpoints

folder = sys.argv[1]
state = {f"w{i}": jnp.arange(2e5) * i for i in range(40)}
with Checkpoints(folder) as checkpoints:
    checkpoints.save(1, {name: value[:9] for name, value in state.items()}, {})
    checkpoints.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
        checkpoints.save(2, state, {})
        checkpoints.wait()
    except InputError as error:
        print(f"mdlm: {error}", file=sys.stderr)
        sys.exit(2)
"""


def test_a_checkpoint_that_has_no_room_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr[-3000:]
    assert "the checkpoint could not be written (File too large)" in done.stderr
    assert "that of step 1 is the newest intact: make room there, then give the same" in done.stderr
    assert json.loads((tmp_path / "run" / "1" / "digests.json").read_text())
