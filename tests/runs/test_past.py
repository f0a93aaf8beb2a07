"""Nothing of a run is lost in silence: locks, checkpoints that are gone, side outputs that fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import jax
import pytest
import tiny

from mdlm.errors import InputError
from mdlm.experiment import Training
from mdlm.runs import curves
from mdlm.runs.folder import RunFolder
from mdlm.runs.log import WARNED, Log
from mdlm.runs.past import SAVED, check_past, hold, note_saved
from mdlm.train.session import Session


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    WARNED.clear()


@pytest.fixture
def experiment(tmp_path):
    train = Training(steps=2, batch_size=8, ema_decay=0.9, eval_rows=8, checkpoint_every=1)
    made = tiny.experiment(tiny.write_text(tmp_path / "text.txt"), train=train)
    return replace(made, network=replace(made.network, width=16, depth=1))


def train(experiment, out, **how):
    session = Session(experiment, out, source="", overrides=[], **how)
    list(session.train())
    return session


def test_one_writer_at_a_time_and_a_lock_ends_with_its_process(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from mdlm.runs.past import hold
held = hold(Path({str(tmp_path / "run")!r}))
print("held", flush=True)
time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        said = rf"is being trained by.*process {other.pid} on .*since"
        with pytest.raises(InputError, match=said):
            hold(tmp_path / "run")
        other.send_signal(signal.SIGKILL)
    hold(tmp_path / "run").close()
    hold(tmp_path / "run").close()


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew_unasked(tmp_path):
    log = Log(tmp_path, writes=True)
    log.add("train", 5, {"loss": 1.0})
    check_past(tmp_path, "there", log, restart=False)  # stopped before its first checkpoint
    note_saved(tmp_path)
    with pytest.raises(InputError, match=r"has saved checkpoints, and there has none.*--restart"):
        check_past(tmp_path, "there", log, restart=False)
    assert len(log.metrics()) == 1
    check_past(tmp_path, "there", log, restart=True)
    assert log.metrics() == [] and not (tmp_path / SAVED).exists()
    (aside,) = tmp_path.glob("metrics-*.jsonl")
    assert json.loads(aside.read_text())["loss"] == 1.0


def test_a_damaged_log_is_set_aside_and_continued(tmp_path, caplog):
    log = Log(tmp_path, writes=True)
    for step in (1, 2, 3):
        log.add("train", step, {"loss": float(step)})
    text = log.metrics_file.read_text()
    log.metrics_file.write_text(text.replace('"step": 2', '"step": "?'))
    log.rewind(3)
    assert [entry["step"] for entry in log.metrics()] == [1, 3]
    (aside,) = tmp_path.glob("metrics-*.jsonl")
    assert '"step": "?' in aside.read_text() and "the run goes on" in caplog.text


def test_writers_that_fail_are_warned_of_once(tmp_path, caplog):
    class Broken:
        def log(self, kind, step, values):
            raise ConnectionError("no network")

        def add_samples(self, step, texts):
            raise ConnectionError("no network")

        def add_picture(self, step, path):
            raise ConnectionError("no network")

        def close(self):
            raise OSError("gone")

    log = Log(tmp_path, writes=True)
    log.writers = (Broken(), Broken())
    for step in (1, 2):
        log.add("train", step, {"loss": 1.0})
    log.close()
    assert len(log.metrics()) == 2
    assert caplog.text.count("no network") == 1 and caplog.text.count("gone") == 1


def test_a_picture_that_cannot_be_drawn_stops_nothing(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "draw", lambda *_: 1 / 0)
    train(experiment, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "2"
    assert (tmp_path / "run" / SAVED).exists()
    shutil.rmtree(folder.path / "checkpoints")
    lines = folder.log.metrics_file.read_text()
    with pytest.raises(InputError, match="--restart"):
        train(experiment, tmp_path / "run")
    assert folder.log.metrics_file.read_text() == lines
    assert train(experiment, tmp_path / "run", restart=True).step == 2
    assert len(list(folder.path.glob("metrics-*.jsonl"))) == 1


def test_a_run_goes_on_with_the_text_it_began_with(experiment, tmp_path):
    train(experiment, tmp_path / "run")
    longer = replace(experiment, train=replace(experiment.train, steps=3))
    text = tmp_path / "text.txt"
    before, log = text.read_text(), (tmp_path / "run" / "metrics.jsonl").read_text()
    text.write_text(before.replace("e", "o"))  # of the same size
    with pytest.raises(InputError, match=r"the text of train \(text\) is another.*--fork"):
        train(longer, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == log
    text.write_text(before)
    for name in ("data/texts.json", "digests.json"):  # which a run of an older version lacks
        (tmp_path / "run" / name).unlink()
    assert train(longer, tmp_path / "run").step == 3


@pytest.mark.e2e
def test_a_reader_that_goes_away_ends_nothing(tmp_path):
    text = tiny.write_text(tmp_path / "text.txt")
    (tmp_path / "tiny.py").write_text(tiny.FILE.format(text=str(text)))
    command = f"{sys.executable} -m mdlm train tiny.py --out run 2>&1 | head -1"
    script = f"set -o pipefail; {command}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=os.environ, timeout=300)
    assert done.returncode == 0
    assert (tmp_path / "run" / "checkpoints" / "20").is_dir()
