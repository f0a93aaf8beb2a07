"""The mixture of experts: no token dropped, gradients, caches, its load in the log, meshes."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh, PartitionSpec

from mdlm.errors import InputError
from mdlm.experiment.model import Model
from mdlm.models import Decoder, Experts
from mdlm.models.experts import balance, chosen, mixed
from mdlm.models.network import denoiser, rests, shapes
from mdlm.optim import decayed, hidden
from mdlm.parallel import sharding
from mdlm.parallel.mesh import AXES, MeshShape, on
from mdlm.types import Batch, NetInput, Reading, Vocab

B, L, V = 2, 12, 19
FEW = Experts(count=8, chosen=2, groups=4, kept_groups=2, hidden=12, dense=1)
NETWORK = Decoder(width=32, depth=3, heads=4, hidden=24, dtype="float32", experts=FEW)
CAUSAL = dataclasses.replace(NETWORK, attends="causal")


def params_of(network, vocab_size=V):
    random = np.random.default_rng(0)

    def draw(path, array):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.3 * random.normal(size=array.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(network, vocab_size))


@functools.partial(jax.jit, static_argnums=0)
def predicted(network, params, inputs):
    made = denoiser(network, V, params)(inputs)
    return made.logits(), made.scalars


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(3), (B, L), 0, V)


def quickly(fn, *arguments):
    """The value of `fn`, whose program is compiled without optimisation, as it runs once."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(fn).lower(*arguments).compile(compiler_options=options)(*arguments)


def one_by_one(x, which, weights, inner, outer):
    """Every token by its experts, one after another, in float64."""
    out = np.zeros_like(x)
    for i, j in np.ndindex(which.shape):
        if 0 <= which[i, j] < len(inner):
            gate, y = np.split(x[i] @ inner[which[i, j]], 2)
            out[i] += weights[i, j] * (gate / (1 + np.exp(-gate)) * y) @ outer[which[i, j]]
    return out


@pytest.mark.parametrize("which", ["spread", "all by one", "none here"])
def test_no_token_is_dropped_and_gradients_are_those_of_a_loop(which):
    random = np.random.default_rng(1)
    x, inner, outer = (random.normal(size=s) for s in ((9, 6), (4, 6, 10), (4, 5, 6)))
    weights = random.uniform(size=(9, 3))
    # -1 and 4 are experts of other devices.
    which = {
        "spread": np.array([random.permutation(6)[:3] - 1 for _ in range(9)]),
        "all by one": np.tile([2, -1, 4], (9, 1)),
        "none here": np.full((9, 3), 7),
    }[which]

    @jax.jit
    def value(x, weights, inner, outer):
        out = lambda *a: mixed("swiglu", a[0], jnp.asarray(which), *a[1:])
        made, pull = jax.vjp(out, x, weights, inner, outer)
        return made, pull(jnp.ones_like(made))

    arrays = [jnp.asarray(a, jnp.float32) for a in (x, weights, inner, outer)]
    made, gradients = value(*arrays)
    due = lambda x, w, i, o: one_by_one(x, which, w, i, o)
    np.testing.assert_allclose(made, due(x, weights, inner, outer), rtol=1e-4, atol=1e-5)
    given = [x, weights, inner, outer]
    for n, gradient in enumerate(gradients):
        way = random.normal(size=given[n].shape)
        moved = lambda h, n=n, way=way: [a + h * way if i == n else a for i, a in enumerate(given)]
        slope = (due(*moved(1e-5)).sum() - due(*moved(-1e-5)).sum()) / 2e-5
        np.testing.assert_allclose((way * gradient).sum(), slope, rtol=1e-3, atol=1e-3)


def test_one_expert_has_the_weight_of_its_score():
    one = Experts(count=4, chosen=1, groups=1, kept_groups=1, hidden=8, scaling=2.0)
    x, router = (
        jnp.array([[[1.0, -1.0]]]),
        jnp.array([[0.0, 2.0, 1.0, 0.0]] * 2) * jnp.array([[1.0], [0.5]]),
    )
    which, weights = chosen(one, x, router, jnp.array([0.0, 0.0, 5.0, 0.0]))
    assert which.item() == 2  # by the bias, which weighs nothing
    np.testing.assert_allclose(weights.item(), 2 / (1 + math.exp(-0.5)), rtol=1e-6)


def test_the_cache_gives_the_logits_of_whole_rows(tokens):
    params = params_of(CAUSAL)
    plain, _ = predicted(CAUSAL, params, NetInput(tokens=tokens))

    @jax.jit
    def read(params, reading, at):
        told = denoiser(CAUSAL, V, params)(NetInput(tokens=tokens, reading=reading))
        return told.logits(at), told.cache

    stored = None
    for read_now in ([0, 1], [2], [3], [4]):
        places = jnp.broadcast_to(jnp.asarray(read_now, jnp.int32), (B, len(read_now)))
        at = read_now[-1] + 1
        found, stored = read(params, Reading(stored=stored, at=places), jnp.arange(B) * L + at)
        np.testing.assert_allclose(found, plain[:, at], rtol=1e-4, atol=1e-5)
    assert stored.keys.shape == (3, B, L, 4, 8)


def test_the_deferred_last_block_gives_the_same_logits(tokens):
    at = jnp.array([1, 4, 11, 20])
    params = params_of(NETWORK)
    deferred = lambda params: denoiser(NETWORK, V, params)(
        NetInput(tokens=tokens, defer_last_block=True)
    ).logits(at)
    plain, _ = predicted(NETWORK, params, NetInput(tokens=tokens))
    found = jax.jit(deferred)(params)
    np.testing.assert_allclose(found, plain.reshape(-1, V)[at], rtol=1e-4, atol=1e-5)


def test_balance_is_that_of_the_worst_block():
    found = balance(jnp.array([[2.0, 2.0, 2.0, 2.0], [6.0, 2.0, 0.0, 0.0]]))
    assert found["expert_load_largest"] == 3
    due = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    np.testing.assert_allclose(found["expert_load_entropy"], due, rtol=1e-6)
    even = balance(jnp.ones((2, 4)))
    assert even["expert_load_largest"] == 1
    np.testing.assert_allclose(even["expert_load_entropy"], math.log(4), rtol=1e-6)


def test_training_logs_the_balance_and_the_bias_gets_no_gradient():
    experiment = tiny.experiment(Path("nowhere.txt"), network=NETWORK)
    model = Model(experiment, Vocab(size=V, mask_id=V - 1))
    params = {"network": params_of(NETWORK)}
    tokens = jax.random.randint(jax.random.key(0), (4, 8), 0, V - 1)
    every = jnp.ones((4, 8), bool)
    batch = Batch(tokens=tokens, loss_mask=every, row=jnp.arange(4), rows=jnp.asarray(4))

    def graded(params):
        def loss(params):
            terms = model.loss(params, jax.random.key(1), batch)
            return terms.total, terms.scalars

        return jax.grad(loss, has_aux=True)(params)

    gradient, scalars = quickly(graded, params)
    assert 1 < scalars["expert_load_largest"] <= 8 / 2
    assert math.log(2) <= scalars["expert_load_entropy"] < math.log(8)
    mlp = gradient["network"]["blocks"]["rest"]["mlp"]
    assert not mlp["selection_bias"].any()
    for name in ("router", "inner", "outer"):
        assert (mlp[name]["kernel"] != 0).any()


def test_optimizers_take_each_expert_for_a_matrix():
    params = shapes(NETWORK, V)
    mlp = lambda tree: tree["blocks"]["rest"]["mlp"]
    labels, decay = mlp(hidden(params)), mlp(decayed(params))
    assert labels["inner"]["kernel"] == labels["outer"]["kernel"] == "muon"
    assert labels["selection_bias"] == "adam" and not decay["selection_bias"]
    assert decay["inner"]["kernel"]


@pytest.mark.parametrize(
    "shape, experts",
    [
        ((1, 2, 1, 2), 8),
        pytest.param((1, 1, 2, 2), 8, marks=pytest.mark.slow),
        pytest.param((1, 1, 1, 4), 6, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_mesh_changes_no_gradient(shape, experts, monkeypatch):
    """With 6 experts, 4 devices of `tensor` have all experts each."""
    monkeypatch.setattr(sharding, "SMALL", 64)
    few = dataclasses.replace(FEW, count=experts, groups=2, kept_groups=1)
    network = dataclasses.replace(NETWORK, depth=2, experts=few)
    params = params_of(network)
    tokens = jax.random.randint(jax.random.key(3), (4, 8), 0, V)

    def graded(params, tokens):
        def loss(params):
            made = denoiser(network, V, params)(NetInput(tokens=tokens))
            return jnp.square(made.logits()).mean(), made.scalars

        return jax.grad(loss, has_aux=True)(params)

    alone = quickly(graded, params, tokens)
    mesh = MeshShape(**dict(zip(AXES, shape, strict=True))).build(jax.devices()[:4])
    network.check_mesh(mesh, 8)
    lies = sharding.parameter_sharding(mesh, params, rests(network, V))
    inner = lies["blocks"]["rest"]["mlp"]["inner"]["kernel"].spec
    assert sharding.axes_of(inner[1]) == (() if experts == 6 else ("tensor",))

    def on_mesh(params, tokens):
        with on(mesh):
            return graded(params, tokens)

    by_rows = jax.NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    found = quickly(on_mesh, jax.device_put(params, lies), jax.device_put(tokens, by_rows))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_flops_count_the_chosen_experts_only():
    attention = 4 * 32**2 + 2 * L * 32
    mixture = 3 * 32 * 12 * (2 + 1) + 32 * 8
    blocks = 3 * attention + 3 * 24 * 32 + 2 * mixture
    assert NETWORK.flops(3, L, 5, V) == 2 * (3 * L * blocks + 5 * 32 * V)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(count=0), "count=0: must be at least 1"),
        (dict(groups=3), "groups=3: must divide count=8"),
        (dict(groups=8, kept_groups=8), "groups=8: must divide count=8 into groups of at least 2"),
        (dict(kept_groups=5), "kept_groups=5"),
        (dict(chosen=5), "chosen=5: .*the 4 experts of the kept groups"),
        (dict(scaling=0.0), "scaling=0.0: must be above 0"),
        (dict(shared=-1), "shared=-1: must be at least 0"),
    ],
)
def test_impossible_experts_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(FEW, **wrong)


def test_impossible_places_are_refused():
    with pytest.raises(ValueError, match="experts.dense=3: must be below depth=3"):
        dataclasses.replace(NETWORK, experts=dataclasses.replace(FEW, dense=3))
    odd = dataclasses.replace(NETWORK, experts=dataclasses.replace(FEW, hidden=9))
    with pytest.raises(InputError, match="hidden width 9 of the shared experts"):
        odd.check_mesh(AbstractMesh((1, 1, 1, 2), AXES), 8)
