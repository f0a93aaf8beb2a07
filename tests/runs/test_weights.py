"""Weights by themselves: written, placed on a mesh, opened, trained on, or refused in a line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mdlm.config.overrides import apply
from mdlm.errors import InputError
from mdlm.experiment.evaluation import Perplexity
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.model import Model
from mdlm.parallel.mesh import MeshShape
from mdlm.run import load
from mdlm.runs import weights
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.folder import RunFolder
from mdlm.runs.parameters import restore_parameters
from mdlm.runs.weights import NAME, Weights
from mdlm.train.session import Session
from mdlm.train.step import abstract_state

WIDE = [("network.width", "64"), ("network.depth", "1")]
"""Some arrays are then large enough to be split."""


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> tuple[Experiment, str]:
    """The tiny experiment, and a file that defines it."""
    folder = tmp_path_factory.mktemp("text")
    text = tiny.write_text(folder / "text.txt", words=600)
    return apply(tiny.experiment(text), WIDE), tiny.FILE.format(text=str(text))


@pytest.fixture(scope="module")
def model(setup) -> Model:
    return Model.on(setup[0], setup[0].data.load(None))


@pytest.fixture(scope="module")
def params(model) -> dict:
    return jax.device_get(jax.jit(model.init)(jax.random.key(1)))


@pytest.fixture
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


def run_folder(setup, path: Path, params, **how) -> RunFolder:
    """A run folder that has weights alone."""
    experiment, source = setup
    folder = RunFolder(path)
    folder.begin(source, WIDE, experiment)
    experiment.data.load(None).tokenizer.save(folder.data)
    weights.write(path, params, **{"step": 0, **how})
    return folder


def mesh_of(count: int, **shape):
    return MeshShape(**shape).build(jax.devices()[:count])


MESHES = [(1, dict(data=1)), (8, dict(data=2, fsdp=4)), (8, dict(data=1, fsdp=4, tensor=2))]


@pytest.mark.parametrize(("count", "shape"), MESHES)
def test_parameters_lie_as_in_a_training_state(model, count, shape):
    mesh = mesh_of(count, **shape)
    state = abstract_state(model, model.experiment.optimizer.build(20), mesh)
    found = model.abstract_params(mesh)
    described = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype, a.sharding), tree)
    assert described(found) == described(state["params"]) == described(state["ema"])
    split = [not a.sharding.is_fully_replicated for a in jax.tree.leaves(found)]
    assert any(split) == (count > 1)


@pytest.mark.parametrize(("count", "shape"), MESHES)
def test_written_and_placed_tensor_by_tensor(model, params, tmp_path, count, shape):
    """Whatever mesh they come from and go to, and in each dtype."""
    spread = jax.device_put(
        params, jax.tree.map(lambda a: a.sharding, model.abstract_params(mesh_of(8, fsdp=4)))
    )
    abstract = model.abstract_params(mesh_of(count, **shape))
    for dtype in (None, "bfloat16", "float16"):
        weights.write(tmp_path, spread, step=7, dtype=dtype, fingerprint="abc")
        file = Weights(tmp_path / NAME)
        assert file.metadata == {
            "step": "7",
            "parameters": "ema",
            "dtype": dtype or "float32",
            "fingerprint": "abc",
        }
        assert file.shapes["network.blocks.qkv.kernel"] == (1, 64, 192)
        found = file.restore(abstract)
        assert jax.tree.all(
            jax.tree.map(lambda a, due: a.sharding == due.sharding, found, abstract)
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), found, params
        )
        assert {a.dtype.name for a in jax.tree.leaves(found)} == {dtype or "float32"}
    assert {path.name for path in tmp_path.iterdir()} == {NAME, "digests.json"}


def test_a_value_too_large_for_the_dtype_is_refused(tmp_path):
    large = {"network": {"w": np.array([1.0, -7e4], np.float32)}}
    with pytest.raises(InputError, match=r"^network\.w has a value of 7e\+04, above float16"):
        weights.write(tmp_path, large, step=0, dtype="float16")
    assert not list(tmp_path.iterdir())
    # What a process has learned keeps its dtype.
    weights.write(tmp_path, {**large, "process": large["network"]}, step=0, dtype="bfloat16")
    assert Weights(tmp_path / NAME).dtypes == {"network.w": "BF16", "process.w": "F32"}


def test_what_does_not_fit_is_one_line_with_both_shapes(model, params, tmp_path):
    weights.write(tmp_path, params, step=0)
    tensors = load_file(tmp_path / NAME)
    table = tensors.pop("network.embed.table")
    wrong = {
        **{name: value for name, value in tensors.items() if name != "network.norm.scale"},
        "network.embed.table": table[:-1],
        "network.more": np.zeros((2, 3), np.float32),
    }
    save_file(wrong, tmp_path / NAME, {"step": "0"})
    abstract = model.abstract_params(mesh_of(1, data=1))
    rows = len(table)
    with pytest.raises(InputError) as caught:
        Weights(tmp_path / NAME).restore(abstract)
    assert str(caught.value) == (
        f"{tmp_path / NAME} does not fit this experiment:"
        f" network.embed.table is ({rows - 1}, 64) in the file, ({rows}, 64) in the experiment;"
        " network.more is (2, 3) in the file, missing in the experiment;"
        " network.norm.scale is missing in the file, (64,) in the experiment"
    )
    whole = {**tensors, "network.embed.table": np.zeros(table.shape, np.int32)}
    save_file(whole, tmp_path / NAME)
    with pytest.raises(InputError, match=r"embed\.table is I32, not F32 or BF16 or F16$"):
        Weights(tmp_path / NAME).restore(abstract)
    (tmp_path / NAME).write_bytes(b"not weights")
    with pytest.raises(InputError, match="not a readable file of weights"):
        Weights.of(tmp_path, verify=False)


def test_components_that_both_have(model, params, tmp_path):
    abstract = model.abstract_params(mesh_of(1, data=1))
    learned = {"process": {"rate": np.ones(3, np.float32)}}
    weights.write(tmp_path, {**params, **learned}, step=0)
    with pytest.raises(InputError, match=r"process\.rate is .*, missing in the experiment$"):
        Weights(tmp_path / NAME).restore(abstract)
    assert set(Weights(tmp_path / NAME).restore(abstract, some=True)) == {"network"}
    weights.write(tmp_path, learned, step=0)
    with pytest.raises(InputError, match=r"network\.\S+ is missing in the file"):
        Weights(tmp_path / NAME).restore(abstract, some=True)


def test_the_newest_of_checkpoints_and_weights(setup, model, params, tmp_path):
    folder = run_folder(setup, tmp_path / "run", params)
    abstract = model.abstract_params(mesh_of(1, data=1))

    def opened(step=None) -> tuple[int, float]:
        """The step, and a number that tells which parameters these are."""
        at, found = restore_parameters(folder, abstract, step)
        return at, float(found["network"]["norm"]["scale"][0])

    assert opened() == (0, 1.0)
    with pytest.raises(InputError, match=r"^step 0: .*has weights \(of step 0\) and no check"):
        opened(0)
    with Checkpoints(folder.checkpoints) as checkpoints:
        for step in (2, 4):
            ema = jax.tree.map(lambda a, step=step: a * step, params)
            checkpoints.save(
                step, {"step": jnp.asarray(step), "ema": ema}, {}, {"nats per token": 1.0 * step}
            )
    assert opened() == (4, 4.0) and opened(2) == (2, 2.0)
    weights.write(folder.path, jax.tree.map(lambda a: a * 9, params), step=4)
    assert opened() == (4, 9.0) and opened(4) == (4, 4.0)
    weights.write(folder.path, params, step=3)
    assert opened() == (4, 4.0)
    with pytest.raises(InputError, match="no checkpoint of step 3"):
        opened(3)


OPEN = """
import json, sys
import mdlm
run = mdlm.load(sys.argv[1])
nats = run.perplexity()[0].value
text = run.generate("the ", length=12, steps=4).texts[0].text
entered = [name for name in sys.modules if name.startswith(("mdlm.train", "mdlm.interop"))]
print(json.dumps({"step": run.step, "nats": nats, "text": text, "entered": entered}))
"""


def test_opening_evaluating_and_sampling_enters_no_training_code(setup, params, tmp_path):
    folder = run_folder(setup, tmp_path / "run", params, dtype="bfloat16")
    out = subprocess.run(
        [sys.executable, "-c", OPEN, str(folder.path)],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    assert out.returncode == 0, out.stderr[-3000:]
    found = json.loads(out.stdout)
    assert found["entered"] == [] and found["step"] == 0
    assert np.isfinite(found["nats"]) and found["text"].startswith("the ")


def test_half_precision_is_evaluated_as_it_is(setup, params, tmp_path, one_device):
    """Each number of the result is that of float32 parameters which were rounded."""
    rounded = jax.tree.map(lambda a: a.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    half = load(run_folder(setup, tmp_path / "half", params, dtype="bfloat16").path)
    full = load(run_folder(setup, tmp_path / "full", rounded).path)
    assert {a.dtype.name for a in jax.tree.leaves(half.params)} == {"bfloat16"}
    once = Perplexity(passes=1)
    values = [run.perplexity(once)[0].value for run in (half, full)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    again = half.save_weights()
    with safe_open(again, "numpy") as file:
        assert file.metadata()["fingerprint"] == half.folder.config()["fingerprint"]
    assert set(Weights(again).dtypes.values()) == {"BF16"}


def session(setup, out, **named) -> Session:
    experiment, source = setup
    short = {"steps": 1, "eval_rows": 16, "sample_length": 8}
    overrides = [*WIDE, *((f"train.{name}", str(value)) for name, value in short.items())]
    return Session(apply(experiment, overrides), out, source=source, overrides=overrides, **named)


@pytest.mark.slow
def test_training_begins_with_weights(setup, params, tmp_path, one_device):
    """In the folder that has them, or in another. Step 0 has learning rate 0 and changes none."""
    folder = run_folder(setup, tmp_path / "own", params, dtype="bfloat16")
    here = session(setup, tmp_path / "own")
    there = session(setup, tmp_path / "other", init_from=str(tmp_path / "own"))
    for one in (here, there):
        events = list(one.train())
        assert events[0].step == 0 and one.finished
        step, found = restore_parameters(one.folder, one.model.abstract_params(one.mesh))
        assert step == 1
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
            assert a.dtype == np.float32
            np.testing.assert_array_equal(a, b.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert load(folder.path).step == 1
    # From here on its training state counts.
    assert session(setup, tmp_path / "own").initial is None


def test_weights_of_a_later_step_are_no_training_state(setup, params, tmp_path, one_device):
    folder = run_folder(setup, tmp_path / "run", params, step=300)
    with pytest.raises(
        InputError, match=r"has the weights of step 300, .*--init-from \S+run, and another --out"
    ):
        session(setup, folder.path)
