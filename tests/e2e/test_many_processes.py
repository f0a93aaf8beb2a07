"""One run of many processes, for real: several on this machine, joined as hosts would be."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

import mdlm

pytestmark = pytest.mark.e2e


def environment(devices: int) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "COLUMNS": "100"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Many:
    """Processes of one run, started with the same words; `each` adds words to some."""

    def __init__(self, words, cwd, *, count=2, devices=1, each=None, folders=None):
        self.address = f"127.0.0.1:{free_port()}"
        self.processes = []
        for i in range(count):
            place = ("--coordinator", self.address, "--processes", count, "--process", i)
            mine = [*words, *place, *(each or {}).get(i, ())]
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "mdlm", *map(str, mine)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=folders[i] if folders else cwd,
                    env=environment(devices),
                )
            )

    def ended(self, timeout: float = 900) -> list[tuple[int, str, str]]:
        """Exit code, standard output and error of each."""
        found = []
        try:
            for process in self.processes:
                out, err = process.communicate(timeout=timeout)
                found.append((process.returncode, out, err))
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
        return found

    def succeeded(self) -> str:
        """What process 0 printed; the others printed nothing."""
        found = self.ended()
        assert [code for code, _, _ in found] == [0] * len(found), [f[2][-2000:] for f in found]
        assert all(out == err == "" for _, out, err in found[1:]), found
        return found[0][1]

    def refused(self) -> list[str]:
        """The one line of each, all with exit code 2."""
        found = self.ended()
        assert [code for code, _, _ in found] == [2] * len(found), [f[2][-2000:] for f in found]
        lines = [err.strip() for _, _, err in found]
        assert all(len(line.splitlines()) == 1 for line in lines), lines
        assert all(out == "" for _, out, _ in found)
        for number, line in enumerate(lines):
            assert line.startswith(f"mdlm: process {number}: " if number else "mdlm: "), lines
        return [line.split(": ", 2 if number else 1)[-1] for number, line in enumerate(lines)]


def alone(*words, cwd, devices) -> str:
    out = subprocess.run(
        [sys.executable, "-m", "mdlm", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(devices),
        timeout=300,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    return out.stdout


def metrics(run: Path, kind: str = "train") -> list[dict]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def wait_for_lines(many: Many, run: Path, count: int, timeout: float = 200) -> None:
    until = time.monotonic() + timeout
    while len(metrics(run)) < count:
        assert time.monotonic() < until, "no progress"
        assert all(p.poll() is None for p in many.processes), many.ended()
        time.sleep(0.1)


# Parameters that are split between the processes, and no looks at them but the last.
SPREAD = ("--mesh.fsdp", 2, "--network.width", 128, "--train.eval_every", 0)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a text and an experiment on it."""
    folder = tmp_path_factory.mktemp("many")
    tiny.write_text(folder / "text.txt")
    (folder / "tiny.py").write_text(tiny.FILE.format(text="text.txt"))
    return folder


def test_two_processes_train_stop_and_go_on(work):
    """A signal to one saves and stops both at the same step; the same command goes on."""
    words = ("train", "tiny.py", "--out", "stopped", "--train.log_every", 2)
    many = Many((*words, *SPREAD, "--train.steps", 20000), work)
    wait_for_lines(many, work / "stopped", 2)
    many.processes[1].send_signal(signal.SIGTERM)
    (code, out, err), (other_code, other_out, other_err) = many.ended()
    assert code == other_code == 143, (err[-2000:], other_err[-2000:])
    assert out == other_out == "" and "saving, then stopping" in other_err
    step = max(int(p.name) for p in (work / "stopped" / "checkpoints").iterdir() if p.is_dir())
    (line,) = [line for line in err.splitlines() if line.startswith("mdlm: stopped at")]
    said, _, again = line.partition("; to continue: ")
    assert said == (
        f"mdlm: stopped at step {step}, saved; start all 2 processes again, each with its own"
        " --process"
    )
    assert shlex.split(again)[:3] == ["mdlm", "train", "tiny.py"]
    many = Many((*words, *SPREAD, "--train.steps", step + 4), work)
    assert "next: mdlm eval stopped" in many.succeeded()
    steps = [entry["step"] for entry in metrics(work / "stopped")]
    assert steps == sorted(set(steps)) and steps[-1] == step + 4
    assert (work / "stopped" / "samples.txt").read_text().count("===") == 4


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_many_processes_do_what_one_does(work, tmp_path, count, devices):
    """Sums of four devices, by whoever adds them up, are equal to rounding; texts are the same."""
    one, run = "one", tmp_path / "run"
    words = ("train", "tiny.py", *SPREAD, "--train.checkpoint_every", 10)
    if not (work / one).exists():
        alone(*words, "--out", one, cwd=work, devices=4)
    out = Many((*words, "--out", run), work, count=count, devices=devices).succeeded()
    assert "nats per token" in out and "Gloo" not in out
    expected, found = metrics(work / one), metrics(run)
    assert [e["step"] for e in found] == [5, 10, 15, 20]
    for name in ("loss", "grad_norm", "param_norm"):
        np.testing.assert_allclose(
            [e[name] for e in found], [e[name] for e in expected], rtol=2e-5, err_msg=name
        )
    assert (run / "samples.txt").read_text() == (work / one / "samples.txt").read_text()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["10", "20"]
    ours, theirs = mdlm.load(run).params, mdlm.load(work / one).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours, theirs)

    scored = Many(("eval", run, "--passes", 2, "--json"), work, count=count, devices=devices)
    here = json.loads(scored.succeeded())
    there = json.loads(alone("eval", run, "--passes", 2, "--json", cwd=work, devices=4))
    for mine, its in zip(here, there, strict=True):
        assert mine["protocol"] == its["protocol"] and mine["n"] == its["n"]
        assert mine["value"] == pytest.approx(its["value"], rel=1e-6)
    texts = ("sample", run, "--num", 2, "--length", 50, "--prompt", "the ", "--json")
    made = json.loads(Many(texts, work, count=count, devices=devices).succeeded())
    assert made["texts"] == json.loads(alone(*texts, cwd=work, devices=4))["texts"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 2])
def test_a_lost_process_ends_all(work, number):
    words = ("train", "tiny.py", "--out", f"lost{number}", "--train.steps", 20000)
    many = Many((*words, "--train.log_every", 2, "--train.batch_size", 12), work, count=3)
    wait_for_lines(many, work / f"lost{number}", 2)
    many.processes[number].kill()
    since = time.monotonic()
    found = many.ended()
    assert time.monotonic() - since < 60
    for i, (code, _, err) in enumerate(found):
        if i != number:
            assert code == 4, err[-2000:]
            assert err.strip().splitlines()[-1] == (
                f"mdlm: {f'process {i}: ' if i else ''}process {number} was lost;"
                " the run can be continued from its newest checkpoint: same command"
            )


@pytest.mark.slow
def test_the_clock_of_process_0_ends_all(work, tmp_path):
    run = tmp_path / "run"
    words = ("train", "tiny.py", "--out", run, *SPREAD, "--train.steps", 10**6)
    ends = ("--train.minutes", 0.01, "--train.log_every", 1)
    said = Many((*words, *ends), work).succeeded()
    step = max(line["step"] for line in metrics(run))
    assert f"{run}: step {step} of 1000000, ended early: 0.01 minutes" in said
    assert [line["step"] for line in metrics(run, "valid")] == [step]
    again = Many((*words, *ends), work).succeeded()
    assert f"{run}: step {step} of 1000000, ended early: 0.01 minutes" in again


@pytest.mark.slow
def test_processes_that_do_not_belong_together_are_refused(work, tmp_path):
    words = ("train", "tiny.py", "--out", tmp_path / "run")
    line = "process 1 has other values than process 0: optimizer.learning_rate is 0.001, not 0.003"
    each = {1: ("--optimizer.learning_rate", "1e-3")}
    assert Many(words, work, each=each).refused() == [line, line]

    other = tmp_path / "other"
    other.mkdir()
    (other / "tiny.py").write_text((work / "tiny.py").read_text())
    tiny.write_text(other / "text.txt", seed=1)
    first, second = Many(words, None, folders=[work, other]).refused()
    assert first == second
    assert first.startswith("process 1 has other data than process 0: rows of train is")

    (other / "text.txt").write_text((work / "text.txt").read_text())
    words = ("train", "tiny.py", "--out", "unshared")  # in a folder of each one's own
    line = (
        "process 1 does not see the run folder unshared of process 0: it must be on a disk that"
        " all processes share"
    )
    assert Many(words, None, folders=[work, other]).refused() == [line, line]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_that_do_not_meet(work, tmp_path):
    words = ("train", "tiny.py", "--out", tmp_path / "run", "--join-timeout", 3)
    many = Many(words, work)
    many.processes[0].kill()
    code, out, err = many.ended()[1]
    assert (code, out) == (2, "")
    assert err == (
        f"mdlm: process 1: no answer from process 0 at {many.address} within 3 s:"
        " check that it was started there and that its port is open\n"
    )
    many = Many(words, work)
    many.processes[1].kill()
    code, out, err = many.ended()[0]
    assert (code, out) == (2, "")
    assert err == (
        f"mdlm: not all of the 2 processes joined at {many.address} within 3 s: start the others,"
        " or raise --join-timeout\n"
    )
    assert not (tmp_path / "run").exists()
