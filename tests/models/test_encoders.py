"""The encoders: local attention, the deferred last block, and what they refuse."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from mdlm.errors import InputError
from mdlm.models import Bert, DiT, ModernBert
from mdlm.models.attention import cudnn
from mdlm.models.attention.mask import AttentionMask
from mdlm.models.network import denoiser, shapes
from mdlm.parallel.mesh import AXES
from mdlm.types import NetInput

B, L, V = 2, 12, 19
SIZES: dict = dict(width=32, heads=4, hidden=24, dtype="float32")
BERT = Bert(**SIZES, depth=2, positions=L)
MODERN = ModernBert(**SIZES, depth=4, global_every=3, window=4)
NETWORKS = pytest.mark.parametrize("network", [BERT, MODERN], ids=["bert", "modern"])


def params_of(network):
    random = np.random.default_rng(0)

    def draw(path, array):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.3 * random.normal(size=array.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(network, V))


@functools.partial(jax.jit, static_argnums=0)
def _logits(network, params, inputs, at, key):
    return denoiser(network, V, params)(inputs, key=key).logits(at)


def logits(network, at=None, key=None, **inputs):
    return np.asarray(_logits(network, params_of(network), NetInput(**inputs), at, key))


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(3), (B, L), 0, V)


def test_local_attention_is_about_the_distance():
    mask = AttentionMask(reach=2)
    place = np.arange(7)
    due = abs(place[:, None] - place) <= 2
    np.testing.assert_array_equal(mask.by_position(place[:, None], place[None]), due)
    causal = AttentionMask(reach=2, ahead=0)
    found = causal.by_position(place[:, None], place[None])
    np.testing.assert_array_equal(found, due & np.tri(7, dtype=bool))


def test_cudnn_is_not_asked_for_local_attention():
    q = jnp.zeros((1, 128, 2, 64), jnp.bfloat16)
    assert cudnn.obstacle(q, AttentionMask(), "gpu") is None
    assert "local attention" in str(cudnn.obstacle(q, AttentionMask(reach=2), "gpu"))


@pytest.mark.parametrize("every, last", [(3, 3), (4, 2)], ids=["global", "local"])
def test_only_global_blocks_reach_far(every, last, tokens):
    """After a global block 0 every token depends on all others; blocks that are local pass a
    change on by window / 2 = 2 positions each."""
    network = dataclasses.replace(MODERN, global_every=every, depth=last + 1)
    changed = tokens.at[:, 0].set((tokens[:, 0] + 1) % V)
    params = params_of(network)
    # Without the attention of the first, global block, only the later ones carry a change.
    first = params["blocks"]["first"]["attn_out"]
    first["kernel"] = jnp.zeros_like(first["kernel"])
    a, b = (_logits(network, params, NetInput(tokens=x), None, None) for x in (tokens, changed))
    differs = np.abs(np.asarray(a - b)).max(-1) > 1e-6
    due = np.ones(L, bool) if every == 3 else np.arange(L) <= 2 * last
    np.testing.assert_array_equal(differs, np.broadcast_to(due, differs.shape))


@NETWORKS
def test_the_deferred_last_block_gives_the_same_logits(network, tokens):
    at = jnp.array([1, 4, 11, 12, 20])
    is_valid = jnp.arange(L)[None] < jnp.array([[L], [L - 2]])
    plain = logits(network, tokens=tokens, is_valid=is_valid)
    deferred = dict(tokens=tokens, is_valid=is_valid, defer_last_block=True)
    some = logits(network, at, **deferred)
    np.testing.assert_allclose(some, plain.reshape(-1, V)[at], rtol=1e-5, atol=1e-5)


def test_a_local_last_block_is_deferred_too(tokens):
    network = dataclasses.replace(MODERN, depth=3)
    at = jnp.array([0, 5, 23])
    some = logits(network, at, tokens=tokens, defer_last_block=True)
    plain = logits(network, tokens=tokens).reshape(-1, V)[at]
    np.testing.assert_allclose(some, plain, rtol=1e-5, atol=1e-5)


@NETWORKS
def test_packed_texts_are_as_if_alone(network, tokens):
    segments = jnp.repeat(jnp.array([[0] * 5 + [1] * 7]), B, axis=0)
    positions = jnp.repeat(jnp.array([[*range(5), *range(7)]]), B, axis=0)
    packed = logits(network, tokens=tokens, segment_ids=segments, positions=positions)
    for part in (slice(0, 5), slice(5, 12)):
        alone = logits(network, tokens=tokens[:, part])
        np.testing.assert_allclose(packed[:, part], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network, remat", [(BERT, "products"), (MODERN, "products")])
def test_rematerialisation_changes_no_gradient(network, remat, tokens):
    @functools.partial(jax.jit, static_argnums=0)
    def gradient(network, params):
        def loss(params):
            prediction = denoiser(network, V, params)(NetInput(tokens=tokens))
            return jnp.square(prediction.logits()).sum()

        return jax.grad(loss)(params)

    params = params_of(network)
    plain = gradient(dataclasses.replace(network, remat="none"), params)
    again = gradient(dataclasses.replace(network, remat=remat), params)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@NETWORKS
def test_dropout_is_drawn_by_key_only(network, tokens):
    dropped = dataclasses.replace(network, dropout=0.5)
    a, b, c = (logits(dropped, key=jax.random.key(k), tokens=tokens) for k in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)
    plain = logits(network, tokens=tokens)
    np.testing.assert_array_equal(logits(dropped, tokens=tokens), plain)


def test_token_types_are_read_and_0_unless_given(tokens):
    zeros, ones = jnp.zeros((B, L), jnp.int32), jnp.ones((B, L), jnp.int32)
    plain = logits(BERT, tokens=tokens)
    found = logits(BERT, tokens=tokens, token_types=zeros)
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)
    assert not np.allclose(logits(BERT, tokens=tokens, token_types=ones), plain, atol=1e-2)
    with pytest.raises(ValueError, match="token_types: DiT has no such input"):
        network = DiT(width=32, depth=1, heads=4)
        denoiser(network, V, params_of(network))(NetInput(tokens=tokens, token_types=zeros))


def test_rows_longer_than_the_table_of_positions_are_refused(tokens):
    short = dataclasses.replace(BERT, positions=L - 1)
    said = f"length={L}: must be at most network.positions={L - 1}"
    with pytest.raises(InputError, match=said):
        short.check_mesh(AbstractMesh((1,) * 4, AXES), L)
    with pytest.raises(ValueError, match=said):
        logits(short, tokens=tokens)


@pytest.mark.parametrize(
    "network, wrong, says",
    [
        (BERT, dict(positions=0), "positions=0: must be at least 1"),
        (BERT, dict(token_types=0), "token_types=0: must be at least 1"),
        (BERT, dict(rotary_base=5e5), "rotary_base=500000.0.*learned positions"),
        (BERT, dict(tied=False), "tied=False"),
        (MODERN, dict(tied=False), "tied=False"),
        (MODERN, dict(depth=1), "depth=1: must be at least 2"),
        (MODERN, dict(global_every=0), "global_every=0: must be at least 1"),
        (MODERN, dict(window=-1), "window=-1: must be at least 0"),
        (MODERN, dict(local_rotary_base=0.0), "local_rotary_base=0.0: must be above 0"),
    ],
)
def test_impossible_options_are_refused(network, wrong, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(network, **wrong)


@pytest.mark.parametrize("network, mlp", [(BERT, 2), (MODERN, 3)], ids=["bert", "modern"])
def test_flops_count_what_is_multiplied(network, mlp):
    block = 4 * 32**2 + mlp * 24 * 32 + 2 * L * 32
    due = 3 * L * (network.depth * block + 32**2) + 5 * 32 * V
    assert network.flops(3, L, 5, V) == 2 * due
