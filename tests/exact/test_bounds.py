"""Bounds against enumerated truth: the true posterior as network, all sequences, all maskings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distribution import SCHEDULES, TIGHT, Distribution

from mdlm.diffusion import Diffusion
from mdlm.keys import stream
from mdlm.objectives.base import score_masked
from mdlm.objectives.discrete_time import DiscreteNelbo
from mdlm.objectives.nelbo import Nelbo
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import LogLinear
from mdlm.schedules.md4 import Polynomial
from mdlm.times import IID
from mdlm.types import NetInput

DATA = Distribution()


def enumerated(schedule, t: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """E over x and z_t of the weighted loss, nats per sequence, at each time."""
    process = Masked(schedule=schedule, mask_id=DATA.mask_id)
    n, m = len(DATA.sequences), len(DATA.hidings)
    x = np.repeat(DATA.sequences, m, axis=0)
    hidden = np.tile(DATA.hidings, (n, 1))
    z = np.where(hidden, DATA.mask_id, x)

    @jax.jit
    def losses(weight):
        return score_masked(
            DATA.batch(x),
            z_t=jnp.asarray(z, jnp.int32),
            t=jnp.full((len(x), 1), 0.5),  # the posterior of a masked process has no time in it
            weight=jnp.full((len(x), 1), weight),
            diffusion=Diffusion(
                process=process,
                parameterization=Subs(mask_id=DATA.mask_id, vocab_size=DATA.mask_id + 1),
                denoise=DATA.denoise,
            ),
        ).bound.sum(-1)

    cross_entropy = np.asarray(losses(1.0), np.float64)
    p = np.repeat(DATA.p, m)
    noised = np.asarray(schedule.one_minus_alpha(jnp.asarray(t, jnp.float32)), np.float64)
    out = []
    for a, w in zip(noised, weight, strict=True):
        q = np.prod(np.where(hidden, a, 1 - a), axis=1)
        out.append(float(w) * (p * q * cross_entropy).sum())
    return np.array(out)


def nodes(low: float, high: float, n: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on [low, high], in 16 pieces graded towards both ends, more so to 0."""
    x, w = np.polynomial.legendre.leggauss(n)
    grade = (1 - np.cos(np.pi * np.arange(17) / 16)) / 2
    cuts = low + (high - low) * grade**8
    at = np.concatenate(
        [(a + b) / 2 + (b - a) / 2 * x for a, b in zip(cuts, cuts[1:], strict=False)]
    )
    by = np.concatenate([(b - a) / 2 * w for a, b in zip(cuts, cuts[1:], strict=False)])
    return at, by


@pytest.mark.parametrize("name", SCHEDULES)
def test_diffusion_term_is_the_information_that_noise_removes(name):
    schedule = SCHEDULES[name]
    t, dt = nodes(0.0, 1.0)
    weight = np.asarray(schedule.weight(jnp.asarray(t, jnp.float32)), np.float64)
    term = (dt * enumerated(schedule, t, weight)).sum()
    ends = schedule.one_minus_alpha(jnp.array([0.0, 1.0]))
    clean, noise = (DATA.remaining(1 - float(a)) for a in ends)
    # I(x; z_0) - I(x; z_1) = H(x | z_1) - H(x | z_0)
    assert term == pytest.approx(noise - clean, abs=2e-5 * DATA.entropy + 2e-5)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("t_min", [1e-3, 0.05])
def test_nelbo_with_reconstruction_is_the_entropy(power, t_min):
    schedule = Polynomial(power=power)  # alpha(0) = 1, alpha(1) = 0: no prior term
    objective = Nelbo(t_min=t_min)
    total = 0.0
    for low, high in ((0.0, t_min), (t_min, 1.0)):
        u, du = nodes(low, high)
        t, weight = objective.times_and_weights(schedule, jnp.asarray(u, jnp.float32)[:, None])
        at = enumerated(schedule, np.asarray(t)[:, 0], np.asarray(weight, np.float64)[:, 0])
        total += (du * at).sum()
    # Reconstruction treats tokens that are masked together as independent: (1 - alpha)^2 of it.
    together = float(schedule.one_minus_alpha(jnp.asarray(t_min))) ** 2
    assert total >= DATA.entropy - 3e-5
    assert total == pytest.approx(DATA.entropy, abs=3e-5 + 3 * together * DATA.entropy)


def test_dropping_the_reconstruction_changes_the_bound():
    schedule = LogLinear(eps=0.0)
    u, du = nodes(0.0, 1.0)
    t, weight = Nelbo(t_min=0.05, reconstruction=False).times_and_weights(
        schedule, jnp.asarray(u, jnp.float32)[:, None]
    )
    published = (du * enumerated(schedule, np.asarray(t)[:, 0], np.asarray(weight)[:, 0])).sum()
    # Uniform on [t_min, 1] without rescaling: above the entropy for a log-linear schedule.
    assert published > DATA.entropy + 1e-3


@pytest.mark.parametrize("name", TIGHT)
def test_expected_loss_is_the_entropy(name):
    """The whole objective, its own draws included, within four standard errors."""
    process = Masked(schedule=LogLinear(eps=0.0), mask_id=DATA.mask_id)
    subs = Subs(mask_id=DATA.mask_id, vocab_size=DATA.mask_id + 1)
    rows, repeats = 4096, 100

    @jax.jit
    def once(key):
        rank = jax.random.choice(
            stream(key, "data"), len(DATA.p), (rows,), p=jnp.asarray(DATA.p, jnp.float32)
        )
        batch = DATA.batch(np.zeros((rows, DATA.length)))
        tokens = jnp.asarray(DATA.sequences, jnp.int32)[rank]
        batch = type(batch)(**{**vars(batch), "tokens": tokens})
        terms = TIGHT[name](
            stream(key, "loss"),
            batch,
            diffusion=Diffusion(process=process, parameterization=subs, denoise=DATA.denoise),
        )
        information = -jnp.log(jnp.asarray(DATA.p, jnp.float32))[rank].mean()
        # The mean information of the rows drawn takes the data's own spread out of the estimate.
        return terms.bound.sum() / rows - information

    keys = jax.random.split(jax.random.key(1), repeats)
    gap = np.array([once(key) for key in keys], np.float64)
    error = gap.std(ddof=1) / np.sqrt(repeats)
    assert error < 0.01
    # 500 steps reveal two tokens at once now and then, which the bound charges for.
    slack = 0.01 if "discrete" in name else 0.0
    assert -4 * error < gap.mean() < 4 * error + slack


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_discrete_bound_is_the_chain_s_divergence(steps):
    """Against the divergences of the reverse chain itself, step by step, by enumeration."""
    schedule = LogLinear(eps=0.0)
    process = Masked(schedule=schedule, mask_id=DATA.mask_id)
    objective = DiscreteNelbo(steps=steps)
    n, m = len(DATA.sequences), len(DATA.hidings)
    x = np.repeat(DATA.sequences, m, axis=0)
    hidden = np.tile(DATA.hidings, (n, 1))
    z = jnp.asarray(np.where(hidden, DATA.mask_id, x), jnp.int32)
    subs = Subs(mask_id=DATA.mask_id, vocab_size=DATA.mask_id + 1)
    logits = DATA.denoise(NetInput(tokens=z)).logits()
    model = subs.log_p0(logits, z, None)
    truth = jnp.log(jax.nn.one_hot(jnp.asarray(x), DATA.mask_id + 1))
    chain, formula = 0.0, 0.0
    for k in range(1, steps + 1):
        t, s = np.float32(k / steps), np.float32((k - 1) / steps)
        q = np.prod(np.where(hidden, t, 1 - t), axis=1) * np.repeat(DATA.p, m)
        times = [jnp.full((len(x), 1), a) for a in (t, s)]
        true_step = np.asarray(process.reverse_probabilities(truth, z, *times), np.float64)
        model_step = np.asarray(process.reverse_probabilities(model, z, *times), np.float64)
        ratio = np.where(true_step > 0, true_step / np.maximum(model_step, 1e-300), 1.0)
        chain += (q * (true_step * np.log(ratio)).sum((1, 2))).sum()
        _, weight = objective.times_and_weights(schedule, jnp.array([[(k - 0.5) / steps]]))
        formula += enumerated(schedule, np.array([t]), np.asarray(weight)[0] / steps)[0]
    assert formula == pytest.approx(chain, rel=1e-4)
    assert formula >= DATA.entropy - 1e-4


def by_steps(steps: int) -> float:
    """The bound of a chain of the true posterior, by enumeration of all its steps."""
    at = (np.arange(steps) + 0.5) / steps
    t, weight = DiscreteNelbo(steps=steps).times_and_weights(
        LogLinear(eps=0.0), jnp.asarray(at, jnp.float32)[:, None]
    )
    weight = np.asarray(weight, np.float64)[:, 0] / steps
    return enumerated(LogLinear(eps=0.0), np.asarray(t)[:, 0], weight).sum()


def test_more_steps_lower_the_bound_to_the_entropy():
    ladder = [by_steps(steps) for steps in (1, 2, 4, 8, 16, 32, 64, 1024)]
    assert all(a > b for a, b in zip(ladder, ladder[1:], strict=False))
    assert DATA.entropy - 1e-5 < ladder[-1] < DATA.entropy + 5e-3 * ladder[0]


@pytest.mark.parametrize("steps", [1, 3, 16])
def test_drawn_steps_are_the_bound_by_enumeration(steps):
    """The objective with its own draws, each sequence as often as it is likely, on average."""
    process = Masked(schedule=LogLinear(eps=0.0), mask_id=DATA.mask_id)
    subs = Subs(mask_id=DATA.mask_id, vocab_size=DATA.mask_id + 1)
    copies = 64
    batch = DATA.batch(np.repeat(DATA.sequences, copies, axis=0))

    @jax.jit
    def once(key):
        parts = Diffusion(process=process, parameterization=subs, denoise=DATA.denoise)
        times = DiscreteNelbo(steps=steps, times=IID())
        return times(key, batch, diffusion=parts).bound.sum(-1)

    draws = [once(key) for key in jax.random.split(jax.random.key(3), 200)]
    by_sequence = np.asarray(draws, np.float64).reshape(200, len(DATA.p), copies).mean(-1)
    found = by_sequence @ DATA.p
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert error < 0.01
    assert found.mean() == pytest.approx(by_steps(steps), abs=4 * error + 1e-5)


def test_one_step_is_the_sum_of_marginal_entropies():
    _, weight = DiscreteNelbo(steps=1).times_and_weights(LogLinear(eps=0.0), jnp.array([[0.3]]))
    bound = enumerated(LogLinear(eps=0.0), np.array([1.0]), np.asarray(weight)[0])[0]
    expected = 0.0
    for i in range(DATA.length):
        p = np.array([DATA.p[DATA.sequences[:, i] == v].sum() for v in range(DATA.symbols)])
        expected -= (p * np.log(p)).sum()
    assert bound == pytest.approx(expected, rel=1e-5)
