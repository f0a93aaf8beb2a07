"""Full fine-tuning: what is frozen, and the learning rate of every other array."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mdlm.errors import InputError
from mdlm.experiment import Experiment
from mdlm.models import Decoder, DiT, Experts
from mdlm.models.network import shapes
from mdlm.optim import AdamW, Muon
from mdlm.runs.weights import named
from mdlm.tuning import Full

DIT = DiT(width=16, depth=3, heads=2, cond_dim=8)
TUNE = Full(
    frozen=("embed", "qkv"),
    rates=(("head", 2.0), ("mlp", 0.5), ("mlp.outer", 0.1)),
    layer_decay=0.8,
)


def experiment(tmp_path, network, optimizer, tune=None) -> Experiment:
    made = tiny.experiment(tmp_path / "none.txt", network=network, optimizer=optimizer)
    return replace(made, tune=tune)


def parameters(network):
    rng = np.random.default_rng(0)
    made = lambda a: jnp.asarray(rng.standard_normal(a.shape), jnp.float32)
    return {"network": jax.tree.map(made, shapes(network, 20))}


def change(made: Experiment, params):
    """The update of the first step, by name."""
    gradient = jax.tree.map(jnp.cos, params)
    tx = made.updates()
    return named(tx.update(gradient, tx.init(params), params)[0])


@pytest.mark.parametrize("optimizer", [AdamW, Muon])
def test_the_step_of_every_array_follows_its_rate(tmp_path, optimizer):
    """Weight decay included: rates of a name, of two names, of the block, and of nothing."""
    tx = optimizer(warmup_steps=0, learning_rate=0.1, weight_decay=0.1, clip_norm=0.0)
    params = parameters(DIT)
    plain = change(experiment(tmp_path, DIT, tx), params)
    own = change(experiment(tmp_path, DIT, tx, TUNE), TUNE.start(jax.random.key(0), params, {}))
    assert set(plain) - set(own) == {"network.embed.table", "network.blocks.qkv.kernel"}
    decay = np.array([0.8**3, 0.8**2, 0.8])
    expected = {
        "network.blocks.mlp.inner.kernel": 0.5 * decay,
        "network.blocks.mlp.outer.kernel": 0.05 * decay,
        "network.blocks.norm1.scale": decay,
        "network.head.kernel": 2.0,
        "network.norm.scale": 1.0,
        "network.noise_level.inner.kernel": 1.0,
    }
    for name, factor in expected.items():
        shaped = np.reshape(factor, (-1, *[1] * (plain[name].ndim - 1)))
        assert np.abs(plain[name]).max() > 0
        np.testing.assert_allclose(own[name], plain[name] * shaped, rtol=1e-5)


def test_tables_of_embeddings_and_both_stacks_have_their_place():
    mixture = Experts(count=4, chosen=2, groups=1, kept_groups=1, hidden=8, dense=2)
    network = Decoder(width=16, depth=5, heads=2, experts=mixture)
    tune, updates = Full(layer_decay=0.5), jax.tree.map(jnp.ones_like, parameters(network))
    tx = tune.scaled(optax.identity(), network.depth)
    found = named(tx.update(updates, tx.init(updates), updates)[0])
    # With depth + 1 = 6: blocks 1 and 2 are the first ones, 3 to 5 the rest.
    np.testing.assert_allclose(found["network.embed.table"], 0.5**6)
    first, rest = (found[f"network.blocks.{s}.norm1.scale"][:, 0] for s in ("first", "rest"))
    np.testing.assert_allclose(first, [0.5**5, 0.5**4])
    np.testing.assert_allclose(rest, [0.5**3, 0.5**2, 0.5])
    np.testing.assert_allclose(found["network.blocks.rest.mlp.inner.kernel"][0], 0.5**3)
    np.testing.assert_allclose(found["network.head.kernel"], 1.0)


def test_frozen_and_trained_are_all():
    params = parameters(DIT)
    base, trained = TUNE.base(params), TUNE.start(jax.random.key(0), params, {})
    assert set(named(base)) == {"network.embed.table", "network.blocks.qkv.kernel"}
    assert not set(named(base)) & set(named(trained))
    merged = TUNE.merged(base, trained)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(params), strict=True):
        assert a is b


def test_without_rates_the_optimizer_is_the_same(tmp_path):
    made = experiment(tmp_path, DIT, AdamW(), Full(frozen=("embed",)))
    params = parameters(DIT)
    plain = made.optimizer.build(made.train.steps).init(params)
    assert jax.tree.structure(made.updates().init(params)) == jax.tree.structure(plain)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(frozen=("embedding",)), r"tune.frozen='embedding': .*did you mean embed\?"),
        (dict(rates=(("heads", 1.0),)), r"tune.rates='heads': .*did you mean head\?"),
        (dict(frozen=("network",)), "nothing is left to train"),
        (dict(rates=(("head", 0.0),)), "a number above 0"),
        (dict(layer_decay=1.5), "at most 1"),
    ],
)
def test_what_does_not_fit_is_refused(values, message):
    with pytest.raises(InputError, match=message) as refused:
        Full(**values).check({"network": shapes(DIT, 20)}, {})
    assert "\n" not in str(refused.value)
