"""What is promised of more samplers than one: no thinned tails, no entropy lost with the steps,
and rows that know nothing of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import PARTS, sample

from mdlm.config.component_text import from_text
from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.models.causal import CausalTransformer
from mdlm.models.network import denoiser, init
from mdlm.parameterizations.score import Score
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers import Sampler
from mdlm.samplers.loop import generate
from mdlm.types import DenseLogits, Prediction, Vocab


class SameDistribution(Prediction):
    """One distribution for every position, so that a large vocabulary takes no memory."""

    def __init__(self, row):
        self.row = row

    def logits(self, at=None):
        assert at is not None, "logits of all positions are never to be asked for"
        return jnp.broadcast_to(self.row[None], (at.shape[0], self.row.shape[0]))

    def reduce_rows(self, fn, rows, weight, shared=None):
        raise AssertionError("not used in sampling")


def of_one_distribution(key, p, text, rows, length):
    """Tokens that a sampler writes; every position has distribution `p` (the mask left out)."""
    vocab = Vocab(size=len(p) + 1, mask_id=len(p))
    row = jnp.asarray(np.append(np.log(p), 0.0), jnp.float32)
    shape = (1, length)
    out = sample(
        key,
        rows,
        from_text(text, Sampler),
        tokens=np.zeros(shape, np.int32),
        is_fixed=np.zeros(shape, bool),
        denoise=lambda inputs, key=None: SameDistribution(row),
        process=Masked().with_vocab(vocab),
        parameterization=Subs().with_vocab(vocab),
    )
    return np.asarray(out.tokens)


def check_the_tail(key, rows):
    """32,768 tokens of probability 2^-22 each, drawn in the sampling loop. Mask and token drawn in
    one go, in 256 steps, would lose half of them."""
    rare, length = 32768, 512
    p = np.full(rare + 1, 2.0**-22)
    p[7] = 1 - rare * 2.0**-22
    tokens = of_one_distribution(key, p, "Ancestral(steps=256)", rows, length)
    share = rare * 2.0**-22
    error = np.sqrt(share * (1 - share) / tokens.size)
    assert abs((tokens != 7).mean() - share) < 4 * error


def test_a_tail_of_rare_tokens_comes_at_its_rate(key):
    check_the_tail(key, 256)


@pytest.mark.slow
def test_a_tail_of_rare_tokens_comes_at_its_rate_in_a_million_draws(key):
    check_the_tail(key, 2048)


@pytest.mark.parametrize("steps", [4, pytest.param(512, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "text",
    [
        "Ancestral(steps={})",
        "Remask(steps={})",
        "Remask(steps={}, strategy='confidence')",
        "RemaskLoop(steps={})",
        "Psi(steps={})",
        "Parallel(rule=Share(steps={}), order='random')",
    ],
)
def test_entropy_does_not_fall_with_the_steps(key, text, steps):
    """Independent tokens: their mean surprise is the entropy, however many the steps."""
    p = 1 / np.arange(1, 400)
    p /= p.sum()
    tokens = of_one_distribution(key, p, text.format(steps), 256, 64)
    surprise, entropy = -np.log(p[tokens]), -(p * np.log(p)).sum()
    assert abs(surprise.mean() - entropy) < 4 * surprise.std() / np.sqrt(tokens.size)


LEFT = jax.random.normal(jax.random.key(5), (50, 50)) * 2


def by_left_neighbour(inputs, *, key=None):
    """A network that looks at the token to the left: what is drawn depends on what was drawn."""
    return DenseLogits(LEFT[jnp.roll(inputs.tokens, 1, axis=1)])


def causal():
    network = CausalTransformer(width=32, depth=2, heads=2, dtype="float32")
    params = init(network, jax.random.key(3), 50)
    return denoiser(network, 50, params)


VOCAB = Vocab(size=50, mask_id=49)
SUBS = Masked().with_vocab(VOCAB), Subs().with_vocab(VOCAB)
ABSORBING = Masked().with_vocab(VOCAB), Score().with_vocab(VOCAB)
UNIFORM = Uniform().with_vocab(VOCAB), Score(graph="uniform").with_vocab(VOCAB)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Reverse(steps=5)", SUBS),
        ("Tweedie(steps=5)", ABSORBING),
        ("Tweedie(steps=5)", UNIFORM),
        ("Euler(steps=5)", ABSORBING),
        ("Remask(steps=5, strategy='confidence')", SUBS),
        ("LeftToRight()", SUBS),
    ],
)
def test_a_row_does_not_depend_on_the_rows_beside_it(key, text, parts):
    rows, length = 9, 7
    process, parameterization = parts
    denoise = causal() if text.startswith("Left") else by_left_neighbour
    run = jax.jit(
        lambda keys, tokens, is_fixed: (
            generate(
                keys,
                tokens,
                is_fixed,
                sampler=from_text(text, Sampler),
                diffusion=Diffusion(
                    process=process, parameterization=parameterization, denoise=denoise
                ),
            ).tokens
        )
    )
    rng = np.random.default_rng(2)
    keys = by_row(key, jnp.arange(rows))
    tokens, is_fixed = rng.integers(0, 49, (rows, length)), rng.random((rows, length)) < 0.2
    is_fixed[:, 0] = text.startswith("Left")  # it reads one token at least
    together = np.asarray(run(keys, tokens, is_fixed))
    for row in (0, 4, 8):
        part = slice(row, row + 1)
        alone = np.asarray(run(keys[part], tokens[part], is_fixed[part]))
        assert (alone[0] == together[row]).all()
    assert len({tuple(row) for row in together}) == rows


def least_calls(steps, length):
    """Mean number of steps of a uniform grid that reveal something, alpha = 1 - t."""
    return steps * (1 - (1 - 1 / steps) ** length)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ancestral(steps=8)", least_calls(8, 3)),
        ("Remask(steps=8, eta=0.0)", least_calls(8, 3)),
        ("Psi(steps=8, kappa=1.0)", least_calls(8, 3)),
        ("FirstHitting()", 3.0),
        ("FirstHitting(per_call=2)", 2.0),
        ("Parallel(rule=FixedCount(per_call=2))", 2.0),
        ("Reverse(steps=8)", 8.0),
    ],
)
def test_calls_are_as_many_as_promised(key, text, expected):
    """E[NFE] = N (1 - (1 - 1/N)^L) where reveals are drawn on a grid, one row at a time."""

    def one(key):
        fresh = jnp.zeros((1, 3), jnp.int32), jnp.zeros((1, 3), bool)
        denoise = lambda inputs, key=None: DenseLogits(jnp.zeros((1, 3, 4)))
        return generate(
            key[None],
            *fresh,
            sampler=from_text(text, Sampler),
            diffusion=Diffusion(denoise=denoise, **PARTS),
        ).nfe

    runs = 1000
    called = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(by_row(key, jnp.arange(runs))))
    assert abs(called.mean() - expected) <= 4 * called.std() / np.sqrt(runs)
