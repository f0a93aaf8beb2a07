"""The training step: the same on every mesh and in every cut of the batch, compiled once."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
import tiny

from mdlm.experiment.model import Model
from mdlm.models.dit import DiT
from mdlm.optim import AdamW
from mdlm.parallel.mesh import MeshShape, put_on_mesh
from mdlm.times import balanced_order
from mdlm.train.batches import in_training
from mdlm.train.step import compile_step, create_state, ema_decay, init, split
from mdlm.types import Batch, Vocab

VOCAB = Vocab(size=61, mask_id=60)


def rows(size: int, seed: int = 0, padded: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 60, (size, 32)).astype(np.int32)
    lengths = rng.integers(4, 33, size) if padded else np.full(size, 32)
    inside = np.arange(32)[None] < lengths[:, None]
    return {
        "tokens": tokens,
        "loss_mask": inside,
        "is_valid": inside,
        "row": np.arange(size, dtype=np.int32),
        "rows": np.asarray(size, np.int32),
    }


def run(experiment, shape: MeshShape, devices: int, steps: int = 3, padded: bool = False):
    """Parameters and metrics after some steps on the first `devices` devices."""
    model = Model(experiment, VOCAB)
    mesh = shape.build(jax.devices()[:devices])
    tx = experiment.optimizer.build(experiment.train.steps)
    state = create_state(model, tx, mesh, jax.random.key(0))
    step = compile_step(model, tx, mesh)
    order = balanced_order(experiment.train.batch_size)
    metrics = []
    for i in range(steps):
        batch = in_training(rows(experiment.train.batch_size, i, padded), order)
        state, values = step(state, Batch(**put_on_mesh(mesh, batch)))
        metrics.append(jax.device_get(values))
    assert step._cache_size() == 1
    return state, metrics


@pytest.fixture
def experiment(tmp_path):
    return tiny.experiment(tiny.write_text(tmp_path / "text.txt"))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (4, 2)])
def test_sharded_is_unsharded(experiment, shape):
    # Large enough for its matrices to be split, without dropout, which depends on nothing else.
    network = DiT(width=128, depth=2, heads=2, cond_dim=16)
    experiment = replace(experiment, network=network)
    alone, expected = run(experiment, MeshShape(data=1), 1, padded=True)
    state, metrics = run(experiment, MeshShape(data=shape[0], fsdp=shape[1]), 8, padded=True)
    for here, there in zip(metrics, expected, strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)
        assert here["grad_norm"] == pytest.approx(there["grad_norm"], rel=1e-4)
    if shape[1] > 1:
        assert any(
            not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state["params"])
        )
    for a, b in zip(jax.tree.leaves(state["ema"]), jax.tree.leaves(alone["ema"]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_add_up(experiment, accumulate):
    """Rows of unequal length, so that a mean of means would differ."""
    experiment = replace(experiment, network=DiT(width=32, depth=1, heads=2, cond_dim=16))
    whole, expected = run(experiment, MeshShape(data=2), 2, padded=True)
    cut = replace(experiment, train=replace(experiment.train, accumulate=accumulate))
    parts, metrics = run(cut, MeshShape(data=2), 2, padded=True)
    for here, there in zip(metrics, expected, strict=True):
        for name in ("loss", "nelbo", "tokens", "grad_norm"):
            assert here[name] == pytest.approx(there[name], rel=1e-5), name
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_micro_batches_differ_in_dropout(experiment, key):
    """Two micro-batches of the very same rows must not drop the same units."""
    model = Model(replace(experiment, network=replace(experiment.network, dropout=0.5)), VOCAB)
    batch = Batch(**{name: jax.numpy.asarray(value) for name, value in rows(4).items()})
    # Zero-initialised gates would hide what dropout does.
    params = jax.tree.map(
        lambda a: a + 0.05 * jax.random.normal(jax.random.key(3), a.shape), model.init(key)
    )
    losses = [float(model.loss(params, jax.random.key(1), batch, part).total) for part in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    scores = [float(model.evaluate(params, jax.random.key(1), batch).total) for _ in range(2)]
    assert scores[0] == scores[1] != losses[0]


def test_split_keeps_rows_on_their_device_and_balances_times():
    mesh = MeshShape(data=4).build(jax.devices()[:4])
    batch = Batch(**{k: jax.numpy.asarray(v) for k, v in rows(32).items()})
    micros = jax.jit(lambda b: split(mesh, 2, b))(batch)
    assert micros.tokens.shape == (2, 16, 32)
    for m in range(2):
        # Device d holds rows 8d .. 8d + 7 of the batch; its half m is 8d + 4m .. 8d + 4m + 3.
        expected = np.concatenate([8 * d + 4 * m + np.arange(4) for d in range(4)])
        np.testing.assert_array_equal(micros.row[m], expected)
        strata = balanced_order(32)[expected].reshape(4, 4)
        # Each device's four rows of the micro-batch see all four quarters of the noise levels.
        np.testing.assert_array_equal(np.sort(strata // 8, axis=1), np.tile(np.arange(4), (4, 1)))


def test_average_starts_at_the_parameters_and_warms_up(experiment, key):
    model = Model(experiment, VOCAB)
    state = init(model, optax.sgd(0.1), key)
    for a, b in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(state["ema"]), strict=True):
        np.testing.assert_array_equal(a, b)
    for n, expected in ((1, 2 / 11), (10, 11 / 20), (100_000, 0.9999)):
        assert float(ema_decay(0.9999, jax.numpy.asarray(n))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_learning_rates(schedule):
    rate = AdamW(
        learning_rate=1e-3, warmup_steps=10, schedule=schedule, final=0.1, cooldown=0.25
    ).rate(100)
    assert float(rate(0)) == 0
    assert float(rate(5)) == pytest.approx(5e-4)
    assert float(rate(10)) == pytest.approx(1e-3)
    middle = {"constant": 1e-3, "cosine": 0.00055, "wsd": 1e-3}[schedule]
    end = {"constant": 1e-3, "cosine": 1e-4, "wsd": 1e-4}[schedule]
    assert float(rate(55)) == pytest.approx(middle, rel=1e-3)
    assert float(rate(100)) == pytest.approx(end, rel=1e-3)


def test_decay_acts_on_matrices_only(experiment, key):
    """Stacked biases and norm scales are two-dimensional, and still not matrices."""
    params = Model(experiment, VOCAB).init(key)
    tx = AdamW(learning_rate=1.0, warmup_steps=0, weight_decay=0.5, clip_norm=0).build(10)
    zero = jax.tree.map(jax.numpy.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    shrunk = {
        jax.tree_util.keystr(path): bool(np.abs(u).max() > 0)
        for path, u in jax.tree_util.tree_leaves_with_path(updates)
    }
    vectors = [name for name in shrunk if "norm" in name or "bias" in name]
    assert vectors and not any(shrunk[name] for name in vectors)
    matrices = [name for name in shrunk if "kernel" in name and "qkv" in name]
    assert matrices and all(shrunk[name] for name in matrices)
