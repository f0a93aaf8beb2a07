"""Score entropy and samplers of scores against an enumerated distribution and its true score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distribution import Distribution
from noised_distribution import NoisedDistribution, nodes

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row, stream
from mdlm.objectives.base import score_masked
from mdlm.objectives.score_entropy import ScoreEntropy, score_noised
from mdlm.parameterizations.score import Score
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers.loop import generate
from mdlm.samplers.score import Euler, Tweedie
from mdlm.schedules.closed_form import Geometric, LogLinear
from mdlm.types import DenseLogits, NetInput

DATA = Distribution(length=2)
MASK, STATES = DATA.mask_id, DATA.symbols + 1
FIELDS = {"mask_id": MASK, "vocab_size": STATES}
SCHEDULES = {
    "log-linear": LogLinear(eps=1e-3),
    "log-linear, eps 0": LogLinear(eps=0.0),
    "geometric": Geometric(sigma_min=1e-2, sigma_max=8.0),
}
GRAPHS = {
    "absorbing": (lambda s: Masked(schedule=s, mask_id=MASK), Score(**FIELDS)),
    "uniform": (lambda s: Uniform(schedule=s, **FIELDS), Score(graph="uniform", **FIELDS)),
}


def true_denoise(process):
    """The network whose score is the true one."""
    if isinstance(process, Masked):

        def posterior(inputs, *, key=None):
            # log s + log expm1(sigma) is log p(x_0 | z_t); the scale takes log(V - 1) off again.
            return DenseLogits(DATA.denoise(inputs).logits() + np.log(STATES - 1))

        return posterior
    noisy = NoisedDistribution(DATA, process)

    def log_ratios(inputs, *, key=None):
        p = jax.nn.softmax(noisy.denoise(inputs).logits(), axis=-1)  # given the others
        t = jnp.broadcast_to(inputs.t, inputs.tokens.shape)[..., None]
        noise = process.schedule.one_minus_alpha(t) / DATA.symbols
        noised = process.schedule.alpha(t) * p + noise
        here = jnp.take_along_axis(noised, inputs.tokens[..., None], -1)
        return DenseLogits(jnp.log(noised) - jnp.log(here))

    return log_ratios


def test_the_true_score_is_a_ratio_of_row_distributions():
    """The network above, against p_t of whole rows."""
    process = GRAPHS["uniform"][0](LogLinear(eps=1e-3))
    noisy = NoisedDistribution(DATA, process)
    z = noisy.noised[(noisy.noised != MASK).all(1)]
    for t in (0.05, 0.5, 0.95):
        p = (DATA.p @ noisy.row_transition(t)).reshape((STATES,) * DATA.length)
        inputs = NetInput(tokens=jnp.asarray(z, jnp.int32), t=jnp.full((len(z), 1), t))
        ours = np.exp(np.asarray(true_denoise(process)(inputs).logits(), np.float64))
        for row, score in zip(z, ours, strict=True):
            for i in range(DATA.length):
                other = np.moveaxis(p, i, -1)[tuple(np.delete(row, i))]
                np.testing.assert_allclose(score[i, :MASK], other[:MASK] / other[row[i]], rtol=1e-4)


def enumerated(process, score, denoise, t):
    """E over x and z_t of the score entropy, nats per sequence, at each time."""
    noisy = NoisedDistribution(DATA, Uniform(schedule=process.schedule))
    if isinstance(process, Masked):
        x = np.repeat(DATA.sequences, len(DATA.hidings), axis=0)
        hidden = np.tile(DATA.hidings, (len(DATA.sequences), 1))
        z = np.where(hidden, MASK, x)
        noised = np.asarray(process.schedule.one_minus_alpha(jnp.asarray(t, jnp.float32)))
        q = [np.prod(np.where(hidden, a, 1 - a), axis=1) for a in noised.astype(np.float64)]
        joint = np.array(q) * np.repeat(DATA.p, len(DATA.hidings))
    else:
        is_row = (noisy.noised != MASK).all(1)
        z = np.tile(noisy.noised[is_row], (len(DATA.sequences), 1))
        x = np.repeat(DATA.sequences, is_row.sum(), axis=0)
        joint = np.array(
            [(DATA.p[:, None] * noisy.row_transition(a)[:, is_row]).ravel() for a in t]
        )

    def at(t):
        return score_noised(
            DATA.batch(x),
            z_t=jnp.asarray(z, jnp.int32),
            t=jnp.full((len(x), 1), t),
            diffusion=Diffusion(process=process, parameterization=score, denoise=denoise),
        ).bound.sum(-1)

    values = jax.jit(lambda t: jax.lax.map(at, t))(jnp.asarray(t, jnp.float32))
    assert (np.asarray(values) >= 0).all()
    return (joint * np.asarray(values, np.float64)).sum(1)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("graph", GRAPHS)
def test_integral_is_the_information_that_noise_removes(graph, name):
    make, score = GRAPHS[graph]
    process = make(SCHEDULES[name])
    t_min = 1e-3
    t, dt = nodes(t_min, 1.0)
    integral = (dt * enumerated(process, score, true_denoise(process), t)).sum()
    if graph == "absorbing":
        ends = process.schedule.one_minus_alpha(jnp.array([t_min, 1.0]))
        first, last = (DATA.remaining(1 - float(a)) for a in ends)
    else:
        noisy = NoisedDistribution(DATA, process)
        first, last = noisy.remaining(t_min), noisy.remaining(1.0)
    assert integral == pytest.approx(last - first, abs=2e-4)
    # All of the entropy, but for what is left to say at t_min and what can be read at t = 1.
    if name == "log-linear, eps 0":
        assert last == pytest.approx(DATA.entropy, abs=1e-9)
        assert integral == pytest.approx(DATA.entropy, abs=0.02)


@pytest.mark.parametrize("graph", GRAPHS)
def test_another_score_costs_more(graph):
    make, score = GRAPHS[graph]
    process = make(SCHEDULES["log-linear"])
    true = true_denoise(process)

    def other(inputs, *, key=None):
        logits = true(inputs).logits()
        return DenseLogits(logits + 0.3 * jnp.sin(jnp.arange(STATES) + 1.0)[None, None])

    t = np.array([0.01, 0.3, 0.9])
    best, worse = (enumerated(process, score, denoise, t) for denoise in (true, other))
    assert (worse > 1.001 * best).all()


def test_a_score_that_is_a_distribution_costs_the_nelbo():
    process, t = Masked(schedule=LogLinear(), mask_id=MASK), jnp.array([[0.02], [0.4], [0.97]])
    z_t = jnp.array([[MASK, 0], [MASK, MASK], [1, MASK]])
    batch = DATA.batch(np.array([[2, 0], [1, 1], [1, 0]]))
    logits = jax.random.normal(jax.random.key(0), (3, 2, STATES))
    subs = Subs(**FIELDS)
    log_p = jnp.maximum(subs.log_p0(logits, z_t), -60.0)
    ours = score_noised(
        batch,
        z_t=z_t,
        t=t,
        diffusion=Diffusion(
            process=process,
            parameterization=Score(**FIELDS),
            denoise=lambda inputs, *, key=None: DenseLogits(log_p + np.log(STATES - 1)),
        ),
    )
    theirs = score_masked(
        batch,
        z_t=z_t,
        t=t,
        weight=process.schedule.weight(t),
        diffusion=Diffusion(
            process=process,
            parameterization=subs,
            denoise=lambda inputs, *, key=None: DenseLogits(logits),
        ),
    )
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-5)
    np.testing.assert_array_equal(ours.scored, theirs.scored)


@pytest.mark.parametrize("graph", GRAPHS)
def test_expected_loss_is_the_integral(graph):
    """The whole objective, its own draws included, within four standard errors."""
    make, score = GRAPHS[graph]
    process, t_min, rows, repeats = make(SCHEDULES["log-linear"]), 0.05, 4096, 20
    true = true_denoise(process)
    t, dt = nodes(t_min, 1.0)
    expected = (dt * enumerated(process, score, true, t)).sum() / (1 - t_min)
    p = jnp.asarray(DATA.p, jnp.float32)

    @jax.jit
    def once(key):
        rank = jax.random.choice(stream(key, "data"), len(DATA.p), (rows,), p=p)
        batch = DATA.batch(np.zeros((rows, DATA.length)))
        batch = type(batch)(**{**vars(batch), "tokens": jnp.asarray(DATA.sequences)[rank]})
        terms = ScoreEntropy(t_min=t_min)(
            stream(key, "loss"),
            batch,
            diffusion=Diffusion(process=process, parameterization=score, denoise=true),
        )
        return terms.bound.sum() / rows

    seen = np.array([once(key) for key in jax.random.split(jax.random.key(1), repeats)], np.float64)
    error = seen.std(ddof=1) / np.sqrt(repeats)
    assert error < 0.01
    assert abs(seen.mean() - expected) < 4 * error


def distance(sampler, graph, rows=10000):
    """Total variation between the distribution and the samples drawn with its true score."""
    make, score = GRAPHS[graph]
    process = make(LogLinear(eps=1e-4))
    draw = jax.jit(
        lambda keys: generate(
            keys,
            jnp.zeros((rows, DATA.length), jnp.int32),
            jnp.zeros((rows, DATA.length), bool),
            sampler=sampler,
            diffusion=Diffusion(
                process=process, parameterization=score, denoise=true_denoise(process)
            ),
        )
    )
    samples = draw(by_row(jax.random.key(0), jnp.arange(rows)))
    tokens = np.asarray(samples.tokens)
    assert int(samples.nfe) == sampler.steps
    assert (tokens != MASK).all()
    rank = tokens @ DATA.symbols ** np.arange(DATA.length)[::-1]
    return np.abs(np.bincount(rank, minlength=len(DATA.p)) / rows - DATA.p).sum() / 2


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("sampler", [Tweedie, Euler])
def test_samples_tend_to_the_distribution(sampler, graph):
    first, second = DATA.p.reshape(DATA.symbols, -1).sum(1), DATA.p.reshape(DATA.symbols, -1).sum(0)
    independent = np.abs(np.outer(first, second).ravel() - DATA.p).sum() / 2
    assert independent > 0.12  # what one step alone would give
    # 10,000 samples of nine rows lie about 0.011 from their own distribution.
    assert distance(sampler(steps=32), graph) < 0.02
