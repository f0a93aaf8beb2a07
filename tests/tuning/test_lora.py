"""LoRA: the added matrices, which kernels get one, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_names import NETWORKS

from mdlm.errors import InputError
from mdlm.models import Decoder, DiT, Experts
from mdlm.models.network import shapes, widths
from mdlm.runs.weights import named
from mdlm.tuning import LoRA

MIXTURE = Decoder(
    width=16,
    depth=3,
    heads=2,
    kv_heads=1,
    hidden=24,
    experts=Experts(count=4, chosen=2, groups=1, kept_groups=1, hidden=8),
)


def parameters(network, seed=0):
    rng = np.random.default_rng(seed)
    made = lambda a: jnp.asarray(rng.standard_normal(a.shape), jnp.float32)
    return {"network": jax.tree.map(made, shapes(network, 20))}


def side_by_side(network):
    return {("network", *path): own for path, own in widths(network, 20).items()}


def cut(tune, network, params):
    return tune.base(params), tune.start(jax.random.key(0), params, side_by_side(network))


def filled(tree, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), jnp.float32), tree)


def test_each_matrix_gets_a_product_of_its_own():
    """Against products of NumPy in float64, layer by layer and expert by expert."""
    tune, params = LoRA(rank=2, alpha=6.0), parameters(MIXTURE)
    base, trained = cut(tune, MIXTURE, params)
    trained = filled(trained)
    merged, before = named(tune.merged(base, trained)), named(params)
    arrays = {name: np.asarray(a, np.float64) for name, a in named(trained).items()}
    # Queries 2 x 8; keys and values of one head each; gate and input of experts of 8.
    expected = {
        "network.blocks.rest.qkv.kernel": (16, 8, 8),
        "network.blocks.rest.mlp.inner.kernel": (8, 8),
        "network.blocks.rest.mlp.outer.kernel": (16,),
        "network.blocks.first.mlp.inner.kernel": (24, 24),
    }
    for name, columns in expected.items():
        pairs = [
            (arrays[f"adapter.{name}.{i}.a"], arrays[f"adapter.{name}.{i}.b"])
            for i in range(len(columns))
        ]
        assert [b.shape[-1] for _, b in pairs] == list(columns)
        assert all(a.shape[-1] == b.shape[-2] == 2 for a, b in pairs)
        added = np.concatenate([3.0 * (a @ b) for a, b in pairs], axis=-1)
        np.testing.assert_allclose(merged[name], before[name] + added, rtol=1e-5, atol=1e-5)
    untouched = {name for name in before if np.array_equal(before[name], merged[name])}
    assert untouched == {name for name in before if f"adapter.{name}.0.a" not in arrays}
    assert "network.embed.table" in untouched and len(untouched) < len(before)


def test_it_starts_at_the_base():
    base, trained = cut(LoRA(rank=2), MIXTURE, parameters(MIXTURE))
    merged = named(LoRA(rank=2).merged(base, trained))
    for name, value in named(base).items():
        np.testing.assert_array_equal(merged[name], value)
    a = named(trained)["adapter.network.blocks.rest.qkv.kernel.0.a"]
    assert 0.2 < np.abs(a).max() <= 0.25  # 1 / sqrt(16)
    others = [v for n, v in named(trained).items() if n.endswith(".a") and v.shape == a.shape]
    assert len(others) > 2 and len({float(v.ravel()[0]) for v in others}) == len(others)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: type(n).__name__)
def test_by_default_the_kernels_of_the_blocks(network):
    """Of every network: all of them, but not those that read the noise level."""
    params = {"network": shapes(network, 20)}
    tune, known = LoRA(rank=2), side_by_side(network)
    trained = jax.eval_shape(lambda: tune.start(jax.random.key(0), params, known))
    chosen = {name.rsplit(".", 2)[0].removeprefix("adapter.") for name in named(trained)}
    kernels = {n for n in named(params) if n.startswith("network.blocks.") and n.endswith("kernel")}
    assert chosen == {name for name in kernels if "modulation" not in name}
    merged = jax.eval_shape(tune.merged, params, trained)
    assert jax.tree.map(lambda a: a.shape, merged) == jax.tree.map(lambda a: a.shape, params)
    assert len(chosen) >= 4


def test_names_choose_kernels():
    network = DiT(width=16, depth=2, heads=2, cond_dim=8)
    tune = LoRA(rank=2, kernels=("qkv", "mlp.inner", "blocks.modulation"))
    _, trained = cut(tune, network, parameters(network))
    chosen = {name.split("network.")[1].rsplit(".", 3)[0] for name in named(trained)}
    assert chosen == {"blocks.qkv", "blocks.mlp.inner", "blocks.modulation"}


def test_the_whole_rank_fits_what_full_tuning_fits():
    """A matrix that differs from the base in all directions is found, and not with a rank of 2."""
    make = np.random.default_rng(0).standard_normal
    start, goal = (jnp.asarray(make((1, 8, 12)), jnp.float32) for _ in range(2))
    base = {"network": {"blocks": {"qkv": {"kernel": start}}}}

    def distance(tune):
        trained, tx = tune.start(jax.random.key(0), base, {}), optax.adam(0.03)
        loss = lambda own: jnp.square(jax.tree.leaves(tune.merged(base, own))[0] - goal).mean()

        def step(state, _):
            own, moments = state
            updates, moments = tx.update(jax.grad(loss)(own), moments)
            return (optax.apply_updates(own, updates), moments), None

        end, _ = jax.lax.scan(step, (trained, tx.init(trained)), length=800)
        return float(loss(end[0]))

    assert distance(LoRA(rank=8)) < 1e-4
    singular = np.linalg.svd(np.asarray(goal - start)[0], compute_uv=False)
    least = (singular[2:] ** 2).sum() / goal.size  # Eckart and Young: of all matrices of rank 2
    assert distance(LoRA(rank=2)) == pytest.approx(least, rel=0.01) and least > 0.5


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        (dict(rank=9), r"tune.rank=9: above the width of network.blocks.first.qkv.kernel, 8; give"),
        (dict(kernels=("qvk",)), r"'qvk': no array has this name; did you mean qkv\?"),
        (dict(kernels=("blocks.first.mpl",)), r"did you mean blocks.first.mlp\?"),
        (dict(kernels=("embed",)), "'embed': no array has this name"),
    ],
)
def test_what_does_not_fit_is_refused(tune, message):
    params = {"network": shapes(MIXTURE, 20)}
    with pytest.raises(InputError, match=message) as refused:
        LoRA(**tune).check(params, side_by_side(MIXTURE))
    assert "\n" not in str(refused.value)
    LoRA(rank=8, kernels=("qkv",)).check(params, side_by_side(MIXTURE))


@pytest.mark.parametrize("values", [dict(rank=0), dict(alpha=0.0), dict(alpha=float("inf"))])
def test_values_out_of_range(values):
    with pytest.raises(InputError, match="rank must be at least 1"):
        LoRA(**values)
