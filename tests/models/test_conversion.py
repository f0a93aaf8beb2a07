"""Causal networks that are made to read everything: the same parameters, and what they compute."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.models import CausalTransformer, Decoder, DiT, opened
from mdlm.models.network import denoiser, shapes
from mdlm.objectives import Autoregressive, BlockNelbo, Nelbo, Windowed, WithCausal
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import Batch, NetInput

B, L, V = 3, 12, 20
MASK = V - 1
QWEN = Decoder(
    width=32,
    depth=2,
    heads=4,
    kv_heads=2,
    hidden=40,
    qk_norm="separate",
    attends="causal",
    dtype="float32",
)
OURS = CausalTransformer(width=32, depth=2, heads=2, norm="rms", qk_norm=True, dtype="float32")
KINDS = pytest.mark.parametrize("causal", [QWEN, OURS], ids=["qwen", "ours"])


def params_of(network):
    random = np.random.default_rng(0)

    def draw(path, array):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.3 * random.normal(size=array.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(network, V))


@functools.partial(jax.jit, static_argnums=0)
def logits(network, inputs):
    return denoiser(network, V, params_of(network))(inputs).logits()


@functools.partial(jax.jit, static_argnums=(0, 1))
def terms_of(objective, network, batch):
    diffusion = Diffusion(
        process=Masked(schedule=LogLinear(eps=0.0), mask_id=MASK),
        parameterization=Subs(mask_id=MASK, vocab_size=V),
        denoise=denoiser(network, V, params_of(network)),
        shift=network.shift,
    )
    return objective(jax.random.key(1), batch, diffusion)


@pytest.fixture
def batch():
    return Batch(
        tokens=jax.random.randint(jax.random.key(3), (B, L), 0, MASK),
        loss_mask=jnp.ones((B, L), bool),
        row=jnp.arange(B),
        rows=jnp.asarray(B),
    )


@KINDS
def test_without_a_view_ahead_it_is_the_causal_network(causal, batch):
    found = logits(opened(causal), NetInput(tokens=batch.tokens, ahead=0))
    due = logits(causal, NetInput(tokens=batch.tokens))
    np.testing.assert_allclose(found, due, rtol=1e-5, atol=1e-5)
    assert np.abs(logits(opened(causal), NetInput(tokens=batch.tokens)) - due).max() > 0.1


@KINDS
def test_blocks_of_one_token_are_the_causal_network(causal, batch):
    """Where logits stay at the token before, block diffusion begins as the autoregressive model."""
    network = replace(opened(causal), attends="blocks", block_size=1)
    by_blocks = BlockNelbo(block_size=1, low=1.0, high=1.0, first_is_given=True)
    found = terms_of(by_blocks, network, batch)
    due = terms_of(Autoregressive(), causal, batch)
    np.testing.assert_allclose(found.bound, due.bound, rtol=1e-4, atol=1e-5)
    assert found.count.sum() == due.count.sum() == B * (L - 1)


@pytest.mark.parametrize("shift", [False, True])
def test_a_window_ends_where_it_says(batch, shift):
    network, ahead, changed = opened(QWEN, shift=shift), 3, 8
    other = batch.tokens.at[:, changed].set((batch.tokens[:, changed] + 1) % MASK)
    one, two = (logits(network, NetInput(tokens=x, ahead=ahead)) for x in (batch.tokens, other))
    differs = np.abs(one - two).max((0, 2)) > 1e-6
    # A layer looks `ahead` further, and two layers twice as far.
    first = changed - 2 * ahead + shift
    np.testing.assert_array_equal(differs, np.arange(L) >= first)


def test_windowed_is_its_objective_where_the_window_is_the_row(batch):
    network = opened(QWEN)
    due = terms_of(Nelbo(), network, batch)
    found = terms_of(Windowed(ahead=L), network, batch)
    np.testing.assert_allclose(found.bound, due.bound, rtol=1e-5, atol=1e-6)
    near = terms_of(Windowed(ahead=1), network, batch)
    assert np.abs(near.bound - due.bound).max() > 1e-2
    assert (
        Windowed(ahead=1).reported() == Nelbo() and "1 tokens ahead" in Windowed(ahead=1).protocol
    )


def test_both_losses_are_added(batch):
    network, weight = opened(QWEN), 0.5
    diffusion, causal = terms_of(Nelbo(), network, batch), terms_of(Autoregressive(), QWEN, batch)
    both = terms_of(WithCausal(weight=weight), network, batch)
    np.testing.assert_allclose(both.total, diffusion.total + weight * causal.total, rtol=1e-5)
    np.testing.assert_allclose(both.bound, diffusion.bound, rtol=1e-5, atol=1e-6)
    due = causal.bound.sum() / causal.count.sum()
    np.testing.assert_allclose(both.scalars["causal_nll"], due, rtol=1e-5)
    np.testing.assert_array_equal(both.count, diffusion.count)


def test_what_does_not_fit_is_refused():
    parts = (Masked(), Subs())
    with pytest.raises(InputError, match="only a causal network is converted"):
        opened(DiT(width=32, depth=1, heads=2))
    with pytest.raises(InputError, match="only a causal network is converted"):
        opened(opened(QWEN))
    unshifted = opened(QWEN, shift=False)
    assert "network.shift=True" in (WithCausal().incompatibility(*parts, unshifted) or "")
    assert WithCausal().incompatibility(*parts, opened(QWEN)) is None
    for objective in (Windowed(ahead=4), WithCausal()):
        reason = objective.incompatibility(*parts, DiT(width=32, depth=1, heads=2))
        assert reason is not None
    assert "Decoder" in (Windowed(ahead=4).incompatibility(*parts, DiT()) or "")
    with pytest.raises(ValueError, match="at least 0"):
        Windowed(ahead=-1)
