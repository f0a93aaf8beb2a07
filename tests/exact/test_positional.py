"""Times of positions: the bound is the entropy for any of them, and samples have the right law."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from distribution import Distribution
from jax.random import key

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.models import CausalTransformer, DiT
from mdlm.objectives import Nelbo, Positional
from mdlm.parameterizations import Subs
from mdlm.processes import Masked, Uniform
from mdlm.samplers import Ancestral
from mdlm.schedules import ARDiffusion, Cosine, Independent, LeftFirst, LogLinear, RandomOffsets
from mdlm.schedules.positions import PositionTimes

DATA = Distribution()
PATHS = {
    "one time": LeftFirst(width=1.0),
    "one by one": LeftFirst(width=0.2),
    "overlapping": LeftFirst(width=0.6),
    "segments": LeftFirst(width=0.3, segment=2),
    "random": RandomOffsets(width=0.35),
    "AR-Diffusion": ARDiffusion(),
}


@cache
def by_hiding() -> np.ndarray:
    """E H(x_i | z) of the hidden positions, by pattern of hidden ones, [n l]."""
    found = []
    for hidden in DATA.hidings:
        groups: dict[tuple, np.ndarray] = {}
        for x, p in zip(DATA.sequences, DATA.p, strict=True):
            joint = groups.setdefault(tuple(x[~hidden]), np.zeros((DATA.length, DATA.symbols)))
            joint[np.arange(DATA.length), x] += p
        joint = np.stack(list(groups.values()))
        posterior = joint / joint.sum(-1, keepdims=True)
        terms = joint * np.log(np.maximum(posterior, 1e-300))
        found.append(np.where(hidden, -terms.sum((0, 2)), 0))
    return np.stack(found)


def remaining(masked: np.ndarray) -> np.ndarray:
    """E H(x_i | z) of each position that is masked, [t l], where position i is masked with
    probability masked[t, i], independently of the others."""
    share = np.where(DATA.hidings, masked[:, None], 1 - masked[:, None]).prod(-1)
    return share @ by_hiding()


@pytest.mark.parametrize(
    "schedule", [LogLinear(eps=0.0), Cosine(eps=0.0)], ids=["linear", "cosine"]
)
@pytest.mark.parametrize("name", PATHS)
def test_the_bound_is_the_entropy(name, schedule):
    """By quadrature over the time of the row, for offsets of two rows."""
    at, by = np.polynomial.legendre.leggauss(12)
    cuts = np.linspace(0, 1, 121)
    t = np.concatenate(
        [(a + b) / 2 + (b - a) / 2 * at for a, b in zip(cuts, cuts[1:], strict=False)]
    )
    dt = np.tile(by / 240, 120)
    for row in range(2):
        keys = by_row(key(3), jnp.full(len(t), row))
        own, rate = PATHS[name].with_rates(keys, jnp.asarray(t, jnp.float32)[:, None], DATA.length)
        inside = np.asarray((own > 0) & (rate > 0))
        weight = np.where(inside, rate * schedule.weight(jnp.where(inside, own, 0.5)), 0.0)
        masked = np.asarray(schedule.one_minus_alpha(own), np.float64)
        found = dt @ (weight * remaining(masked)).sum(1)
        assert found == pytest.approx(DATA.entropy, rel=2e-3)


def test_independent_times_are_no_bound():
    """Of three copies of a bit, log 2 nats, they ask for 0.75 log 2: with independent times a token
    is seldom scored while all others are hidden."""
    hidden = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], bool)
    x = np.repeat([[0, 0, 0], [1, 1, 1]], 8, axis=0)
    z = np.where(np.tile(hidden, (2, 1)), 2, x)

    # A token is masked with probability t, at weight 1 / t: given that it is, the others are
    # masked with probability 1/2 each, and its cross-entropy counts in full.
    lonely = np.all(z == 2, axis=1)
    loss = 3 * np.log(2) * lonely[:8].sum() / 4
    assert loss == pytest.approx(0.75 * np.log(2))
    objective = Positional(by=Independent())
    assert "no bound" in objective.protocol and objective.reported() == Nelbo()
    assert Positional(by=ARDiffusion()).reported() == Positional(by=ARDiffusion())

    def denoise(inputs, *, key=None):
        from mdlm.types import DenseLogits

        ones, zeros = ((inputs.tokens == v).sum(1, keepdims=True) for v in (1, 0))
        return DenseLogits(
            jnp.stack([zeros * 50.0, ones * 50.0, -50.0 * jnp.ones_like(zeros)], -1)
            + jnp.zeros((*inputs.tokens.shape, 1))
        )

    rows = 40000
    batch = DATA.batch(np.repeat([[0, 0, 0], [1, 1, 1]], rows // 2, axis=0))
    parts = dict(
        process=Masked(schedule=LogLinear(eps=0.0), mask_id=2),
        parameterization=Subs(mask_id=2, vocab_size=3),
    )
    terms = jax.jit(lambda k: objective(k, batch, Diffusion(denoise=denoise, **parts)))(key(0))
    by_row_ = np.asarray(terms.bound.sum(1), np.float64)
    error = by_row_.std() / np.sqrt(rows)
    assert by_row_.mean() == pytest.approx(0.75 * np.log(2), abs=5 * error) and error < 0.02


@pytest.mark.parametrize("name", PATHS)
def test_samples_have_the_distribution(name):
    rows, p = 8000, oracle.P_DATA
    sampler = Ancestral(steps=256, positions=PATHS[name])
    tokens = oracle.sample(key(5), rows, sampler).tokens
    # Two positions fall into one step of 256 now and then.
    assert oracle.distance(tokens, p) < 1.5 * oracle.noise_floor(p, rows) + 0.004


def test_one_by_one_is_left_to_right():
    """Positions are revealed in order, and the network is asked once for each."""
    sampler = Ancestral(steps=300, positions=LeftFirst(width=1 / oracle.LENGTH))
    found = oracle.sample(key(0), 200, sampler)
    assert int(found.nfe) == oracle.LENGTH
    order = sampler.init(
        by_row(key(0), jnp.arange(50)),
        jnp.full((50, oracle.LENGTH), oracle.MASK),
        jnp.zeros((50, oracle.LENGTH), bool),
        Diffusion(denoise=oracle.posterior, **oracle.PARTS),
    ).due
    assert (np.diff(order, axis=1) > 0).all()


def test_one_time_is_the_usual_sampler():
    usual, same = (
        oracle.sample(key(2), 300, Ancestral(steps=16, positions=by)).tokens
        for by in (None, LeftFirst(width=1.0))
    )
    np.testing.assert_array_equal(usual, same)


@pytest.mark.parametrize(
    "times, words",
    [
        (lambda: LeftFirst(width=0.0), "width=0.0"),
        (lambda: RandomOffsets(width=1.5), "width=1.5"),
        (lambda: LeftFirst(width=0.5, segment=0), "segment=0"),
        (lambda: Positional(by=ARDiffusion(), t_min=0.0), "t_min=0.0"),
    ],
)
def test_impossible_values_are_refused(times, words):
    with pytest.raises(ValueError, match=words):
        times()


def test_what_fits():
    parts, objective = (Masked(), Subs()), Positional(by=ARDiffusion())
    assert isinstance(objective.by, PositionTimes)
    for network in (DiT(), CausalTransformer()):
        assert objective.incompatibility(*parts, network) is None
    assert "process" in (objective.incompatibility(Uniform(), Subs()) or "")
    sampler = Ancestral(positions=Independent())
    assert "do not lead from noise to a text" in (sampler.incompatibility(*parts, DiT()) or "")
