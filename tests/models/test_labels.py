"""Label conditioning: what the network is told, what is withheld in training, what it learns."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mdlm.experiment.model import Model
from mdlm.keys import stream
from mdlm.models.block import BlockDiT
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.network import bind, denoiser, init, shapes
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.loop import generate
from mdlm.types import Batch, NetInput, Vocab

COLUMNS, B, L, KINDS = 13, 8, 6, 3
PLAIN = DiT(width=32, depth=2, heads=2, cond_dim=16, dtype="float32")
LABELLED = replace(PLAIN, labels=KINDS)


@pytest.fixture(scope="module")
def params():
    """Parameters that are nowhere 0."""
    random = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(0.3 * random.normal(size=a.shape), jnp.float32)
    return jax.tree.map(draw, shapes(LABELLED, COLUMNS))


def batch_of(label, rows=B):
    return Batch(
        tokens=jnp.zeros((rows, L), jnp.int32),
        loss_mask=jnp.ones((rows, L), bool),
        row=jnp.arange(rows),
        rows=jnp.asarray(rows),
        label=label,
    )


def test_one_row_for_each_label_and_one_for_none(params):
    tokens = jnp.zeros((KINDS + 1, L), jnp.int32)
    ask = jax.jit(lambda x: denoiser(LABELLED, COLUMNS, params)(x).logits())
    told = ask(NetInput(tokens=tokens, label=jnp.arange(KINDS + 1)))
    for i in range(KINDS):
        assert jnp.abs(told[i] - told[i + 1]).max() > 1e-3
    none = ask(NetInput(tokens=tokens))
    np.testing.assert_allclose(none, jnp.broadcast_to(told[-1], none.shape), rtol=1e-5, atol=1e-5)


def test_a_table_of_zeros_says_nothing(params):
    """Its row is added to the vector of the noise level, and reaches the logits in no other way."""
    tokens = jnp.zeros((1, L), jnp.int32)
    ask = lambda network, params, label: jax.jit(
        lambda x: denoiser(network, COLUMNS, params)(x).logits()
    )(NetInput(tokens=tokens, label=label))
    silent = {**params, "label": {"table": jnp.zeros_like(params["label"]["table"])}}
    unlabelled = {name: tree for name, tree in params.items() if name != "label"}
    plain = ask(PLAIN, unlabelled, None)
    np.testing.assert_allclose(ask(LABELLED, silent, jnp.array([1])), plain, rtol=1e-6, atol=1e-6)
    module = bind(LABELLED, COLUMNS, params)
    vector = module._cond(NetInput(tokens=tokens, label=jnp.array([2])), jnp.full((1, 1), 0.7))
    expected = module.noise_level(jnp.full((1, 1), 0.7)) + params["label"]["table"][2][None, None]
    np.testing.assert_allclose(vector, expected, rtol=1e-6)


def test_without_labels_nothing_changes():
    with_labels = init(LABELLED, jax.random.key(0), COLUMNS)
    table = with_labels.pop("label")["table"]
    assert table.shape == (KINDS + 1, 16) and jnp.abs(table).max() > 0
    jax.tree.map(
        np.testing.assert_array_equal, with_labels, init(PLAIN, jax.random.key(0), COLUMNS)
    )
    # A look-up is no product.
    assert LABELLED.flops(3, L, 5, COLUMNS) == PLAIN.flops(3, L, 5, COLUMNS)


def test_labels_are_withheld_in_training_by_place(key):
    rows = 4000
    batch = batch_of(jnp.arange(rows) % KINDS, rows)
    network = replace(LABELLED, label_dropout=0.3)
    label = np.asarray(network.labelled(batch, key).label)
    is_dropped = label == KINDS
    assert abs(is_dropped.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / rows)
    np.testing.assert_array_equal(label[~is_dropped], np.asarray(batch.label)[~is_dropped])
    part = jax.tree.map(lambda x: x if x.ndim == 0 else x[1000:1010], batch)
    np.testing.assert_array_equal(network.labelled(part, key).label, label[1000:1010])
    np.testing.assert_array_equal(network.labelled(batch).label, batch.label)
    assert network.labelled(batch_of(None), key).label is None


@pytest.mark.parametrize("network", [PLAIN, CausalTransformer(width=32, depth=1, heads=2)])
def test_networks_without_labels_are_told_none(network, key):
    assert network.labelled(batch_of(jnp.zeros(B, jnp.int32)), key).label is None


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (dict(labels=-1), "labels=-1"),
        (dict(labels=2, cond_dim=0), "labels=2: labels need adaLN"),
        (dict(labels=2, label_dropout=1.5), "label_dropout=1.5"),
    ],
)
def test_wrong_labels_are_refused(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        DiT(**wrong)


@pytest.mark.parametrize("option", [dict(labels=2), dict(self_conditioning=True)])
def test_options_are_for_networks_that_read_noised_rows_alone(option):
    with pytest.raises(ValueError, match="read noised rows alone"):
        BlockDiT(block_size=4, **option)


def test_a_label_for_a_network_without_is_refused():
    params = init(PLAIN, jax.random.key(0), COLUMNS)
    inputs = NetInput(tokens=jnp.zeros((1, L), jnp.int32), label=jnp.zeros(1, jnp.int32))
    with pytest.raises(ValueError, match="labels=0"):
        denoiser(PLAIN, COLUMNS, params)(inputs)


@pytest.mark.slow
def test_learns_what_a_label_says(tmp_path):
    """Rows of label k hold tokens 4 k .. 4 k + 3 only, each as likely as the others."""
    rows, steps = 48, 150
    vocab = Vocab(size=COLUMNS, mask_id=COLUMNS - 1)
    experiment = tiny.experiment(
        tmp_path / "none.txt", network=replace(LABELLED, label_dropout=0.2, depth=1)
    )
    model = Model(experiment, vocab)
    label = jnp.arange(rows) % KINDS
    tx = optax.adam(5e-3)

    def draw(key):
        tokens = 4 * label[:, None] + jax.random.randint(key, (rows, L), 0, 4)
        return replace(batch_of(label, rows), tokens=tokens)

    def step(carry, key):
        params, state = carry

        def loss(params):
            batch = draw(stream(key, "data"))
            return model.loss(params, stream(key, "loss"), batch).total / (rows * L)

        updates, state = tx.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(key):
        params = model.init(stream(key, "init"))
        keys = jax.random.split(stream(key, "train"), steps)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

    params = train(jax.random.key(0))

    @jax.jit
    def bounds(params, key):
        batch = draw(stream(key, "data"))
        score = lambda batch: model.evaluate(params, stream(key, "loss"), batch).bound.sum()
        both = jnp.stack([score(batch), score(replace(batch, label=None))])
        return both / (rows * L)

    keys = jax.random.split(jax.random.key(2), 20)
    told, untold = np.mean([bounds(params, key) for key in keys], axis=0)
    # ln 4 for a token whose kind is known; the kind, ln 3 for a row, is found out but once.
    assert np.log(4) - 0.05 < told < np.log(4) + 0.1
    assert told + 0.5 * np.log(KINDS) / L < untold < np.log(4) + np.log(KINDS) / L + 0.15

    @jax.jit
    def sample(params, key, label):
        return generate(
            jax.random.split(key, rows),
            jnp.zeros((rows, L), jnp.int32),
            jnp.zeros((rows, L), bool),
            sampler=Ancestral(steps=32),
            diffusion=model.diffusion(params),
            label=label,
        ).tokens

    obeyed = np.asarray(sample(params, jax.random.key(3), label)) // 4
    # What the bound leaves for tokens of other kinds: E -log mass >= -log E mass.
    right = (obeyed == np.asarray(label)[:, None]).mean(axis=1)
    promised = np.exp(np.log(4) - told)
    assert 0.9 < promised < right.mean() + 4 * right.std() / np.sqrt(rows)
    free = np.asarray(sample(params, stream(jax.random.key(3), "free"), None)) // 4
    assert len(np.unique(free[:, 0])) == KINDS
    assert (free == np.asarray(label)[:, None]).mean() < 0.6
