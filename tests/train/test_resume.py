"""Runs that stop and go on, run folders and checkpoints, with everything real."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from mdlm.config.overrides import apply
from mdlm.errors import InputError
from mdlm.experiment import Perplexity, Training
from mdlm.parallel.mesh import MeshShape
from mdlm.run import load
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.folder import RunFolder
from mdlm.train.events import Began, Evaluated, Saved, Stepped, Stopped
from mdlm.train.session import Session

SETTINGS = Training(
    steps=20, batch_size=16, ema_decay=0.9, log_every=5, eval_every=10, checkpoint_every=10
)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


@pytest.fixture
def setup(tmp_path):
    """The tiny experiment and a file that defines it."""
    text = tiny.write_text(tmp_path / "text.txt")
    file = tmp_path / "tiny.py"
    file.write_text(tiny.FILE.format(text=str(text)))
    return tiny.experiment(text, train=SETTINGS), file


def session(setup, out, **changes) -> Session:
    experiment, file = setup
    overrides = [(f"train.{name}", str(value)) for name, value in changes.items()]
    experiment = replace(experiment, train=replace(experiment.train, **changes))
    return Session(experiment, out, source=file.read_text(), overrides=overrides)


def stop_at(events, step: int) -> list:
    """Runs until the loop has made `step` steps, then asks it to stop."""
    stop = [False]
    seen = []
    for event in events(lambda: stop[0]):
        seen.append(event)
        stop[0] = event.step >= step
    return seen


def final(folder) -> tuple[int, dict]:
    run = load(folder)
    return run.step, jax.device_get(run.params)


def test_stopped_and_continued_is_undisturbed_bitwise(setup, tmp_path):
    straight = session(setup, tmp_path / "a")
    events = list(straight.train())
    assert straight.finished and not any(isinstance(e, Stopped) for e in events)
    first = session(setup, tmp_path / "b", log_every=1)
    seen = stop_at(first.train, 7)
    assert isinstance(seen[-1], Stopped) and isinstance(seen[-2], Saved)
    stopped_at = seen[-1].step
    assert 7 <= stopped_at < 10 and not first.finished
    second = session(setup, tmp_path / "b")
    seen = list(second.train())
    assert isinstance(seen[0], Began) and seen[0].step == stopped_at
    (step_a, a), (step_b, b) = final(tmp_path / "a"), final(tmp_path / "b")
    assert step_a == step_b == 20
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
    with (
        Checkpoints(tmp_path / "a" / "checkpoints") as one,
        Checkpoints(tmp_path / "b" / "checkpoints") as two,
    ):
        assert one.latest == two.latest == 20


def test_run_folder_holds_what_it_should(setup, tmp_path):
    run = session(setup, tmp_path / "run")
    kinds = [type(event) for event in run.train()]
    assert kinds.count(Evaluated) == 2 and kinds.count(Saved) == 2 and Stepped in kinds
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "experiment.py",
        "config.json",
        "env.json",
        "metrics.jsonl",
        "samples.txt",
        "curves.png",
        "checkpoints",
        "data",
        ".lock",
        ".saved",
        "digests.json",
    }
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in lines if e["kind"] == "train"] == [5, 10, 15, 20]
    valid = [e for e in lines if e["kind"] == "valid"]
    assert [e["step"] for e in valid] == [10, 20]
    for line in valid:  # one pass: there is no error of the noise alone
        assert line["nats per token stderr"] is None and line["nats per token stderr_rows"] > 0
        assert "NELBO" in line["protocol"]
    assert all(np.isfinite(e["loss"]) for e in lines if e["kind"] == "train")
    assert (tmp_path / "run" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "step 20, sample 1" in (tmp_path / "run" / "samples.txt").read_text()
    (env,) = json.loads((tmp_path / "run" / "env.json").read_text())
    assert env["packages"]["jax"] == jax.__version__ and env["devices"]


def test_continuing_rewrites_the_log_after_the_checkpoint(setup, tmp_path):
    run = session(setup, tmp_path / "run", checkpoint_every=5)
    list(run.train())
    before = [e["step"] for e in run.folder.log.metrics()]
    run.folder.log.rewind(10)
    assert max(e["step"] for e in run.folder.log.metrics()) == 10 < max(before)


def test_another_configuration_is_refused(setup, tmp_path):
    list(session(setup, tmp_path / "run").train())
    experiment, file = setup
    other = replace(experiment, network=replace(experiment.network, width=64), seed=3)
    with pytest.raises(InputError, match=r"network.width: 32 there, 64 here.*seed: 0 there"):
        Session(other, tmp_path / "run", source=file.read_text(), overrides=[])
    # How long it runs and how often it looks is not what the run is.
    longer = session(setup, tmp_path / "run", steps=25, eval_every=5)
    assert next(iter(longer.train())).step == 20


def test_checkpoint_of_other_shapes_is_refused(setup, tmp_path):
    run = session(setup, tmp_path / "run")
    list(run.train())
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        wrong = {"ema": {"network": {"embed": {"table": jax.ShapeDtypeStruct((3, 3), np.float32)}}}}
        with pytest.raises(InputError, match="shape"):
            checkpoints.restore_part(wrong)
        with pytest.raises(InputError, match="no checkpoint of step 3"):
            checkpoints.restore_part({}, 3)


@pytest.mark.slow
def test_init_from_another_run(setup, tmp_path):
    list(session(setup, tmp_path / "run").train())
    experiment, file = setup
    fresh = Session(
        replace(experiment, seed=1, train=replace(experiment.train, steps=1)),
        tmp_path / "next",
        source=file.read_text(),
        overrides=[("seed", "1"), ("train.steps", "1")],
        init_from=str(tmp_path / "run"),
    )
    list(fresh.train())
    (_, old), (step, new) = final(tmp_path / "run"), final(tmp_path / "next")
    assert step == 1
    # Step 0 has learning rate 0, so what was taken over is still there.
    for x, y in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(x, y)
    wider = replace(experiment, network=replace(experiment.network, width=64))
    with pytest.raises(InputError, match="shape"):
        Session(
            wider,
            tmp_path / "wider",
            source=file.read_text(),
            overrides=[],
            init_from=str(tmp_path / "run"),
        )
    assert not (tmp_path / "wider").exists()


def test_newest_and_best_are_kept(tmp_path):
    state = {"step": jax.numpy.zeros(()), "w": jax.numpy.ones((4,))}
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for step, nelbo in enumerate([3.0, 1.0, 2.0, 2.5, 2.2, 2.4]):
            checkpoints.save(step, state, {"position": step}, {"nats per token": nelbo})
        checkpoints.wait()
        assert checkpoints.steps == [1, 4, 5]
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        checkpoints.save(6, state, {"position": 6})  # no validation at this one
        checkpoints.wait()
        assert checkpoints.steps == [1, 5, 6] and checkpoints.latest == 6
        restored, data = checkpoints.restore(jax.eval_shape(lambda: state))
        assert data == {"position": 6}
        np.testing.assert_array_equal(restored["w"], np.ones(4))


def test_some_are_kept_for_good(tmp_path):
    state = {"w": jax.numpy.ones((4,))}
    with Checkpoints(tmp_path / "c", keep=1, keep_every=4) as checkpoints:
        for step in range(1, 11):
            nelbo = float("nan") if step == 9 else abs(step - 3.0)  # a validation gone wrong
            checkpoints.save(step, state, {"position": step}, {"nats per token": nelbo})
        checkpoints.wait()
        assert checkpoints.steps == [3, 4, 8, 10]


def test_full_disk_is_one_line_and_loses_nothing(tmp_path):
    """A limit on file size stands in for a disk that is full."""
    code = f"""
import os, pathlib, resource, signal, sys
import jax.numpy as jnp
import numpy as np
from mdlm.runs.checkpoints import Checkpoints
from mdlm.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Checkpoints(pathlib.Path({str(tmp_path / "c")!r})) as checkpoints:
    checkpoints.save(1, {{"w": jnp.arange(1000.0)}}, {{"position": 1}})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    try:
        big = jnp.asarray(np.random.default_rng(0).normal(size=(400, 1000)))
        checkpoints.save(2, {{"w": big}}, {{"position": 2}})
        checkpoints.wait()
    except InputError as error:
        print(error)
        sys.stdout.flush()
        os._exit(2)
"""
    env = {**os.environ, "XLA_FLAGS": ""}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert out.returncode == 2, out.stderr[-2000:]
    assert "could not be written (File too large)" in out.stdout and out.stdout.count("\n") == 1
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps == [1]
        state, _ = checkpoints.restore({"w": jax.ShapeDtypeStruct((1000,), np.float32)})
        np.testing.assert_array_equal(state["w"], np.arange(1000.0))


@pytest.fixture
def on_devices(monkeypatch):
    """From here on there are so many devices."""
    every = jax.local_devices()

    def choose(count: int) -> None:
        monkeypatch.setattr(jax, "devices", lambda *_: every[:count])

    return choose


def on_mesh(setup, out, mesh: MeshShape, **changes) -> Session:
    """A session of a network some of whose arrays are large enough to be split."""
    experiment, file = setup
    names = {"network.width": "64", "network.depth": "1"} | changes
    names |= {f"mesh.{axis}": str(size) for axis, size in vars(mesh).items()}
    overrides = list(names.items())
    return Session(apply(experiment, overrides), out, source=file.read_text(), overrides=overrides)


@pytest.mark.slow
def test_continued_on_another_mesh_as_if_it_had_stayed(setup, tmp_path, on_devices):
    """Half on eight devices, half on four: the curve, and the parameters, of one device."""
    times = {"train.steps": "12", "train.eval_every": "6", "train.checkpoint_every": "6"}
    straight = on_mesh(setup, tmp_path / "a", MeshShape(), **times)
    list(straight.train())
    for count, mesh, last in (
        (8, MeshShape(data=2, fsdp=4), 6),
        (4, MeshShape(data=1, fsdp=4), 12),
    ):
        on_devices(count)
        part = on_mesh(setup, tmp_path / "b", mesh, **times)
        seen = list(part.train(lambda part=part, last=last: part.step >= last))
        began = seen[0]
        assert isinstance(began, Began) and (began.devices, began.step) == (count, last - 6)
        assert part.step == last and part.folder.experiment().mesh == mesh
    lines = [
        [line for line in folder.log.metrics() if line["kind"] in ("train", "valid")]
        for folder in (straight.folder, part.folder)
    ]
    assert [e["step"] for e in lines[0]] == [e["step"] for e in lines[1]]
    for a, b in zip(*lines, strict=True):
        name = "loss" if a["kind"] == "train" else "nats per token"
        assert b[name] == pytest.approx(a[name], rel=2e-4), a["step"]
    (_, a), (_, b) = final(tmp_path / "a"), final(tmp_path / "b")
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(y, x, atol=2e-3)


@pytest.mark.slow
def test_opened_where_its_mesh_does_not_fit(setup, tmp_path, on_devices):
    """A run of eight devices scores and samples the same on three, or on a mesh that is named."""
    on_devices(8)
    once = {"train.steps": "1"}
    list(on_mesh(setup, tmp_path / "run", MeshShape(data=1, fsdp=8), **once).train())
    how = Perplexity(batch_size=24)
    there = load(tmp_path / "run")
    assert there.remark is None and there.mesh.size == 8
    value = there.perplexity(how)[0].value
    text = there.generate("the ", length=20).texts[0].text
    on_devices(3)
    run = load(tmp_path / "run")
    assert run.remark == "trained on a mesh of fsdp=8, opened on one of fsdp=3"  # it stays split
    assert run.perplexity(how)[0].value == pytest.approx(value, rel=1e-5)
    assert run.generate("the ", length=20).texts[0].text == text
    on_devices(8)
    run = load(tmp_path / "run", mesh=MeshShape(data=4, fsdp=2))
    assert run.remark == "trained on a mesh of fsdp=8, opened on one of data=4 fsdp=2"
    assert run.perplexity(how)[0].value == pytest.approx(value, rel=1e-5)
    on_devices(1)
    assert load(tmp_path / "run").remark.endswith("opened on one of data=1")
    with pytest.raises(InputError, match="mesh fsdp=8 does not fit 1 devices"):
        on_mesh(setup, tmp_path / "run", MeshShape(data=1, fsdp=8))


def elsewhere(setup, out, checkpoints, **changes) -> Session:
    experiment, file = setup
    overrides = [(name.replace("__", "."), str(value)) for name, value in changes.items()]
    return Session(
        apply(experiment, overrides),
        out,
        source=file.read_text(),
        overrides=overrides,
        checkpoints=checkpoints,
    )


@pytest.mark.slow
def test_checkpoints_elsewhere_are_found_and_outlive_the_run_folder(setup, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, store = tmp_path / "run", tmp_path / "store" / "c"
    stop_at(elsewhere(setup, run, "store/c", train__checkpoint_every=5).train, 5)
    assert json.loads((run / "config.json").read_text())["checkpoints"] == str(store)
    assert not (run / "checkpoints").exists()
    monkeypatch.chdir("/")
    assert load(run).step >= 5
    # The same command finds them, with the option or without.
    part = elsewhere(setup, run, str(store))
    kept = next(iter(part.train())).step
    assert kept >= 5 and part.folder.checkpoints == elsewhere(setup, run, None).folder.checkpoints
    # Elsewhere there are none, and the run would begin anew.
    with pytest.raises(
        InputError, match=f"the checkpoints of {run} are in {store}; move them first"
    ):
        elsewhere(setup, run, str(tmp_path / "other"))
    # The machine and its run folder are gone.
    shutil.rmtree(run)
    with pytest.raises(InputError, match=r"of another run; seed: 0 there, 3 here$"):
        elsewhere(setup, run, str(store), seed=3)
    assert not run.exists()
    again = elsewhere(setup, run, str(store))
    assert [e.step for e in again.train() if isinstance(e, Began)] == [kept]
    assert again.finished and load(run).step == 20
    # Moved, and said so.
    store.rename(tmp_path / "moved")
    assert next(iter(elsewhere(setup, run, str(tmp_path / "moved")).train())).step == 20
    assert load(run).step == 20
    experiment, file = setup
    fresh = Session(
        experiment, tmp_path / "next", source=file.read_text(), overrides=[], init_from=str(run)
    )
    assert jax.tree.leaves(fresh.initial)


def test_folder_that_was_only_just_begun_is_begun_again(setup, tmp_path):
    """A run killed in its first moments leaves a folder that is none yet, but is nobody else's."""
    out = tmp_path / "run"
    with stopped(stop_before="config.json"), pytest.raises(KeyboardInterrupt):
        session(setup, out)
    left = {path.name for path in out.iterdir()}
    assert left >= {".begun", ".lock", "experiment.py", "env.json"} and "config.json" not in left
    session(setup, out)
    assert {path.name for path in out.iterdir()} == {
        "experiment.py",
        "env.json",
        "config.json",
        "data",
        ".lock",
        "digests.json",
    }
    (out / "config.json").unlink()
    with pytest.raises(InputError, match="exists and is not a run folder"):
        session(setup, out)


@contextmanager
def stopped(stop_before: str):
    write = RunFolder._write_sealed

    def stopping(self, texts):
        write(self, dict(itertools.takewhile(lambda item: item[0] != stop_before, texts.items())))
        if stop_before in texts:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "_write_sealed", stopping)
        yield


def test_a_line_cut_off_and_samples_after_the_checkpoint_are_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (5, 10, 15):
        folder.log.add("train", step, {"loss": 1.0})
        folder.log.add_samples(step, [f"text {step}", "=== step 99, sample 2 ===\nno heading"])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 16, "lo')
    assert [line["step"] for line in folder.log.metrics()] == [5, 10, 15]
    folder.log.rewind(10)
    assert [line["step"] for line in folder.log.metrics()] == [5, 10]
    samples = (tmp_path / "samples.txt").read_text()
    assert samples.count("=== step 10, sample 1 ===\ntext 10\n") == 1 and "text 15" not in samples
    assert samples.count("no heading") == 2
    folder.log.rewind(0)
    assert folder.log.metrics() == [] and (tmp_path / "samples.txt").read_text() == ""
