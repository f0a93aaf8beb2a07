"""Tokens with rates of their own, against enumerated truth.

What a masked position hides then depends on the time too: the posterior of x given z_t weighs each
sequence with the probability that its own tokens are masked by now.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distribution import Distribution

from mdlm.diffusion import Diffusion
from mdlm.keys import stream
from mdlm.objectives.generalized import GeneralizedDiscreteNelbo, GeneralizedNelbo, Moment
from mdlm.objectives.nelbo import Nelbo
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.loop import generate
from mdlm.samplers.reverse import Reverse
from mdlm.schedules.per_token import LearnedPolynomial, Spindle
from mdlm.types import DenseLogits, NetInput

DATA = Distribution()
MASK, V = DATA.mask_id, DATA.mask_id + 1
SUBS = Subs(mask_id=MASK, vocab_size=V)
W = jnp.array([-0.6, 0.7, 1.9, 0.0])
COUNTS = np.array([900, 90, 10, 0])
SCHEDULES = {
    "learned": LearnedPolynomial(eps=0.0, vocab_size=V, w=W),
    "learned, eps": LearnedPolynomial(eps=0.05, vocab_size=V, w=W),
    "spindle": Spindle().with_counts(COUNTS),
}
CLOSED = ("learned", "spindle")  # alpha(1) = 0: no prior term
schedules = pytest.mark.parametrize("name", SCHEDULES)
closed = pytest.mark.parametrize("name", CLOSED)

# Every sequence with every masking of it.
X = np.repeat(DATA.sequences, len(DATA.hidings), axis=0)
HIDDEN = np.tile(DATA.hidings, (len(DATA.sequences), 1))
Z = np.where(HIDDEN, MASK, X)
P = np.repeat(DATA.p, len(DATA.hidings))
GROUP = np.unique(Z, axis=0, return_inverse=True)[1].reshape(-1)  # pairs of the same z


def noised(schedule, t: float) -> np.ndarray:
    """1 - alpha of each symbol, float64."""
    if isinstance(schedule, Spindle):
        return t + np.asarray(schedule.bend, np.float64)[:MASK] * np.sin(np.pi * t)
    power = np.log1p(np.exp(np.asarray(W, np.float64)))[:MASK]
    return (1 - schedule.eps) * t**power


def q(schedule, t: float) -> np.ndarray:
    """q(z | x) of every pair, float64."""
    a = noised(schedule, t)[X]
    return np.prod(np.where(HIDDEN, a, 1 - a), axis=1)


def posterior(schedule, t: float) -> np.ndarray:
    """p(x_i = k | z_t), [pairs l v], float64."""
    weight = P * q(schedule, t)
    table = np.zeros((GROUP.max() + 1, DATA.length, V))
    for i in range(DATA.length):
        np.add.at(table[:, i], (GROUP, X[:, i]), weight)
    return (table / np.maximum(table.sum(-1, keepdims=True), 1e-300))[GROUP]


def remaining(schedule, t: float) -> float:
    """H(x | z_t), nats."""
    joint = P * q(schedule, t)
    marginal = np.bincount(GROUP, joint)[GROUP]
    there = joint > 0
    return float(-(joint[there] * np.log(joint[there] / marginal[there])).sum())


def expected(objective, schedule, at: list[dict], reads=posterior) -> np.ndarray:
    """E over x and z_t of the loss at each moment, nats per sequence, by the objective's code."""
    n = len(at)
    posts = [reads(schedule, a["t"]) for a in at]
    moments = Moment(
        **{
            name: jnp.asarray(np.repeat([a[name] for a in at], len(X)))[:, None]
            for name in ("t", "s", "is_last", "scale")
        }
    )
    logits = np.log(np.maximum(np.concatenate(posts), 1e-30))
    z = jnp.asarray(np.tile(Z, (n, 1)), jnp.int32)

    @jax.jit
    def bound(logits):
        return objective.score(
            DATA.batch(np.tile(X, (n, 1))),
            z_t=z[:, None],
            at=moments,
            diffusion=Diffusion(
                process=Masked(schedule=schedule, mask_id=MASK),
                parameterization=SUBS,
                denoise=lambda inputs, *, key=None: DenseLogits(logits),
            ),
        ).bound.sum(-1)

    losses = np.asarray(bound(jnp.asarray(logits, jnp.float32)), np.float64).reshape(n, -1)
    return np.array(
        [(P * q(schedule, a["t"]) * loss).sum() for a, loss in zip(at, losses, strict=True)]
    )


def moment(t, s=None, is_last=False, scale=1.0) -> dict:
    return {"t": t, "s": t if s is None else s, "is_last": is_last, "scale": scale}


def nodes(low: float, high: float, n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on [low, high], in 8 pieces graded towards 0."""
    x, w = np.polynomial.legendre.leggauss(n)
    cuts = low + (high - low) * np.linspace(0, 1, 9) ** 6
    at = [(a + b) / 2 + (b - a) / 2 * x for a, b in zip(cuts, cuts[1:], strict=False)]
    by = [(b - a) / 2 * w for a, b in zip(cuts, cuts[1:], strict=False)]
    return np.concatenate(at), np.concatenate(by)


def integral(objective, schedule, low, high, reads=posterior) -> float:
    """The diffusion term between two times."""
    t, dt = nodes(low, high)
    t = t.astype(np.float32).astype(np.float64)
    return float(dt @ expected(objective, schedule, [moment(a) for a in t], reads))


@schedules
def test_diffusion_term_is_the_information_that_noise_removes(name):
    schedule = SCHEDULES[name]
    for low, high in ((0.0, 1.0), (0.1, 0.6)):
        term = integral(GeneralizedNelbo(), schedule, low, high)
        between = remaining(schedule, high) - remaining(schedule, low)
        assert term == pytest.approx(between, abs=3e-5), (low, high)


@closed
def test_bound_is_the_entropy_and_what_the_reconstruction_costs(name):
    schedule, t_min = SCHEDULES[name], 0.05
    objective = GeneralizedNelbo(t_min=t_min)
    at = objective.moments(jnp.array([[0.01], [0.5]]))
    np.testing.assert_array_equal(at.is_last[:, 0], [True, False])
    np.testing.assert_allclose(at.t[:, 0], [t_min, 0.5])
    last = moment(t_min, is_last=True, scale=float(at.scale[0, 0]))
    total = integral(objective, schedule, t_min, 1.0)
    total += t_min * expected(objective, schedule, [last])[0]
    # Masked together, they are read one by one: each by its own marginal.
    marginal = np.take_along_axis(posterior(schedule, t_min), X[..., None], -1)[..., 0]
    apart = -(P * q(schedule, t_min) * (HIDDEN * np.log(marginal)).sum(1)).sum()
    assert apart > remaining(schedule, t_min) + 1e-5
    cost = apart - remaining(schedule, t_min)
    assert total == pytest.approx(DATA.entropy + cost, abs=3e-5)


@closed
def test_published_bound_is_looser(name):
    """t uniform on [t_min, 1] without rescaling, and the last tokens guessed from their rates."""
    schedule, t_min = SCHEDULES[name], 0.05
    objective = GeneralizedNelbo(t_min=t_min, reconstruction="rates")
    at = objective.moments(jnp.array([[0.0], [0.5]]))
    np.testing.assert_allclose(at.t[:, 0], [t_min, t_min + (1 - t_min) / 2], rtol=1e-6)
    assert (at.scale == 1).all() and not at.is_last.any()
    diffusion = integral(GeneralizedNelbo(), schedule, t_min, 1.0)
    process = Masked(schedule=schedule, mask_id=MASK)
    by_rates = objective.by_rates(process, jnp.asarray(DATA.sequences)).sum(1)
    reconstruction = float(DATA.p @ np.asarray(by_rates, np.float64))
    a = noised(schedule, t_min)
    guess = a[DATA.sequences] * -np.log(a[DATA.sequences] / a.sum())
    assert reconstruction == pytest.approx(float(DATA.p @ guess.sum(1)), rel=1e-5)
    assert diffusion + reconstruction > DATA.entropy
    u, du = nodes(0.0, 1.0)
    t = np.asarray(objective.moments(jnp.asarray(u, jnp.float32)[:, None]).t, np.float64)[:, 0]
    published = float(du @ expected(objective, schedule, [moment(a) for a in t]))
    assert published == pytest.approx(diffusion / (1 - t_min) + reconstruction, abs=1e-4)


def flattered(schedule, t: float) -> np.ndarray:
    """Not the posterior, but that in proportion to the rates: what cross-entropy alone likes."""
    w = np.asarray(schedule.of_all().weight(jnp.full((1, V), t)))
    mu = posterior(schedule, t) * w
    return mu / np.maximum(mu.sum(-1, keepdims=True), 1e-300)


@closed
def test_weighted_cross_entropy_alone_is_no_bound(name):
    schedule = SCHEDULES[name]
    t, dt = nodes(1e-4, 1.0)
    x_0 = jnp.asarray(np.tile(X, (len(t), 1)))
    now = jnp.broadcast_to(jnp.asarray(np.repeat(t, len(X)), jnp.float32)[:, None], x_0.shape)
    weight = np.asarray(schedule.weight(now, x_0), np.float64).reshape(len(t), *X.shape)

    def weighted(reads):
        total = 0.0
        for at, by, w in zip(t, dt, weight, strict=True):
            mu = np.take_along_axis(reads(schedule, at), X[..., None], -1)[..., 0]
            loss = np.where(HIDDEN, -w * np.log(np.maximum(mu, 1e-300)), 0.0).sum(1)
            total += by * (P * q(schedule, at) * loss).sum()
        return total

    assert "no bound" in (Nelbo().incompatibility(Masked(schedule=schedule), SUBS) or "")
    # With the true posterior, the missing term is 0 in the mean.
    assert weighted(posterior) == pytest.approx(DATA.entropy, abs=2e-3)
    assert weighted(flattered) < DATA.entropy - 0.01
    assert integral(GeneralizedNelbo(), schedule, 0.0, 1.0, flattered) > DATA.entropy + 0.01


@closed
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_discrete_bound_is_the_chain_s_divergence(name, steps):
    """Against the divergences of the reverse chain itself, step by step, by enumeration."""
    schedule = SCHEDULES[name]
    process = Masked(schedule=schedule, mask_id=MASK)
    objective = GeneralizedDiscreteNelbo(steps=steps)
    drawn = objective.moments((jnp.arange(steps)[:, None] + 0.5) / steps)
    at = [
        {name: np.asarray(value)[k, 0].item() for name, value in vars(drawn).items()}
        for k in range(steps)
    ]
    z, truth = jnp.asarray(Z), jnp.log(jax.nn.one_hot(jnp.asarray(X), V))
    for reads in (posterior, flattered):
        chain = 0.0
        for now in at:
            times = [jnp.full((len(X), 1), now[name]) for name in "ts"]
            logits = np.log(np.maximum(reads(schedule, now["t"]), 1e-30))
            model = SUBS.log_p0(jnp.asarray(logits, jnp.float32), z)
            true = np.asarray(process.reverse_probabilities(truth, z, *times), np.float64)
            ours = np.asarray(process.reverse_probabilities(model, z, *times), np.float64)
            ratio = np.where(true > 0, true / np.maximum(ours, 1e-300), 1.0)
            chain += (P * q(schedule, now["t"]) * (true * np.log(ratio)).sum((1, 2))).sum()
        bound = expected(objective, schedule, at, reads).mean()
        assert bound == pytest.approx(chain, rel=1e-4)
        assert bound >= DATA.entropy - 1e-4


@closed
def test_discrete_bound_tends_to_the_entropy(name):
    schedule, steps = SCHEDULES[name], 400
    objective = GeneralizedDiscreteNelbo(steps=steps)
    drawn = objective.moments((jnp.arange(steps)[:, None] + 0.5) / steps)
    at = [
        {name: np.asarray(value)[k, 0].item() for name, value in vars(drawn).items()}
        for k in range(steps)
    ]
    bound = expected(objective, schedule, at).mean()
    assert DATA.entropy < bound < DATA.entropy + 0.01


class Posterior:
    """The true posterior, as a network that is told the time."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, inputs: NetInput, *, key=None) -> DenseLogits:
        z = inputs.tokens
        sequences, p = jnp.asarray(DATA.sequences), jnp.asarray(DATA.p, jnp.float32)
        shape = (len(z), len(p), DATA.length)
        token = jnp.broadcast_to(sequences[None], shape)
        a = self.schedule.one_minus_alpha(jnp.broadcast_to(inputs.t[:, None], shape), token)
        z = z[:, None]
        is_hidden = z == MASK
        weight = p[None] * jnp.where(is_hidden, a, z == token).prod(-1)
        mass = jnp.einsum("bn,nlv->blv", weight, jax.nn.one_hot(sequences, V))
        return DenseLogits(jnp.log(jnp.maximum(mass, 1e-30)))


DRAWN = {
    "continuous": GeneralizedNelbo(),
    "published": GeneralizedNelbo(reconstruction="rates"),
    "discrete": GeneralizedDiscreteNelbo(steps=500),
}


@closed
@pytest.mark.parametrize("objective", DRAWN)
def test_expected_loss_is_the_entropy(name, objective):
    """The whole objective, its own draws included, within four standard errors."""
    schedule, rows, repeats = SCHEDULES[name], 4096, 120

    @jax.jit
    def once(key):
        rank = jax.random.choice(
            stream(key, "data"), len(DATA.p), (rows,), p=jnp.asarray(DATA.p, jnp.float32)
        )
        tokens = jnp.asarray(DATA.sequences, jnp.int32)[rank]
        batch = dataclasses.replace(DATA.batch(np.zeros((rows, DATA.length))), tokens=tokens)
        terms = DRAWN[objective](
            stream(key, "loss"),
            batch,
            diffusion=Diffusion(
                process=Masked(schedule=schedule, mask_id=MASK),
                parameterization=SUBS,
                denoise=Posterior(schedule),
            ),
        )
        # The mean information of the rows drawn takes the data's own spread out of the estimate.
        return terms.bound.sum() / rows + jnp.log(jnp.asarray(DATA.p, jnp.float32))[rank].mean()

    gap = np.array([once(key) for key in jax.random.split(jax.random.key(1), repeats)], np.float64)
    error = gap.std(ddof=1) / np.sqrt(repeats)
    assert error < 0.01
    slack = 0.0
    if "discrete" in objective:
        slack = 0.01  # two tokens are revealed in one step now and then
    elif objective == "published":
        # E of the reconstruction, t_min^p ln(1 / guess) by token, and 1 / (1 - t_min).
        process = Masked(schedule=schedule, mask_id=MASK)
        by_rates = DRAWN[objective].by_rates(process, jnp.asarray(DATA.sequences)).sum(1)
        slack = float(DATA.p @ np.asarray(by_rates)) + 1e-3 * DATA.entropy
    assert -4 * error < gap.mean() < 4 * error + slack


@schedules
def test_reverse_draws_from_the_distribution_of_bayes(name, key):
    """Masked at t: x_0 = k and clean at s with probability mu_k (alpha_s - alpha_t)_k / (1 - ..."""
    schedule, n = SCHEDULES[name], 40_000
    process = Masked(schedule=schedule, mask_id=MASK)
    t, s, mu = 0.7, 0.4, np.array([0.2, 0.5, 0.3, 0.0])
    a_t, a_s = noised(schedule, t), noised(schedule, s)
    reveal = mu[:MASK] * (a_t - a_s) / a_t
    p = np.append(reveal, 1 - reveal.sum())
    shape = (8, n // 8)
    with np.errstate(divide="ignore"):
        log_p0 = jnp.asarray(np.broadcast_to(np.log(mu), (*shape, V)), jnp.float32)
    z_t = jnp.full(shape, MASK)
    times = [jnp.full((8, 1), a) for a in (t, s)]
    ours = process.reverse_probabilities(log_p0, z_t, *times)
    np.testing.assert_allclose(ours, np.broadcast_to(p, ours.shape), rtol=1e-5)
    drawn = process.reverse(jax.random.split(key, 8), log_p0, z_t, *times)
    seen = np.bincount(np.asarray(drawn).reshape(-1), minlength=V)
    assert (np.abs(seen - n * p) < 4.5 * np.sqrt(n * p * (1 - p))).all()
    # One rate for all would be another distribution, by much more than that.
    one = mu[:MASK] * (mu[:MASK] @ ((a_t - a_s) / a_t))
    assert (np.abs(one - reveal) > 6 * np.sqrt(reveal / n)).any()


@closed
def test_samples_have_the_distribution(name, key):
    schedule, n, steps = SCHEDULES[name], 8192, 200
    out = jax.jit(
        lambda keys: generate(
            keys,
            jnp.zeros((n, DATA.length), jnp.int32),
            jnp.zeros((n, DATA.length), bool),
            sampler=Reverse(steps=steps),
            diffusion=Diffusion(
                process=Masked(schedule=schedule, mask_id=MASK),
                parameterization=SUBS,
                denoise=Posterior(schedule),
            ),
        )
    )(jax.random.split(key, n))
    place = DATA.symbols ** np.arange(DATA.length)[::-1]
    seen = np.bincount(np.asarray(out.tokens) @ place, minlength=len(DATA.p)) / n
    # Two tokens revealed in one step are drawn apart: a share of about 3 / steps of the samples.
    allowed = 4.5 * np.sqrt(DATA.p / n) + 3 / steps
    assert (np.abs(seen - DATA.p) < allowed).all()
    assert np.abs(seen - DATA.p).sum() < 0.06
