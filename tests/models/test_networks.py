"""What must hold of every network, whatever its parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from mdlm.models import stack
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.layers import compute_dtype
from mdlm.models.md4 import MD4Transformer
from mdlm.models.network import bind, count_parameters, denoiser, init, rests, shapes
from mdlm.models.rotary import Rotary, rotary_table, rotate
from mdlm.models.stack import run_blocks
from mdlm.parallel.mesh import MeshShape
from mdlm.parallel.sharding import parameter_sharding
from mdlm.types import NetInput

B, L, COLUMNS = 2, 12, 19
DIT = DiT(width=32, depth=3, heads=2, cond_dim=8, dtype="float32")
CAUSAL = CausalTransformer(width=32, depth=3, heads=2, dtype="float32")
MD4 = MD4Transformer(width=32, depth=3, heads=2, cond_dim=8, dtype="float32")
both = pytest.mark.parametrize("network", [DIT, CAUSAL], ids=["dit", "causal"])
every = pytest.mark.parametrize("network", [DIT, CAUSAL, MD4], ids=["dit", "causal", "md4"])


@functools.cache
def random_params(network):
    """Parameters of the right size, none of them 0, so that nothing is switched off."""
    random = np.random.default_rng(0)

    def draw(path, array):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.2 * random.normal(size=array.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(network, COLUMNS))


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(3), (B, L), 0, COLUMNS)


@functools.partial(jax.jit, static_argnums=0)
def _logits(network, params, inputs, key):
    return denoiser(network, COLUMNS, params)(inputs, key=key).logits()


def logits(network, key=None, **inputs):
    plain = dataclasses.replace(network, dropout=0.0, dtype="float32")
    return _logits(network, random_params(plain), NetInput(**inputs), key)


def reads(network, **inputs):
    """`[i, j]`: whether the logits at position i change with the token at j, by gradient."""
    params = random_params(network)
    # Each place has a token of its own: the gradient by token j's row is that by place j.
    question = NetInput(tokens=jnp.arange(L)[None], **inputs)

    def summed(table):
        changed = params | {"embed": {"table": table}}
        return denoiser(network, COLUMNS, changed)(question).logits()[0].sum(-1)

    gradient = jax.jit(jax.jacrev(summed))(params["embed"]["table"])[:, :L]
    return np.asarray(jnp.abs(gradient).max(-1) > 0)


def test_causal_logits_depend_on_exactly_the_tokens_before():
    np.testing.assert_array_equal(reads(CAUSAL), np.tri(L, k=-1, dtype=bool))


@pytest.mark.parametrize("network", [DIT, MD4], ids=["dit", "md4"])
def test_bidirectional_logits_depend_on_all_tokens(network):
    assert reads(network).all()


@every
def test_segments_do_not_see_each_other(network):
    segment_ids = np.array([0] * 5 + [1] * 4 + [0] * 3)
    same = segment_ids[:, None] == segment_ids[None]
    seen = reads(network, segment_ids=jnp.asarray(segment_ids)[None])
    assert not seen[~same].any()
    if network is not CAUSAL:
        np.testing.assert_array_equal(seen, same)


@every
def test_padding_is_not_seen(network):
    is_valid = np.array([False] * 2 + [True] * 8 + [False] * 2)
    seen = reads(network, is_valid=jnp.asarray(is_valid)[None])[is_valid]
    assert not seen[:, ~is_valid].any()
    assert seen[1:, is_valid].any(1).all()


@every
def test_more_padding_changes_nothing(network, tokens):
    is_valid = jnp.arange(L)[None] < jnp.array([L, 7])[:, None]
    short = logits(network, tokens=tokens, is_valid=is_valid)
    longer = [jnp.pad(a, ((0, 0), (0, 5))) for a in (tokens, is_valid)]
    long = logits(network, tokens=longer[0], is_valid=longer[1])[:, :L]
    valid = np.asarray(is_valid)
    np.testing.assert_allclose(long[valid], short[valid], rtol=1e-5, atol=1e-5)
    assert jnp.isfinite(long).all()


@every
def test_positions_default_to_the_place_and_count_relatively(network, tokens):
    plain = logits(network, tokens=tokens)
    place = jnp.broadcast_to(jnp.arange(L), (B, L))
    np.testing.assert_array_equal(logits(network, tokens=tokens, positions=place), plain)
    shifted = logits(network, tokens=tokens, positions=place + 5)
    np.testing.assert_allclose(shifted, plain, rtol=1e-4, atol=1e-4)
    assert jnp.abs(logits(network, tokens=tokens, positions=2 * place) - plain).max() > 1e-3


@both
@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_scan_is_a_loop_over_the_blocks(network, tokens, remat):
    cond = jnp.ones((B, 1, 8)) if network is DIT else None
    common = dict(ahead=0 if network is CAUSAL else None, cond=cond, key=None)
    network = dataclasses.replace(network, remat=remat)
    module = bind(network, COLUMNS, random_params(network))
    x = module.embed(tokens)
    inputs = NetInput(tokens=tokens)
    at_once = run_blocks(module.blocks, x, inputs, **common)
    for i in range(network.depth):
        block = jax.tree.map(lambda a, i=i: a[i : i + 1], module.blocks)
        x = run_blocks(block, x, inputs, **common)
    np.testing.assert_allclose(x, at_once, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@every
def test_remat_changes_no_gradient_and_keeps_less(network, tokens):
    params = random_params(network)

    def run(remat):
        changed = dataclasses.replace(network, remat=remat)

        def total(params):
            prediction = denoiser(changed, COLUMNS, params)(NetInput(tokens=tokens))
            return jnp.square(prediction.logits()).mean()

        pull = jax.eval_shape(lambda params: jax.vjp(total, params)[1], params)
        kept = sum(leaf.size for leaf in jax.tree.leaves(pull))
        return kept, jax.jit(jax.grad(total))(params)

    results = {remat: run(remat) for remat in ("none", "products", "blocks")}
    none, products, blocks = (kept for kept, _ in results.values())
    a_product = network.depth * B * L * network.width
    assert products - blocks >= 9 * a_product  # q, k, v; attention and its output; 4 inside the MLP
    assert none - products > 9 * a_product
    without = results["none"][1]
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(without))
    for remat in ("products", "blocks"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            results[remat][1],
            without,
        )


MODERN = dict(norm="rms", qk_norm=True, use_bias=False)


@pytest.mark.parametrize("mlp", ["gelu", "relu2", "swiglu", "geglu", "glu"])
def test_kinds_of_blocks(tokens, mlp):
    """Each kind against the same block written out, one token at a time where it can be."""
    network = dataclasses.replace(DIT, depth=1, cond_dim=0, mlp=mlp, **MODERN)
    params = random_params(network)
    module = bind(network, COLUMNS, params)
    assert not any("bias" in jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(params))
    block = jax.tree.map(lambda a: np.asarray(a[0], np.float64), params["blocks"])

    def rms(x, scale):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * scale

    x = np.asarray(params["embed"]["table"], np.float64)[np.asarray(tokens)]
    qkv = rms(x, block["norm1"]["scale"]) @ block["qkv"]["kernel"]
    q, k, v = (a.reshape(B, L, 2, 16) for a in np.split(qkv, 3, axis=-1))
    table = rotary_table(jnp.arange(L)[None], Rotary(16))
    q, k = (
        np.asarray(rotate(jnp.asarray(rms(a, block["qk_norm"]["scale"]), jnp.float32), table))
        for a in (q, k)
    )
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / 4
    p = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("bhqk,bkhd->bqhd", p / p.sum(-1, keepdims=True), v).reshape(B, L, -1)
    x = x + y @ block["attn_out"]["kernel"]
    h = rms(x, block["norm2"]["scale"]) @ block["mlp"]["inner"]["kernel"]
    gelu = lambda h: 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    sigmoid = lambda h: 1 / (1 + np.exp(-h))
    if mlp.endswith("glu"):
        gate, h = np.split(h, 2, axis=-1)
        gates = {"swiglu": gate * sigmoid(gate), "geglu": gelu(gate), "glu": sigmoid(gate)}
        h = gates[mlp] * h
    else:
        h = gelu(h) if mlp == "gelu" else np.square(np.maximum(h, 0))
    x = x + h @ block["mlp"]["outer"]["kernel"]
    found = run_blocks(
        module.blocks,
        module.embed(tokens),
        NetInput(tokens=tokens),
        cond=None,
        key=None,
    )
    np.testing.assert_allclose(found, x, rtol=1e-3, atol=1e-4)


@every
def test_dropout_acts_with_a_key_only(network, tokens):
    dropping = dataclasses.replace(network, dropout=0.3)
    none = logits(dropping, tokens=tokens)
    np.testing.assert_array_equal(none, logits(network, tokens=tokens))
    one, again, other = (logits(dropping, jax.random.key(i), tokens=tokens) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert jnp.abs(one - none).max() > 1e-2
    assert jnp.abs(one - other).max() > 1e-2


@every
def test_bfloat16_is_close_to_float32(network, tokens):
    exact = logits(network, tokens=tokens)
    rounded = logits(dataclasses.replace(network, dtype="bfloat16"), tokens=tokens)
    assert rounded.dtype == jnp.float32
    error = np.sqrt(np.mean(np.square(rounded - exact)) / np.var(exact))
    assert 1e-5 < error < 0.03


def test_auto_is_float32_on_the_cpu():
    assert compute_dtype("auto") == jnp.float32


@every
def test_logits_start_at_zero(network, tokens):
    @jax.jit
    def start(key, tokens):
        params = init(network, key, COLUMNS)
        prediction = denoiser(network, COLUMNS, params)(NetInput(tokens=tokens))
        return prediction.logits(), prediction.hidden

    start_logits, hidden = start(jax.random.key(1), tokens)
    assert (start_logits == 0).all()
    assert jnp.abs(hidden).max() > 0.1


@every
def test_initial_values_do_not_depend_on_sharding(network):
    mesh = MeshShape(data=2, fsdp=4).build()
    wide = dataclasses.replace(network, width=128)
    expected = shapes(wide, 64)
    sharding = parameter_sharding(mesh, expected, rests(wide, 64))
    make = lambda key: init(wide, key, 64)
    alone = jax.jit(make)(jax.random.key(0))
    split = jax.jit(make, out_shardings=sharding)(jax.random.key(0))
    assert not split["embed"]["table"].is_fully_replicated or 64 * 128 < 2**14
    assert not split["blocks"]["mlp"]["inner"]["kernel"].is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, alone, split)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), alone) == jax.tree.map(
        lambda a: (a.shape, a.dtype), expected
    )
    kernels = np.asarray(alone["blocks"]["qkv"]["kernel"])
    assert np.abs(kernels[0] - kernels[1]).max() > 0, "blocks must not start alike"


def test_sharded_logits_and_gradients_equal_those_of_one_device(tokens):
    tokens = jnp.tile(tokens, (4, 1))
    params = random_params(DIT)
    mesh = MeshShape(data=2, fsdp=4).build()
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    placed = jax.device_put(
        params, parameter_sharding(mesh, shapes(DIT, COLUMNS), rests(DIT, COLUMNS))
    )

    @jax.jit
    def value_and_gradient(params, tokens):
        def total(params):
            logits = denoiser(DIT, COLUMNS, params)(NetInput(tokens=tokens)).logits()
            return jnp.square(logits).mean()

        return jax.value_and_grad(total)(params)

    split = value_and_gradient(placed, jax.device_put(tokens, rows))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        split,
        value_and_gradient(params, tokens),
    )


def test_condition_reads_the_time(tokens):
    params = random_params(DIT)
    t = jnp.full((B, 1), 0.4)
    inputs = NetInput(tokens=tokens, t=t)
    fed = lambda condition: jax.jit(
        lambda params: denoiser(DIT, COLUMNS, params, condition=condition)(inputs).logits()
    )(params)
    np.testing.assert_array_equal(fed(None), fed(lambda t: 0 * t))
    assert jnp.abs(fed(None) - fed(lambda t: t)).max() > 1e-3
    with pytest.raises(ValueError, match="t=None"):
        denoiser(DIT, COLUMNS, params, condition=lambda t: t)(NetInput(tokens=tokens))
    with pytest.raises(ValueError, match="noise level"):
        denoiser(CAUSAL, COLUMNS, random_params(CAUSAL), condition=lambda t: t)(
            NetInput(tokens=tokens, t=t)
        )


def test_number_of_parameters():
    width, cond = 32, 8
    block = 12 * width**2 + 5 * width + 2 * width + 6 * width * (cond + 1)
    noise_level = 256 * cond + cond + cond**2 + cond
    head = width + 2 * width * (cond + 1) + width * COLUMNS + COLUMNS
    expected = COLUMNS * width + noise_level + DIT.depth * block + head
    assert count_parameters(shapes(DIT, COLUMNS)) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        dict(width=36, heads=4),
        dict(depth=0),
        dict(dropout=1.0),
        dict(dtype="float16"),
        dict(cond_dim=-1),
        dict(logits_chunk=0),
    ],
)
def test_wrong_sizes_are_refused(wrong):
    (value,) = (v for k, v in wrong.items() if k != "heads")
    # The import hook of the tests refuses a dtype that is not listed before we can.
    with pytest.raises((ValueError, TypeCheckError), match=str(value)):
        DiT(**wrong)


def test_blocks_are_written_out_on_gpus_that_keep_all(tokens, monkeypatch):
    network = dataclasses.replace(DIT, depth=3)
    params = random_params(network)

    def total(params, remat):
        changed = dataclasses.replace(network, remat=remat)
        return jnp.square(
            denoiser(changed, COLUMNS, params)(NetInput(tokens=tokens)).logits()
        ).sum()

    plain = jax.jit(jax.grad(total), static_argnums=1)(params, "none")
    monkeypatch.setattr(stack, "platform", lambda: "gpu")
    for remat, blocks in {"auto": 3, "none": 3, "products": 1, "blocks": 1}.items():
        program = str(jax.make_jaxpr(functools.partial(total, remat=remat))(params))
        assert f"unroll={blocks}\n" in program, remat
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.jit(jax.grad(total), static_argnums=1)(params, "auto"),
        plain,
    )
