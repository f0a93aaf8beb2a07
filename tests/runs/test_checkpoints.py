"""Checkpoints by themselves: in the background, whole or not there, on any mesh, damaged."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from orbax.checkpoint._src.serialization import serialization

from mdlm.data.dataset import Dataset
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.model import Model
from mdlm.models.dit import DiT
from mdlm.parallel.mesh import MeshShape
from mdlm.runs.checkpoint_paths import located, newest_in
from mdlm.runs.checkpoints import Checkpoints
from mdlm.train.step import abstract_state, init

STATE = {"step": jnp.zeros((), jnp.int32), "ema": {"w": jnp.arange(3e4).reshape(100, 300)}}


@pytest.fixture
def held(monkeypatch):
    """No array is written before this event is set."""
    event = threading.Event()
    event.in_time = True
    write = serialization.async_serialize_from_host

    async def later(*arguments, **named):
        event.in_time &= await asyncio.to_thread(event.wait, 20)
        return await write(*arguments, **named)

    monkeypatch.setattr(serialization, "async_serialize_from_host", later)
    return event


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_save_holds_nothing_up_and_has_the_state_of_its_step(held, tmp_path):
    state = jax.tree.map(jnp.copy, STATE)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"position": 7})
        assert "1" not in names(tmp_path)
        # The next step takes over the memory of the state that is still to be written.
        step = jax.jit(lambda s: jax.tree.map(lambda a: a * 0 - 1, s), donate_argnums=0)
        state = jax.block_until_ready(step(state))
        held.set()
        checkpoints.wait()
        assert held.in_time and names(tmp_path) == {"1"}
        found, data = checkpoints.restore(jax.eval_shape(lambda: STATE))
    jax.tree.map(np.testing.assert_array_equal, found, STATE)
    assert data == {"position": 7}


def test_who_reads_leaves_a_save_that_is_under_way_alone(held, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, STATE, {})
        with Checkpoints(tmp_path, read_only=True) as others:
            assert others.latest is None and others.steps == []
        held.set()
        checkpoints.wait()
        assert checkpoints.latest == 1
        with Checkpoints(tmp_path, read_only=True) as others:
            assert others.latest == 1
            found = others.restore_part({"step": jax.ShapeDtypeStruct((), np.int32)})
    assert found == {"step": 0}


def test_who_reads_makes_no_folder(tmp_path):
    with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
        assert checkpoints.latest is None
        with pytest.raises(InputError, match="no checkpoint"):
            checkpoints.restore_part({})
    assert names(tmp_path) == set()


CUT = """
import asyncio, os, signal, sys
import jax.numpy as jnp
from orbax.checkpoint._src.serialization import serialization
from mdlm.runs.checkpoints import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, {"w": jnp.arange(1000.0)}, {"position": 1}, {"nats per token": 2.0})
    checkpoints.wait()
    write = serialization.async_serialize_from_host
    async def killed(*arguments, **named):
        await write(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    serialization.async_serialize_from_host = killed
    checkpoints.save(2, {"w": jnp.arange(1000.0)}, {"position": 2}, {"nats per token": 1.0})
    checkpoints.wait()
"""


def test_a_save_that_was_cut_off_is_no_checkpoint_and_is_cleared_away(tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", CUT, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    assert out.returncode == -signal.SIGKILL, out.stderr[-2000:]
    left = names(tmp_path)
    assert len(left) == 2 and "1" in left and "2" not in left
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps == [1] and names(tmp_path) == left
    with Checkpoints(tmp_path) as checkpoints:
        state, data = checkpoints.restore({"w": jax.ShapeDtypeStruct((1000,), np.float32)})
        assert data == {"position": 1}
        checkpoints.save(3, state, {"position": 3})
        checkpoints.wait()
        assert checkpoints.steps == [1, 3] and names(tmp_path) == {"1", "3"}


def test_newest_best_and_every_so_many_are_kept_together(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=6) as checkpoints:
        for step in range(2, 22, 2):
            # Validated at every second save; best at 8.
            found = {} if step % 4 else {"nats per token": abs(step - 8) + 1.0}
            checkpoints.save(step, {"w": STATE["ema"]["w"]}, {"position": step}, found)
        checkpoints.wait()
        assert checkpoints.steps == [6, 8, 12, 18, 20]
    assert names(tmp_path) == {"6", "8", "12", "18", "20"}
    with Checkpoints(tmp_path, keep=1) as checkpoints:  # those for good are no longer asked for
        checkpoints.save(21, {"w": STATE["ema"]["w"]}, {})
        checkpoints.wait()
        assert checkpoints.steps == [8, 21]


def test_the_best_is_that_of_the_metric_that_was_asked_for(tmp_path):
    """Also of checkpoints that were saved when another one was asked for."""
    state = {"w": STATE["ema"]["w"]}
    values = {1: (3.0, 1.0), 2: (1.0, 3.0), 3: (2.0, 2.0), 4: (4.0, float("nan"))}
    with Checkpoints(tmp_path / "a", keep=1, best="bits per byte") as checkpoints:
        for step, (nats, bits) in values.items():
            checkpoints.save(step, state, {}, {"nats per token": nats, "bits per byte": bits})
        checkpoints.wait()
        assert checkpoints.steps == [1, 4] and checkpoints.best == 1
    with Checkpoints(tmp_path / "b", keep=4) as checkpoints:
        for step, (nats, bits) in values.items():
            checkpoints.save(step, state, {}, {"nats per token": nats, "bits per byte": bits})
        checkpoints.wait()
        assert checkpoints.steps == [1, 2, 3, 4] and checkpoints.best == 2
    with Checkpoints(tmp_path / "b", keep=1, best="bits per byte") as checkpoints:
        checkpoints.save(5, state, {})
        checkpoints.wait()
        assert checkpoints.steps == [1, 5] and checkpoints.best == 1


def test_half_deleted_is_deleted_with_the_next_save(tmp_path):
    """A run may be killed while it removes an old checkpoint."""
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, STATE, {"position": step}, {"nats per token": 1.0 * step})
        checkpoints.wait()
        assert checkpoints.steps == [1, 2, 3]
    for name in ("metrics/metrics", "data/metadata", "commit_success.txt"):
        (tmp_path / "2" / name).unlink()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(jax.eval_shape(lambda: STATE))[1] == {"position": 3}
        checkpoints.save(4, STATE, {"position": 4}, {"nats per token": 4.0})
        checkpoints.wait()
        assert checkpoints.steps == [1, 3, 4]


def largest(folder, name):
    """The one with the values of the arrays."""
    return max(folder.glob(name), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    ("name", "keeps"),
    [
        ("state/ocdbt.process_0/d/*", 0.5),
        ("state/ocdbt.process_0/d/*", None),
        ("state/manifest.ocdbt", None),
        ("state/_METADATA", 0.5),
        ("data/metadata", 0),
        ("metrics/metrics", 0.5),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_damage_is_told_in_a_line_that_names_the_way_out(tmp_path, capfd, name, keeps, verify):
    random = np.random.default_rng(0).normal(size=(100, 300)).astype(np.float32)
    state = {"step": STATE["step"], "ema": {"w": jnp.asarray(random)}}
    with Checkpoints(tmp_path) as checkpoints:
        for step in (3, 5):
            checkpoints.save(step, state, {"position": step}, {"nats per token": 1.0})
        checkpoints.wait()
    file = largest(tmp_path / "5", name)
    if keeps is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: int(keeps * file.stat().st_size)])
    abstract = jax.eval_shape(lambda: state)
    said = "the checkpoint of step 5 is damaged .*; to use the one of step 3, move .*/5 away$"
    with pytest.raises(InputError, match=said) as error:
        with Checkpoints(tmp_path, verify=verify) as checkpoints:
            checkpoints.restore(abstract)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    # Nothing beside that line: what orbax has to say would be many.
    assert capfd.readouterr().err == ""
    (tmp_path / "5").rename(tmp_path / "five")
    with Checkpoints(tmp_path) as checkpoints:
        found, data = checkpoints.restore(abstract)
        np.testing.assert_array_equal(found["ema"]["w"], random)
        assert data == {"position": 3}


def test_the_only_one_is_damaged(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, STATE, {})
        checkpoints.wait()
    (tmp_path / "1" / "state" / "_METADATA").unlink()
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(InputError, match="step 1 is damaged .*; no older checkpoint is left$"),
    ):
        checkpoints.restore_part({"step": jax.ShapeDtypeStruct((), np.int32)})


def test_where_checkpoints_can_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(located("a/b")) == str(tmp_path / "a" / "b")
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    assert str(located("gs://bucket/run")) == "gs://bucket/run"
    for use in (Checkpoints, lambda url: newest_in(located(url))):
        with pytest.raises(InputError, match=r"^gs://bucket/run: .* gcsfs: pip install gcsfs$"):
            use("gs://bucket/run")
    with pytest.raises(
        InputError, match="^memory://run: checkpoints are kept in a folder, or on gs://"
    ):
        located("memory://run")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    """Large enough for arrays that `fsdp` splits."""
    text = tiny.write_text(tmp_path_factory.mktemp("text") / "text.txt", words=400)
    network = DiT(width=64, depth=1, heads=4, cond_dim=16)
    experiment: Experiment = tiny.experiment(text, network=network)
    dataset: Dataset = experiment.data.load(None)
    return Model.on(experiment, dataset)


MESHES = [
    (1, MeshShape()),
    (8, MeshShape()),
    (8, MeshShape(data=1, fsdp=8)),
    (8, MeshShape(data=2, fsdp=4)),
    (4, MeshShape(data=2, fsdp=2)),
    (8, MeshShape(data=2, fsdp=2, tensor=2)),
    (8, MeshShape(data=1, fsdp=2, sequence=2, tensor=2)),
]


def test_saved_on_one_mesh_restored_on_another(model, tmp_path):
    """Bit by bit; every array lies as the new mesh wants it."""
    tx = model.experiment.optimizer.build(20)
    meshes = [shape.build(jax.devices()[:count]) for count, shape in MESHES]
    states = [abstract_state(model, tx, mesh) for mesh in meshes]
    split = [any(not a.sharding.is_fully_replicated for a in jax.tree.leaves(s)) for s in states]
    assert split == [False, False, True, True, True, True, True]
    fresh = jax.jit(partial(init, model, tx))(jax.random.key(0))
    here = jax.device_get(fresh)
    rng = np.random.default_rng(0)
    here["opt_state"] = jax.tree.map(
        lambda a: rng.normal(size=a.shape).astype(a.dtype), here["opt_state"]
    )
    for i, abstract in enumerate(states):
        state = jax.tree.map(lambda a, due: jax.device_put(a, due.sharding), here, abstract)
        with Checkpoints(tmp_path / str(i)) as checkpoints:
            checkpoints.save(i, state, {"position": i})
            checkpoints.wait()
            due = states[(i + 2) % len(states)]
            found, data = checkpoints.restore(due)
            assert data == {"position": i}
            assert set(found) == {"step", "params", "opt_state", "ema", "watch"}
            jax.tree.map(np.testing.assert_array_equal, found, here)
            assert jax.tree.all(jax.tree.map(lambda a, d: a.sharding == d.sharding, found, due))


def test_a_folder_whose_name_is_not_utf_8_is_refused():
    with pytest.raises(InputError, match="not UTF-8 here: choose another, or set PYTHONUTF8=1"):
        located("runs/b\udcff")
