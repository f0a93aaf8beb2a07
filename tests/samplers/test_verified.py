"""Drafts verified by an autoregressive network: its distribution, exactly, and the public rules."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.models import CausalTransformer, DiT
from mdlm.models.network import denoiser, init
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers import LeftToRight, Verified
from mdlm.samplers.loop import generate
from mdlm.types import DenseLogits, NetInput, Vocab

VOCAB = Vocab(size=5, mask_id=4, bos_id=0)
L = 4
CAUSAL = CausalTransformer(width=16, depth=1, heads=2, dtype="float32")
DRAFTS = DiT(width=16, depth=1, heads=2, cond_dim=0, dtype="float32")


def shaken(network, seed):
    def make(key):
        noise = lambda leaf: jax.random.normal(jax.random.key(leaf.size + seed), leaf.shape)
        shake = lambda leaf: leaf + 0.4 * noise(leaf)
        return jax.tree.map(shake, init(network, key, VOCAB.size))

    return jax.jit(make)(jax.random.key(seed))


def sampled(sampler, rows, *, network=DRAFTS, tokens=None, is_fixed=None):
    """Rows that begin with token 0."""
    tokens = np.zeros((rows, L), np.int32) if tokens is None else tokens
    is_fixed = np.arange(L)[None] < np.ones((rows, 1)) if is_fixed is None else is_fixed

    @jax.jit
    def run(drafts, verifier, keys, tokens, is_fixed):
        known = dict(process=Masked().with_vocab(VOCAB), parameterization=Subs().with_vocab(VOCAB))
        causal = Diffusion(**known, denoise=denoiser(CAUSAL, VOCAB.size, verifier))
        draft = Diffusion(**known, denoise=denoiser(DRAFTS, VOCAB.size, drafts))
        diffusion = causal if network is CAUSAL else replace(draft, verifier=causal)
        return generate(keys, tokens, is_fixed, sampler=sampler, diffusion=diffusion)

    keys = by_row(jax.random.key(5), jnp.arange(rows))
    samples = run(shaken(DRAFTS, 1), shaken(CAUSAL, 2), keys, tokens, is_fixed)
    found = np.asarray(samples.tokens)
    assert (found != VOCAB.mask_id).all() and (found[is_fixed] == tokens[is_fixed]).all()
    return found, int(samples.nfe)


def law():
    """The causal network's probability of each continuation of token 0."""
    rows = np.array([[0, *rest] for rest in itertools.product(range(4), repeat=L - 1)])
    logits = jax.jit(
        lambda params: denoiser(CAUSAL, VOCAB.size, params)(
            NetInput(tokens=jnp.asarray(rows))
        ).logits()
    )(shaken(CAUSAL, 2))
    log_p = jax.nn.log_softmax(logits[..., :4])
    each = np.take_along_axis(np.asarray(log_p), rows[..., None], -1)[..., 0]
    return rows, np.exp(each[:, 1:].sum(-1))


@pytest.mark.parametrize("ahead", [1, 2, 16])
def test_the_exact_rule_gives_the_verifier_s_distribution(ahead):
    rows, p = law()
    assert np.isclose(p.sum(), 1, atol=1e-5) and p.max() / p.min() > 5
    count = 100_000
    found, _ = sampled(Verified(ahead=ahead), count)
    share = np.bincount(found[:, 1:] @ [16, 4, 1], minlength=64) / count
    error = np.sqrt(p * (1 - p) / count)
    assert (np.abs(share - p) < 4.5 * error).all()
    # The drafts' own distribution is another one.
    assert rows.shape == (64, L)


def test_greedy_is_the_verifier_s_greedy_in_fewer_calls():
    rng = np.random.default_rng(0)
    tokens, is_fixed = rng.integers(0, 4, (16, L)), rng.random((16, L)) < 0.3
    is_fixed[:, 0] = True
    known = dict(tokens=tokens, is_fixed=is_fixed)
    found, calls = sampled(Verified(temperature=0.0), 16, **known)
    due, _ = sampled(LeftToRight(temperature=0.0), 16, network=CAUSAL, **known)
    np.testing.assert_array_equal(found, due)
    assert calls <= 2 * L + 1


def test_a_verifier_is_needed():
    diffusion = Diffusion(
        process=Masked().with_vocab(VOCAB),
        parameterization=Subs().with_vocab(VOCAB),
        denoise=lambda inputs, *, key=None: DenseLogits(jnp.zeros((1, L, 5))),
    )
    state = [by_row(jax.random.key(0), jnp.arange(1)), jnp.zeros((1, L), jnp.int32)]
    with pytest.raises(ValueError, match="needs a verifier"):
        generate(*state, jnp.arange(L)[None] < 1, sampler=Verified(), diffusion=diffusion)
    with pytest.raises(ValueError, match="ahead=0"):
        Verified(ahead=0)
