"""Processes that mix tokens and the mask: what they draw, and that there and back fit together.

Uniform noise and both forms of hybrid noise; what only hybrid noise has is in `test_hybrid`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from mdlm.keys import by_row
from mdlm.parameterizations.mean import Mean
from mdlm.processes.hybrid import Hybrid, HybridSchedule, LogSNRHybrid
from mdlm.processes.interpolating import Interpolating
from mdlm.processes.uniform import Uniform
from mdlm.schedules.closed_form import Cosine, CosineSquared, Geometric, LinearSigma, LogLinear
from mdlm.schedules.md4 import Polynomial
from mdlm.types import Vocab

MASK, V = 2, 6  # the mask among the tokens, not behind them; one column beyond the vocabulary
VOCAB = Vocab(size=V, mask_id=MASK)
B, L = 4, 2000
TOKENS = np.array([0, 1, 3, 4, 5])
P_0 = np.array([0.5, 0.2, 0.0, 0.05, 0.25, 0.0, 0.0])

UNBOUND = {
    "uniform": Uniform(),
    "uniform, eps 0": Uniform(schedule=LogLinear(eps=0.0)),
    "uniform, cosine": Uniform(schedule=Cosine()),
    "uniform, mixture": Uniform(posterior="mixture"),
    "hybrid": Hybrid(),
    "hybrid, gamma 2": Hybrid(schedule=HybridSchedule(p_uniform=0.5, gamma=2)),
    "hybrid, mixture": Hybrid(posterior="mixture"),
    "log-SNR": LogSNRHybrid(shift=1.0, scale=0.5),
    "log-SNR, cosine": LogSNRHybrid(schedule=CosineSquared(), shift=-1.0),
}
PROCESSES = {name: process.with_vocab(VOCAB) for name, process in UNBOUND.items()}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def rows(key, b=B):
    return by_row(key, jnp.arange(b))


def times(value, b=B):
    return jnp.full((b, 1), value)


def clean():
    return jnp.asarray(np.random.default_rng(0).choice(V + 1, size=(B, L), p=P_0), jnp.int32)


def log_p0(p=P_0):
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.broadcast_to(np.log(p), (B, L, V + 1)), jnp.float32)


def token_transition(process, t):
    """q(z | x), [x z], float32 times."""
    x, z = jnp.meshgrid(jnp.arange(V), jnp.arange(V), indexing="ij")
    return np.asarray(process.probability(z, x, jnp.full((V, V), t)), np.float64)


def assert_frequencies(drawn, p):
    """Each frequency within 4.5 standard errors of `p` (tokens that cannot occur: none)."""
    n, p = drawn.size, np.asarray(p)
    seen = np.bincount(np.ravel(drawn), minlength=len(p))
    assert (np.abs(seen - n * p) <= 4.5 * np.sqrt(n * p * (1 - p)) + 1e-3).all(), (seen / n, p)


def test_the_vocabulary_is_needed_and_checked():
    with pytest.raises(ValueError, match="Uniform has no mask_id"):
        Uniform().prior(by_row(jax.random.key(0), jnp.arange(1)), 2)
    with pytest.raises(ValueError, match=r"mask_id=3\): the vocabulary's is 2"):
        Uniform(mask_id=3).with_vocab(VOCAB)
    with pytest.raises(ValueError, match="fewer than two tokens"):
        Uniform().with_vocab(Vocab(size=2, mask_id=0))
    assert PROCESSES["uniform"].tokens == 5
    ids = jnp.array([-1, 0, 1, 2, 3, 5, 6])
    assert PROCESSES["uniform"].is_token(ids).tolist() == [
        False,
        True,
        True,
        False,
        True,
        True,
        False,
    ]


def test_what_makes_no_sense_is_refused():
    class ByToken(LogLinear):
        per_token = True

    with pytest.raises(ValueError, match="ByToken.*rate for each token"):
        Uniform(schedule=ByToken())
    with pytest.raises((ValueError, TypeCheckError), match="both"):
        Uniform(posterior="both")  # pyright: ignore[reportArgumentType]


@processes
def test_marginals_are_distributions(process):
    for t in (0.0, 1e-6, 0.3, 0.9, 1.0):
        q = token_transition(process, t)
        np.testing.assert_allclose(q[TOKENS].sum(1), 1, rtol=1e-6)
        assert (q >= 0).all()
    np.testing.assert_array_equal(token_transition(process, 0.0)[TOKENS][:, TOKENS], np.eye(5))


@processes
@pytest.mark.parametrize(("s", "t"), [(0.0, 0.5), (0.3, 0.31), (0.2, 0.9), (0.9, 1.0)])
def test_steps_compose(process, s, t):
    """q(z_t | x) is q(z_s | x) and a step from z_s; a step is a distribution."""
    token, mask = (np.asarray(a) for a in process.renewal(jnp.float32(s), jnp.float32(t)))
    alpha = [float(process.schedule.alpha(jnp.float32(a))) for a in (s, t)]
    noise = np.where(np.arange(V) == MASK, mask, token)
    step = alpha[1] / alpha[0] * np.eye(V) + noise[None]
    assert (noise >= 0).all()
    np.testing.assert_allclose(step.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        token_transition(process, s) @ step, token_transition(process, t), rtol=3e-5, atol=1e-9
    )


@processes
def test_rates_are_short_steps(process):
    h = 1e-6
    with jax.enable_x64(True):
        t = jnp.linspace(0.01, 0.99, 25)
        for rate, step in zip(process.rate(t), process.renewal(t - h / 2, t + h / 2), strict=True):
            np.testing.assert_allclose(step / h, rate, rtol=1e-4, atol=1e-12)


@processes
def test_float32_keeps_its_digits(process):
    """Noise, short and long steps, and rates, against float64 at the same times."""
    t = np.concatenate([np.geomspace(1e-6, 0.5, 30), 1 - np.geomspace(1e-6, 0.4, 30)])
    t = t.astype(np.float32)
    for share in (0.0, 0.5, 0.999):
        s = (share * t).astype(np.float32)
        ours = [process.noise(jnp.asarray(t)), process.renewal(jnp.asarray(s), jnp.asarray(t))]
        ours += [process.rate(jnp.asarray(t))]
        with jax.enable_x64(True):
            s_64, t_64 = jnp.asarray(s, jnp.float64), jnp.asarray(t, jnp.float64)
            exact = [process.noise(t_64), process.renewal(s_64, t_64), process.rate(t_64)]
        for mine, true in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(mine, true, rtol=3e-5)


@processes
def test_corrupt_and_prior_follow_their_distributions(key, process):
    x_0 = clean()
    z_t = jax.jit(process.corrupt)(rows(key), x_0, times(0.4))
    q = token_transition(process, 0.4)
    for token in (0, 4):
        assert_frequencies(np.asarray(z_t)[np.asarray(x_0) == token], q[token])
    prior = np.asarray(process.prior(rows(key), L))
    token, mask = (float(a) for a in process.noise(jnp.ones(())))
    at_noise = np.where(np.arange(V) == MASK, mask, token)
    assert_frequencies(prior, at_noise / at_noise.sum())
    if isinstance(process, Uniform):
        assert not (z_t == MASK).any() and not (prior == MASK).any()


def test_corrupt_keeps_what_may_not_change_and_knows_its_rows(key):
    process, x_0 = PROCESSES["hybrid"], clean()
    may = jnp.arange(L)[None] % 2 == jnp.arange(B)[:, None] % 2
    z_t = jax.jit(process.corrupt)(rows(key), x_0, times(0.9), may)
    assert (jnp.where(may, x_0, z_t) == x_0).all() and (z_t != x_0).any()
    t = jnp.linspace(0.1, 0.9, B)[:, None]
    whole = jax.jit(process.corrupt)(rows(key), x_0, t)
    part = jax.jit(process.corrupt)(by_row(key, jnp.arange(1, 3)), x_0[1:3], t[1:3])
    np.testing.assert_array_equal(part, whole[1:3])
    assert (jax.jit(process.corrupt)(rows(key), x_0, times(0.0)) == x_0).all()


@processes
@pytest.mark.parametrize("z", [1, MASK, 4])
def test_reverse_draws_from_its_probabilities(key, process, z):
    if z == MASK and isinstance(process, Uniform):
        return
    z_t, t, s = jnp.full((B, L), z), times(0.8), times(0.55)
    distribution = jax.jit(process.reverse_probabilities)(log_p0(), z_t, t, s)
    np.testing.assert_allclose(distribution.sum(-1), 1, rtol=1e-6)
    z_s = jax.jit(process.reverse)(rows(key), log_p0(), z_t, t, s)
    assert_frequencies(z_s, np.asarray(distribution[0, 0], np.float64))
    part = jax.jit(process.reverse)(rows(key, 3), log_p0()[:3], z_t[:3], t[:3], s[:3])
    np.testing.assert_array_equal(part, z_s[:3])


@processes
def test_reverse_is_the_posterior_as_defined(process):
    """The mixture over x of q(z_s | z_t, x), or the posterior with p in place of x."""
    s, t = 0.35, 0.6
    q_s, q_t = token_transition(process, s), token_transition(process, t)
    kept = (q_t[0, 0] - q_t[1, 0]) / (q_s[0, 0] - q_s[1, 0])
    noise = np.where(
        np.arange(V) == MASK, q_t[0, MASK] - kept * q_s[0, MASK], q_t[1, 0] - kept * q_s[1, 0]
    )
    step = kept * np.eye(V) + noise[None]
    p = P_0[:V]
    for z in range(V):
        if z == MASK and isinstance(process, Uniform):
            continue
        if process.posterior == "mixture":
            expected = sum(p[x] * step[:, z] * q_s[x] / q_t[x, z] for x in TOKENS)
        else:
            expected = step[:, z] * (p @ q_s) / (p @ q_t[:, z])
        z_t = jnp.full((B, L), z)
        distribution = jax.jit(process.reverse_probabilities)(log_p0(), z_t, times(t), times(s))[
            0, 0
        ]
        np.testing.assert_allclose(distribution, np.append(expected, 0), rtol=2e-5, atol=1e-7)


@processes
def test_reverse_of_a_known_token_undoes_corrupt(key, process):
    """z_s from q(z_t | x_0) and the exact posterior follows q(z_s | x_0)."""
    x_0 = clean()
    known = jnp.where(jax.nn.one_hot(x_0, V + 1) == 1, 0.0, -jnp.inf)
    there, back = (rows(jax.random.fold_in(key, i)) for i in range(2))
    z_t = jax.jit(process.corrupt)(there, x_0, times(0.7))
    z_s = np.asarray(jax.jit(process.reverse)(back, known, z_t, times(0.7), times(0.3)))
    q = token_transition(process, 0.3)
    for token in (0, 4):
        assert_frequencies(z_s[np.asarray(x_0) == token], q[token])
    ends = jax.jit(process.reverse)(back, known, z_t, times(0.7), times(0.0))
    np.testing.assert_array_equal(ends, x_0)


@processes
def test_reverse_at_the_ends(key, process):
    prior = process.prior(rows(key), L)
    for s in (0.0, 0.5, 0.999999):
        distribution = jax.jit(process.reverse_probabilities)(log_p0(), prior, times(1.0), times(s))
        assert jnp.isfinite(distribution).all()
        np.testing.assert_allclose(distribution.sum(-1), 1, rtol=1e-5)
    z_0 = jax.jit(process.reverse)(rows(key), log_p0(), prior, times(1.0), times(0.0))
    assert process.is_token(z_0).all()
    same = jax.jit(process.reverse)(rows(key), log_p0(), prior, times(0.5), times(0.5))
    np.testing.assert_array_equal(same, prior)


def test_mass_on_no_token_is_dropped():
    process, p = PROCESSES["hybrid"], np.array([0.1, 0.1, 0.4, 0.0, 0.2, 0.0, 0.2])
    z_t = jnp.full((B, L), MASK)
    distribution = jax.jit(process.reverse_probabilities)(log_p0(p), z_t, times(0.9), times(0.0))
    np.testing.assert_allclose(
        distribution[0, 0], [0.25, 0.25, 0, 0, 0.5, 0, 0], rtol=1e-6, atol=1e-7
    )


def test_the_two_readings_meet():
    """r(x) q(z | x), normalised, is p(x | z): mixing over p is plugging in r."""
    mixture, plug_in = (PROCESSES[name] for name in ("hybrid, mixture", "hybrid"))
    assert isinstance(mixture, Interpolating) and isinstance(plug_in, Interpolating)
    z_t, t, s = jnp.asarray(np.arange(B * L).reshape(B, L) % V), times(0.5), times(0.2)
    x = jnp.broadcast_to(jnp.arange(V), (B, L, V))
    q = plug_in.probability(jnp.broadcast_to(z_t[..., None], x.shape), x, jnp.full(x.shape, 0.5))
    p = P_0[:V] * np.asarray(q)
    given_all = log_p0(np.pad(p / p.sum(-1, keepdims=True), ((0, 0), (0, 0), (0, 1))))
    np.testing.assert_allclose(
        mixture.reverse_probabilities(given_all, z_t, t, s),
        plug_in.reverse_probabilities(log_p0(), z_t, t, s),
        rtol=2e-5,
        atol=1e-7,
    )
    r = mixture.given_others(given_all, z_t, jnp.full((B, L), 0.5))
    np.testing.assert_allclose(jnp.exp(r), jnp.exp(log_p0()), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", [Polynomial(power=2), LinearSigma(), Geometric()], ids=str)
def test_any_schedule_serves(schedule):
    for process in (Uniform(schedule=schedule), LogSNRHybrid(schedule=schedule)):
        bound = process.with_vocab(VOCAB)
        for s, t in ((0.0, 0.4), (0.4, 1.0)):
            for part in (
                *bound.noise(jnp.float32(t)),
                *bound.renewal(jnp.float32(s), jnp.float32(t)),
            ):
                assert jnp.isfinite(part) and part >= 0


def test_parameterization_and_process_agree_on_tokens():
    output = jnp.zeros((1, V + 1))
    distribution = jnp.exp(Mean().with_vocab(VOCAB).log_p0(output, jnp.zeros(1, jnp.int32)))
    np.testing.assert_array_equal(
        distribution[0] > 0, PROCESSES["uniform"].is_token(jnp.arange(V + 1))
    )
