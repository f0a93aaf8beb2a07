"""Runs that train some arrays: their folders, how they are opened, resumed and begun from."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny
from made_run import made

from mdlm.data import Wrap
from mdlm.errors import InputError
from mdlm.experiment import Model, Training
from mdlm.models import Decoder
from mdlm.run import load
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.folder import BASE, RunFolder
from mdlm.runs.weights import named
from mdlm.samplers import Ancestral
from mdlm.train.origin import Carried, Origin
from mdlm.train.session import Session
from mdlm.tuning import Full, LoRA

TRAIN = Training(steps=4, batch_size=8, ema_decay=0.9, checkpoint_every=2, eval_rows=8, keep=5)
TUNE = LoRA(rank=2, alpha=6.0, kernels=("qkv", "mlp.outer"))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    text = tiny.write_text(tmp_path_factory.mktemp("text") / "text.txt", words=600)
    made = tiny.experiment(text, train=TRAIN, sampler=Ancestral(steps=1))
    data = replace(made.data, packing=Wrap(length=8, row_specials=False))
    return replace(made, data=data, network=Decoder(width=16, depth=1, heads=2, kv_heads=1))


def train(experiment, out, **how):
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        session = Session(experiment, out, source="", overrides=[], **how)
        list(session.train())
    return session


@pytest.fixture(scope="module")
def base(experiment, tmp_path_factory):
    return made(tmp_path_factory.mktemp("base") / "run", experiment)


@pytest.fixture(scope="module")
def low(experiment, base, tmp_path_factory):
    """The folder of a run of LoRA."""
    folder = tmp_path_factory.mktemp("low") / "run"
    train(replace(experiment, tune=TUNE), folder, init_from=str(base.folder.path))
    return folder


def arrays(run):
    return {name: np.asarray(a) for name, a in named(run.params).items()}


def test_the_folder_is_whole_by_itself(low, base):
    """Checkpoints have the pairs, the base is there once, and what is opened is both."""
    run, start = load(low), arrays(base)
    with Checkpoints(low / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps == [2, 4]
        state = checkpoints._stored(4)
        ema = checkpoints.manager.restore(4)["state"]["ema"]["adapter"]["network"]["blocks"]
    chosen = ("network.blocks.qkv.kernel", "network.blocks.mlp.outer.kernel")
    held = {name.removeprefix("ema.adapter.")[:-4] for name in state if name.startswith("ema.")}
    assert held == set(chosen) and not any(name.startswith("base") for name in state)
    assert max(np.prod(shape) for shape in state.values()) < start[chosen[0]].size
    opened = arrays(run)
    pairs = [(p["a"], p["b"]) for _, p in sorted(ema["qkv"]["kernel"].items())]
    added = np.concatenate([3.0 * (a @ b) for a, b in pairs], -1)
    assert np.abs(added).max() > 1e-3 and len(pairs) == 3
    np.testing.assert_allclose(opened[chosen[0]], start[chosen[0]] + added, atol=1e-6)
    for name, value in start.items():
        assert np.array_equal(opened[name], value) == (name not in chosen), name
    listed = json.loads((low / "digests.json").read_text())["files"]
    assert BASE in listed
    assert run.experiment.tune == TUNE == RunFolder(low).tune()
    assert RunFolder(base.folder.path).tune() is None
    assert load(low, step=2).step == 2
    assert run.generate(num=1).texts


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(experiment, low, tmp_path):
    shutil.copytree(low, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    session = train(replace(experiment, tune=TUNE), tmp_path / "run")
    assert session.step == 4
    for name, value in arrays(load(low)).items():
        np.testing.assert_array_equal(arrays(load(tmp_path / "run"))[name], value)


@pytest.mark.slow
def test_its_weights_are_the_merged_ones(low, tmp_path):
    shutil.copytree(low, tmp_path / "run")
    run = load(tmp_path / "run")
    run.save_weights()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / BASE).unlink()
    (tmp_path / "run" / "digests.json").unlink()
    for name, value in arrays(load(tmp_path / "run")).items():
        np.testing.assert_array_equal(value, arrays(run)[name])


@pytest.mark.slow
def test_another_run_begins_from_the_merged_parameters(experiment, low, tmp_path):
    """Here with a frozen embedding and other rates; the first step has the learning rate 0."""
    tune = Full(frozen=("embed",), rates=(("mlp", 0.5),))
    one = replace(experiment, tune=tune, train=replace(TRAIN, steps=2))
    train(one, tmp_path / "next", init_from=str(low))
    before, after = arrays(load(low)), arrays(load(tmp_path / "next"))
    assert np.array_equal(before["network.embed.table"], after["network.embed.table"])
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=5e-3)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == set(before) - {"network.embed.table"}


def test_what_is_refused_leaves_nothing(experiment, base, low, tmp_path):
    out, begun = tmp_path / "run", str(base.folder.path)
    for tune, how, message in (
        (TUNE, {}, r"tune=LoRA\(rank=2.*: it keeps parameters of another run; give --init-from"),
        (Full(frozen=("embed",)), {}, "give --init-from RUN"),
        (LoRA(rank=17), dict(init_from=begun), "tune.rank=17: above the width of network.blocks"),
        (LoRA(rank=2, kernels=("kqv",)), dict(init_from=begun), "did you mean qkv"),
        (LoRA(rank=2), dict(fork=str(low)), r"its state is of tune=LoRA\(.*--init-from"),
        (None, dict(fork=str(low)), "this experiment has none; begin from its parameters"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            train(replace(experiment, tune=tune), out, **how)
        assert "\n" not in str(refused.value) and not out.exists()


@pytest.mark.slow
def test_new_tokens_need_embeddings_that_are_trained(experiment, base):
    """With another tokenizer, rows of the table of embeddings would be random and stay so."""
    origin = Origin("--init-from", base.folder, new_tokenizer=True)
    axes = jax.tree.map(lambda a: -1, base.params)
    axes["network"]["embed"]["table"] = 0
    carried = Carried(axes, np.zeros((0, 2), np.int64))
    for tune, is_trained in ((LoRA(rank=2), False), (Full(frozen=("mlp",)), True)):
        model = Model(replace(experiment, tune=tune), base.model.vocab)
        if is_trained:
            kept = named(origin.base(model, base.params, carried))
            assert kept and all("mlp" in name for name in kept)
            continue
        with pytest.raises(InputError, match=r"no network.embed.table for this run, whose tune="):
            origin.base(model, base.params, carried)


@pytest.mark.slow
def test_a_fork_takes_the_base_along(experiment, low, tmp_path):
    longer = replace(experiment, tune=TUNE, train=replace(TRAIN, steps=2))
    session = train(longer, tmp_path / "run", fork=f"{low}@2")
    assert session.step == 2
    for name, value in arrays(load(low, step=2)).items():
        np.testing.assert_array_equal(arrays(load(tmp_path / "run"))[name], value)


@pytest.mark.slow
def test_a_base_that_is_damaged_or_gone_is_named(low, tmp_path):
    shutil.copytree(low, tmp_path / "run")
    path = tmp_path / "run" / BASE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="base.safetensors has other bytes than were written"):
        load(tmp_path / "run")
    path.unlink()
    with pytest.raises(InputError, match="base.safetensors is missing"):
        load(tmp_path / "run")
