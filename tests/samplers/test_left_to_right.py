"""The autoregressive sampler, with a Markov chain as its causal network."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.models.causal import CausalTransformer
from mdlm.models.network import denoiser, init
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.left_to_right import LeftToRight
from mdlm.samplers.loop import generate
from mdlm.types import DenseLogits, Vocab

VOCAB = Vocab(size=5, mask_id=4, bos_id=0)
TRANSITION = np.random.default_rng(0).dirichlet(np.full(4, 0.7), size=4)


def chain(inputs, *, key=None):
    """Position i: the distribution of token i given token i - 1 (at 0 nothing sensible)."""
    assert inputs.t is None
    log_p = jnp.log(jnp.asarray(np.pad(TRANSITION, ((0, 1), (0, 1))), jnp.float32))
    return DenseLogits(log_p[jnp.roll(inputs.tokens, 1, axis=1)].at[..., VOCAB.mask_id].set(9.0))


def run(keys, tokens, is_fixed, *, denoise=chain, **settings):
    @jax.jit
    def generated(keys, tokens, is_fixed):
        return generate(
            keys,
            tokens,
            is_fixed,
            sampler=LeftToRight(**settings),
            diffusion=Diffusion(
                process=Masked().with_vocab(VOCAB),
                parameterization=Subs().with_vocab(VOCAB),
                denoise=denoise,
            ),
        )

    return generated(keys, tokens, is_fixed)


def test_samples_follow_the_chain_exactly(key):
    rows, length = 8000, 4
    tokens = np.zeros((rows, length), np.int32)
    is_fixed = np.zeros((rows, length), bool)
    is_fixed[:, 0] = True
    samples = run(by_row(key, jnp.arange(rows)), tokens, is_fixed)
    assert int(samples.nfe) == length - 1
    drawn = np.asarray(samples.tokens)
    assert (drawn[:, 0] == VOCAB.bos_id).all() and (drawn < 4).all()
    for before in range(4):
        for position in range(1, length):
            after = drawn[drawn[:, position - 1] == before, position]
            if len(after) < 100:
                continue
            p = TRANSITION[before]
            share = np.bincount(after, minlength=4) / len(after)
            assert (np.abs(share - p) <= 4.5 * np.sqrt(p * (1 - p) / len(after))).all()


def test_fixed_tokens_stay_and_cost_no_call(key):
    tokens = np.array([[0, 3, 3, 0, 2, 1], [0, 1, 3, 1, 2, 1]])
    is_fixed = np.array([[True, True, False, True, False, True]]).repeat(2, axis=0)
    samples = run(by_row(key, jnp.arange(2)), tokens, is_fixed)
    drawn = np.asarray(samples.tokens)
    assert (drawn[is_fixed] == tokens[is_fixed]).all() and (drawn != VOCAB.mask_id).all()
    assert int(samples.nfe) == 2  # positions 2 and 4


def test_greedy_takes_the_likeliest_successor(key):
    tokens, is_fixed = np.zeros((1, 5), np.int32), np.eye(1, 5, dtype=bool)
    drawn = np.asarray(run(by_row(key, jnp.arange(1)), tokens, is_fixed, temperature=0.0).tokens)[0]
    for before, after in zip(drawn[:-1], drawn[1:], strict=True):
        assert after == TRANSITION[before].argmax()


def cached_and_whole(key, columns):
    """A causal network as it is, and with its cache kept from it."""
    network = CausalTransformer(width=32, depth=3, heads=2, qk_norm=True)
    params = init(network, key, columns)
    shake = lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    denoise = denoiser(network, columns, jax.tree.map(shake, params))
    whole = lambda asked, *, key=None: denoise(replace(asked, reading=None))
    return denoise, whole


def test_the_cache_changes_no_sample(key):
    rng = np.random.default_rng(1)
    rows, length = 6, 9
    cached, whole = cached_and_whole(key, VOCAB.size)
    tokens = rng.integers(0, 4, (rows, length))
    is_fixed = rng.random((rows, length)) < 0.4
    is_fixed[:, 0], is_fixed[3] = True, True
    found = {}
    for name, denoise in (("cached", cached), ("whole", whole)):
        found[name] = run(by_row(key, jnp.arange(rows)), tokens, is_fixed, denoise=denoise)
    same = np.asarray(found["cached"].tokens) == np.asarray(found["whole"].tokens)
    assert same.all() and len(np.unique(np.asarray(found["cached"].tokens))) == 4
    assert (np.asarray(found["cached"].tokens)[is_fixed] == tokens[is_fixed]).all()
    open_at = [np.flatnonzero(~row) for row in is_fixed if not row.all()]
    assert int(found["cached"].nfe) == 1 + max(at[-1] - at[0] + 1 for at in open_at)
