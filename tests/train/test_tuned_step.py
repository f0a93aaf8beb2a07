"""The step of a run that trains some arrays and keeps the others."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import tiny
from test_step import rows

from mdlm.experiment.model import Model
from mdlm.models import Decoder
from mdlm.optim import AdamW
from mdlm.parallel.mesh import MeshShape, put_on_mesh
from mdlm.runs.weights import named
from mdlm.times import balanced_order
from mdlm.train.batches import in_training
from mdlm.train.origin import started_from
from mdlm.train.step import compile_step, create_state, joiner, saved
from mdlm.tuning import Full, LoRA
from mdlm.types import Batch, Vocab

VOCAB = Vocab(size=61, mask_id=60)
NETWORK = Decoder(width=32, depth=1, heads=2, kv_heads=1, mlp="gelu")
TX = AdamW(learning_rate=1e-2, warmup_steps=0)


def experiment(tune, network=NETWORK, **changes):
    made = tiny.experiment(Path("none.txt"), network=network, optimizer=TX, tune=tune)
    return replace(made, **changes)


def beginning(network=NETWORK):
    """Parameters that a run begins from, none of them zero."""
    params = Model(experiment(None, network), VOCAB).init
    params = jax.jit(params)(jax.random.key(5))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: a + 0.05 * rng.standard_normal(a.shape).astype("f"), params)


class Run:
    """A few steps from parameters of another run. `losses` are those of all of them."""

    def __init__(self, made, initial, shape=None, devices=1):
        self.model = Model(made, VOCAB)
        self.mesh = (shape or MeshShape(data=1)).build(jax.devices()[:devices])
        self.size, tx = made.train.batch_size, made.updates()
        state = create_state(self.model, tx, self.mesh, jax.random.key(0))
        self.state = started_from(state, initial)
        self.step = compile_step(self.model, tx, self.mesh)
        self.joined = joiner(self.model, self.mesh)
        self.first, self.losses = jax.device_get(self.state), []

    def steps(self, count, data=None):
        """Makes steps; returns their losses."""
        losses = [self.one(i if data is None else data)[0] for i in range(count)]
        assert self.step._cache_size() == 1
        self.losses += losses
        return losses

    def one(self, data):
        """Makes a step on the batch of this number; returns its loss and all metrics."""
        self.state, values = self.step(self.state, self.batch(data))
        return float(values["loss"]), jax.device_get(values)

    def batch(self, number):
        batch = in_training(rows(self.size, number), balanced_order(self.size))
        return Batch(**put_on_mesh(self.mesh, batch))

    @property
    def params(self):
        return jax.device_get(self.joined(self.state, self.state["params"]))


@pytest.fixture(scope="module")
def initial():
    return beginning()


@pytest.fixture(scope="module")
def whole(initial):
    """Three steps of all parameters."""
    run = Run(experiment(None), initial)
    run.steps(3)
    return run


@pytest.fixture(scope="module")
def low(initial):
    """Three steps of LoRA."""
    run = Run(experiment(LoRA(rank=4)), initial)
    run.steps(3)
    return run


def same(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, jax.device_get(other)))


def test_the_first_loss_is_that_of_the_base_and_only_the_pairs_change(low, whole, initial):
    assert low.losses[0] == pytest.approx(whole.losses[0], rel=1e-6)
    assert abs(low.losses[2] - whole.losses[2]) > 1e-3
    assert same(low.first["base"], low.state["base"]) and same(low.first["base"], initial)
    before, after = named(low.first["params"]), named(low.state["params"])
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert not np.array_equal(value, after[name]), name
    merged, start = named(low.params), named(initial)
    changed = {name for name in start if not np.array_equal(start[name], merged[name])}
    assert changed == {n for n in start if "blocks" in n and "kernel" in n}


def test_the_pairs_are_all_that_optimizer_average_and_checkpoint_hold(low, initial):
    """Of each matrix [i o] rank (i + o) numbers: q, k, v, attn_out, and two of the MLP."""
    pairs = 4 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 2 * (32 + 128))
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    state = low.state
    assert size(state["params"]) == size(state["ema"]) == pairs
    assert size(optax.tree.get(state["opt_state"], "mu")) == pairs
    assert size(optax.tree.get(state["opt_state"], "nu")) == pairs
    assert size(state["opt_state"]) < 2 * pairs + 10
    assert size(saved(state)) < 4 * pairs + 200  # counters, and sums by noise level
    assert size(initial) > 5 * pairs


def test_frozen_arrays_stay_as_they_are(whole, initial):
    run = Run(experiment(Full(frozen=("embed", "blocks.mlp"))), initial)
    losses = run.steps(2)
    start, end = named(initial), named(run.params)
    frozen = {name for name in start if "embed" in name or "blocks.mlp" in name}
    assert len(frozen) == 3
    assert {n for n in start if np.array_equal(start[n], end[n])} == frozen
    assert set(named(run.state["base"])) == frozen
    assert losses[0] == pytest.approx(whole.losses[0], rel=1e-6)


@pytest.mark.slow
def test_two_devices_make_the_same_steps():
    """With matrices that are large enough to be split."""
    network, tune = replace(NETWORK, width=128), LoRA(rank=4)
    initial = beginning(network)
    alone = Run(experiment(tune, network), initial)
    split = Run(experiment(tune, network), initial, MeshShape(data=1, fsdp=2), 2)
    kernel = split.state["base"]["network"]["blocks"]["qkv"]["kernel"]
    assert not kernel.sharding.is_fully_replicated
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(split.state["ema"]))
    np.testing.assert_allclose(split.steps(2), alone.steps(2), rtol=1e-5)
    for name, value in named(alone.params).items():
        np.testing.assert_allclose(named(split.params)[name], value, atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_micro_batches_add_up(low, initial):
    made = experiment(LoRA(rank=4))
    made = replace(made, train=replace(made.train, accumulate=2))
    np.testing.assert_allclose(Run(made, initial).steps(3), low.losses, rtol=1e-5)


def test_a_run_without_has_the_state_of_earlier_versions(whole):
    assert set(whole.state) == {"step", "params", "opt_state", "ema", "watch"}
    shapes = jax.eval_shape(TX.build(20).init, whole.state["params"])
    assert jax.tree.structure(whole.state["opt_state"]) == jax.tree.structure(shapes)
