"""The decoder shape: what it attends to, its options, and the caches against plain calls."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.models import CausalTransformer, Decoder, DiT
from mdlm.models.network import denoiser, init, shapes
from mdlm.types import NetInput

B, L, V = 2, 12, 19
LLAMA = Decoder(
    width=32,
    depth=2,
    heads=4,
    kv_heads=2,
    head_width=12,
    hidden=40,
    rotary_base=5e5,
    rotary_fraction=0.5,
    qk_norm="separate",
    qkv_bias=True,
    norm_epsilon=1e-5,
    logit_cap=3.0,
    dtype="float32",
)
TIED = dataclasses.replace(LLAMA, tied=True)
BLOCKS = dataclasses.replace(LLAMA, attends="blocks", block_size=4)
CAUSAL = dataclasses.replace(LLAMA, attends="causal")


def params_of(network, seed=0):
    random = np.random.default_rng(seed)

    def draw(path, array):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.3 * random.normal(size=array.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(network, V))


@functools.partial(jax.jit, static_argnums=0)
def _logits(network, params, inputs, at):
    return denoiser(network, V, params)(inputs).logits(at)


def logits(network, at=None, **inputs):
    return np.asarray(_logits(network, params_of(network), NetInput(**inputs), at))


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(3), (B, L), 0, V)


def reference(network, params, tokens, allowed):
    """The formulas of the module's docstring in float64: `h` after the last norm, and the logits.

    `allowed` says which position (axis 0) attends to which (axis 1).
    """
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    heads, kv_heads, size = network.heads_shape
    rotated, base, _ = network.rotary
    l = tokens.shape[1]
    angle = np.arange(l)[:, None] / base ** (np.arange(rotated // 2) / (rotated // 2))
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def rms(x, scale):
        return scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)

    def turned(x):
        a, b, rest = np.split(x, [rotated // 2, rotated], axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)

    x = p["embed"]["table"][np.asarray(tokens)]
    for i in range(network.depth):
        w = jax.tree.map(lambda a, i=i: a[i], p["blocks"])
        y = rms(x, w["norm1"]["scale"]) @ w["qkv"]["kernel"] + w["qkv"]["bias"]
        q, k, v = np.split(y, np.cumsum([heads, kv_heads]) * size, axis=-1)
        q, k, v = (part.reshape(*part.shape[:2], -1, size) for part in (q, k, v))
        q, k = turned(rms(q, w["q_norm"]["scale"])), turned(rms(k, w["k_norm"]["scale"]))
        out = np.zeros_like(q)
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = q[:, :, head] @ k[:, :, group].swapaxes(1, 2) / np.sqrt(size)
            weights = np.exp(np.where(allowed, scores, -np.inf))
            out[:, :, head] = weights / weights.sum(-1, keepdims=True) @ v[:, :, group]
        x = x + out.reshape(*x.shape[:2], -1) @ w["attn_out"]["kernel"]
        gate, y = np.split(rms(x, w["norm2"]["scale"]) @ w["mlp"]["inner"]["kernel"], 2, axis=-1)
        x = x + (gate / (1 + np.exp(-gate)) * y) @ w["mlp"]["outer"]["kernel"]
    h = rms(x, p["norm"]["scale"])
    kernel = p["embed"]["table"].T if network.tied else p["head"]["kernel"]
    return network.logit_cap * np.tanh(h @ kernel / network.logit_cap)


@pytest.mark.parametrize("network", [LLAMA, TIED, CAUSAL], ids=["own head", "tied", "causal"])
def test_every_option_against_the_formulas_in_float64(network, tokens):
    allowed = np.tri(L, dtype=bool) if network is CAUSAL else np.ones((L, L), bool)
    due = reference(network, params_of(network), tokens, allowed)
    found = logits(network, tokens=tokens)
    if network is CAUSAL:  # position i is about token i; the first sees nothing
        due = np.concatenate([np.zeros_like(due[:, :1]), due[:, :-1]], axis=1)
    np.testing.assert_allclose(found, due, rtol=1e-4, atol=1e-5)


def test_blocks_attend_to_their_own_noised_block_and_the_clean_ones_before(tokens):
    clean = jax.random.randint(jax.random.key(4), (B, L), 0, V)
    found = logits(BLOCKS, tokens=tokens, clean=clean)
    block = np.arange(L) // 4
    allowed = block[:, None] >= block[None]
    for i in range(L // 4):  # a row that is clean before block i and noised in it
        row = jnp.where(block[None] < i, clean, tokens)
        here = slice(4 * i, 4 * i + 4)
        due = reference(BLOCKS, params_of(BLOCKS), row, allowed)[:, here]
        np.testing.assert_allclose(found[:, here], due, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [LLAMA, BLOCKS], ids=["all", "blocks"])
def test_shift_reads_the_logits_one_position_earlier(network, tokens):
    clean = tokens[:, ::-1]
    extra = {"clean": clean} if network is BLOCKS else {}
    shifted = dataclasses.replace(network, shift=True)
    plain = logits(network, tokens=tokens, **extra)
    found = logits(shifted, tokens=tokens, **extra)
    np.testing.assert_allclose(found[:, 0], plain[:, 0], rtol=1e-5)
    for i in range(1, L):
        due = plain[:, i - 1]
        if network is BLOCKS and i % 4 == 0:  # the clean token before the block, read as such
            block = np.arange(L) // 4
            due = reference(BLOCKS, params_of(BLOCKS), clean, block[:, None] >= block)[:, i - 1]
        np.testing.assert_allclose(found[:, i], due, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("network", [LLAMA, BLOCKS], ids=["all", "blocks"])
def test_the_deferred_last_block_gives_the_same_logits(network, shift, tokens):
    network = dataclasses.replace(network, shift=shift)
    extra = {"clean": tokens[:, ::-1]} if network.attends == "blocks" else {}
    at = jnp.array([1, 4, 11, 12, 20])
    plain = logits(network, tokens=tokens, **extra)
    deferred = dict(tokens=tokens, defer_last_block=True, **extra)
    some = logits(network, at, **deferred)
    np.testing.assert_allclose(some, plain.reshape(-1, V)[at], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits(network, **deferred), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", [LLAMA, TIED], ids=["own head", "tied"])
def test_reduced_rows_have_the_gradient_of_plain_logits(network, tokens):
    weight = jnp.arange(1.0, 1 + B * L).reshape(B, L) % 3

    def loss(params, in_chunks):
        prediction = denoiser(network, V, params)(NetInput(tokens=tokens))
        nll = lambda logits, own, _: (
            -jnp.take_along_axis(jax.nn.log_softmax(logits), own[..., None], -1)[..., 0]
        )
        if in_chunks:
            return prediction.reduce_rows(nll, tokens, weight)[0]
        return (weight * nll(prediction.logits(), tokens, None)).sum()

    params = params_of(network)
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    for a, b in zip(
        jax.tree.leaves(gradient(params, True)),
        jax.tree.leaves(gradient(params, False)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_the_options_are_those_of_every_transformer():
    same = dict(width=32, depth=2, heads=4, dtype="float32")
    for plain, other in (
        (CausalTransformer(**same), Decoder(**same, attends="causal")),
        (DiT(**same, cond_dim=0), Decoder(**same)),
    ):
        alike = dataclasses.replace(other, norm="layer", mlp="gelu", use_bias=True)
        assert shapes(plain, V) == shapes(alike, V)
        params = params_of(plain)
        tokens = jnp.arange(L)[None]
        found = [_logits(n, params, NetInput(tokens=tokens), None) for n in (plain, alike)]
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(kv_heads=3), "kv_heads=3: must divide heads=4"),
        (dict(head_width=7), "rotary_fraction=1.0: .*even number of a head's 7 entries"),
        (dict(rotary_fraction=0.0), "rotary_fraction=0.0"),
        (dict(norm_epsilon=0.0), "norm_epsilon=0.0: must be above 0"),
        (dict(logit_cap=-1.0), "logit_cap=-1.0: must be above 0"),
        (dict(attends="blocks"), "block_size=0, attends='blocks'"),
        (dict(block_size=4), "block_size=4, attends='all'"),
        (dict(attends="causal", shift=True), "shift=True: a causal network"),
    ],
)
def test_impossible_options_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        Decoder(**{**dict(width=32, heads=4, depth=2), **wrong})


def test_parameters_start_and_flops_count_what_is_multiplied():
    params = init(LLAMA, jax.random.key(0), V)
    assert params["blocks"]["qkv"]["kernel"].shape == (2, 32, (4 + 2 + 2) * 12)
    matmuls = 32 * 12 * (4 + 2 + 2) + 4 * 12 * 32 + 3 * 40 * 32
    assert LLAMA.flops(3, L, 5, V) == 2 * (3 * L * 2 * (matmuls + 2 * L * 48) + 5 * 32 * V)
