"""The bound by counts of masked tokens is the NELBO, for any network: all maskings enumerated."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distribution import Distribution

from mdlm.diffusion import Diffusion
from mdlm.keys import stream
from mdlm.objectives.llada import LLaDA
from mdlm.objectives.masked_count import OrderAgnostic
from mdlm.objectives.nelbo import Nelbo
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import Batch, DenseLogits, NetInput

SYMBOLS = 3
ROWS = 2**13


class AnyNetwork:
    """Random logits for every masking of one row: no distribution stands behind them."""

    def __init__(self, length: int, is_given: np.ndarray | None = None):
        random = np.random.default_rng(length)
        self.length = length
        self.is_given = np.zeros(length, bool) if is_given is None else is_given
        self.x = random.integers(0, SYMBOLS, length)
        self.table = 2 * random.normal(size=(2**length, length, SYMBOLS + 1))
        log_p = self.table[..., :SYMBOLS]
        log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
        maskings = np.array(list(itertools.product([False, True], repeat=length)))
        own = -log_p[:, np.arange(length), self.x] * maskings
        self.maskings, self.nats = maskings, own.sum(-1)  # in float64
        fits = ~(maskings & self.is_given[None]).any(-1)
        self.maskings, self.nats = maskings[fits], self.nats[fits]

    @property
    def n(self) -> int:
        return int((~self.is_given).sum())

    @property
    def count(self) -> np.ndarray:
        return self.maskings.sum(-1)

    def numbers(self, is_masked):
        return (is_masked * 2 ** np.arange(self.length)[None, ::-1]).sum(-1)

    def denoise(self, inputs, *, key=None):
        return DenseLogits(jnp.asarray(self.table, jnp.float32)[self.numbers(inputs.tokens == 3)])

    def by_counts(self) -> float:
        """Mean over K of n / K times the nats of a set of K tokens."""
        k = self.count
        some = k > 0
        ways = np.array([math.comb(self.n, int(i)) for i in k])
        return (self.nats[some] / (ways * k)[some]).sum()

    def by_time(self, t, dt, weight) -> float:
        """The integral of weight times the nats of tokens masked with probability t."""
        k = self.count[:, None]
        share = t[None] ** k * (1 - t[None]) ** (self.n - k)
        return ((share * self.nats[:, None]).sum(0) * weight * dt).sum()

    def rows(self, objective):
        """A function of a key to each row's bound, masking and time, by the objective itself."""
        batch = Batch(
            tokens=jnp.tile(jnp.asarray(self.x, jnp.int32), (ROWS, 1)),
            loss_mask=jnp.tile(jnp.asarray(~self.is_given), (ROWS, 1)),
            row=jnp.arange(ROWS),
            rows=jnp.asarray(ROWS),
        )

        @jax.jit
        def run(key):
            seen = []

            def denoise(inputs, *, key=None):
                seen.append(inputs)
                return self.denoise(inputs)

            terms = objective(
                key,
                batch,
                diffusion=Diffusion(
                    process=Masked(schedule=LogLinear(eps=0.0), mask_id=SYMBOLS),
                    parameterization=Subs(mask_id=SYMBOLS, vocab_size=SYMBOLS + 1),
                    denoise=denoise,
                ),
            )
            return terms.bound.sum(-1), seen[0].tokens == SYMBOLS, seen[0].t[:, 0]

        return lambda key: [np.asarray(a) for a in run(key)]


GIVEN = np.array([False, True, False, False, True, False])
NETWORKS = [AnyNetwork(1), AnyNetwork(4), AnyNetwork(6, GIVEN), AnyNetwork(8)]
any_network = pytest.mark.parametrize("network", NETWORKS, ids=["1", "4", "6, 2 given", "8"])


def gauss(low, high):
    x, w = np.polynomial.legendre.leggauss(24)  # exact for the polynomials of these rows
    return (low + high + (high - low) * x) / 2, (high - low) / 2 * w


@any_network
def test_counts_and_times_are_one_bound(network):
    t, dt = gauss(0.0, 1.0)
    weight = np.asarray(LogLinear(eps=0.0).weight(jnp.asarray(t, jnp.float32)), np.float64)
    assert network.by_time(t, dt, weight) == pytest.approx(network.by_counts(), rel=1e-6)


@any_network
@pytest.mark.parametrize("objective", [Nelbo, LLaDA])
def test_the_integral_of_the_objectives_is_that_bound(network, objective):
    """With the times and weights that they place. Below t_min, tokens go as if all at once."""
    total, t_min = 0.0, 1e-3
    for low, high in ((0.0, t_min), (t_min, 1.0)):
        u, du = gauss(low, high)
        t, weight = objective(t_min=t_min).times_and_weights(
            LogLinear(eps=0.0), jnp.asarray(u, jnp.float32)[:, None]
        )
        t, weight = (np.asarray(a, np.float64)[:, 0] for a in (t, weight))
        total += network.by_time(t, du, weight)
    expected = network.by_counts()
    assert total == pytest.approx(expected, rel=2e-6, abs=10 * network.nats.max() * t_min**2)


@any_network
def test_every_set_of_a_size_comes_alike_and_weighs_n_over_its_size(network, key):
    bound, is_masked, t = network.rows(OrderAgnostic())(key)
    assert not is_masked[:, network.is_given].any()
    count = is_masked.sum(-1)
    table = dict(zip(network.numbers(network.maskings), network.nats, strict=True))
    numbers = network.numbers(is_masked)
    nats = np.array([table[i] for i in numbers])
    np.testing.assert_allclose(bound, network.n / count * nats, rtol=1e-5)
    np.testing.assert_allclose(t, count / network.n, rtol=1e-6)
    # Counts are stratified: as equal as whole numbers can be, but for one row at each border.
    sizes = np.bincount(count, minlength=network.n + 1)
    assert sizes[0] == 0
    assert np.abs(sizes[1:] - ROWS / network.n).max() <= 2
    for k in range(1, network.n + 1):
        here = np.unique(numbers[count == k], return_counts=True)[1]
        ways = math.comb(network.n, k)
        assert len(here) == ways
        # Chi-square, at about five standard deviations.
        expected = sizes[k] / ways
        spread = ((here - expected) ** 2 / expected).sum()
        assert spread < ways - 1 + 5 * math.sqrt(2 * ways) + 10


@pytest.mark.parametrize("objective", [OrderAgnostic(), LLaDA()], ids=["counts", "llada"])
def test_mean_of_the_draws(objective, key):
    network = AnyNetwork(4)
    once = network.rows(objective)
    means = [once(key)[0].mean(dtype=np.float64) for key in jax.random.split(key, 30)]
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert error < 0.01 * network.by_counts()
    assert np.mean(means) == pytest.approx(network.by_counts(), abs=4 * error)


def test_by_counts_under_the_true_distribution_is_its_entropy():
    """The chain rule, in every order."""
    data = Distribution(length=4, symbols=2)
    masked = np.array(data.hidings)[1:]
    x = np.repeat(data.sequences, len(masked), axis=0)
    hidden = np.tile(masked, (len(data.sequences), 1))
    z = np.where(hidden, data.mask_id, x)
    log_p = np.asarray(
        data.denoise(NetInput(tokens=jnp.asarray(z, jnp.int32))).logits(), np.float64
    )
    nats = -np.where(hidden, np.take_along_axis(log_p, x[..., None], -1)[..., 0], 0).sum(-1)
    k = hidden.sum(-1)
    share = np.repeat(data.p, len(masked)) / np.array([math.comb(4, int(i)) for i in k]) / k
    assert (share * nats).sum() == pytest.approx(data.entropy, rel=1e-5)


@pytest.mark.parametrize("objective", [OrderAgnostic(), LLaDA()], ids=["counts", "llada"])
def test_a_prompt_is_given(objective, key):
    """With the first token valid and not scored the bound is H(x) - H(x_0)."""
    data = Distribution()
    rows, repeats = 4096, 40
    first = np.array([data.p[data.sequences[:, 0] == v].sum() for v in range(data.symbols)])
    given = data.p / first[data.sequences[:, 0]]

    @jax.jit
    def once(key):
        rank = jax.random.choice(
            stream(key, "data"), len(data.p), (rows,), p=jnp.asarray(data.p, jnp.float32)
        )
        batch = Batch(
            tokens=jnp.asarray(data.sequences, jnp.int32)[rank],
            loss_mask=jnp.ones((rows, data.length), bool).at[:, 0].set(False),
            row=jnp.arange(rows),
            rows=jnp.asarray(rows),
        )
        terms = objective(
            stream(key, "loss"),
            batch,
            diffusion=Diffusion(
                process=Masked(schedule=LogLinear(eps=0.0), mask_id=data.mask_id),
                parameterization=Subs(mask_id=data.mask_id, vocab_size=data.mask_id + 1),
                denoise=data.denoise,
            ),
        )
        information = -jnp.log(jnp.asarray(given, jnp.float32))[rank].mean()
        return terms.bound.sum() / rows - information

    gap = np.array([once(key) for key in jax.random.split(key, repeats)], np.float64)
    error = gap.std(ddof=1) / np.sqrt(repeats)
    assert error < 0.01
    assert abs(gap.mean()) < 4 * error
