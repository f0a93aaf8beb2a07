"""Bounds from both sides against enumerated truth: all orders of revealing, all tuples of them."""

import itertools
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distribution import Distribution

from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.evals.bracket import Paths, ranks, summary
from mdlm.evals.sides import log_mean_exp, log_surrogate, noise, sides
from mdlm.parallel.mesh import MeshShape
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import Cosine, LogLinear
from mdlm.types import DenseLogits


class Imperfect:
    """The posterior of a distribution with errors of its own at each masking, all orders counted.

    `block` is the size of the diffusion blocks, 0 for one block. With `timed` the errors grow with
    the time.
    """

    def __init__(self, data: Distribution, error: float, block: int = 0, timed: bool = False):
        self.data, self.block, self.timed = data, block or data.length, timed
        self.in_blocks = block > 0
        base = data.symbols + 1
        shape = (base**data.length, data.length, data.symbols)
        self.table = np.full((*shape[:2], base), -np.inf)
        random = error * np.random.default_rng(3).normal(size=shape)
        with np.errstate(divide="ignore"):
            self.table[..., :-1] = np.log(data._posterior[..., :-1])
        self.error = random

    def log_p(self, z: np.ndarray, t: float = 0.0) -> np.ndarray:
        """log p(x_i = v | z), [l v]."""
        at = int((z * (self.data.symbols + 1) ** np.arange(self.data.length)[::-1]).sum())
        logits = self.table[at, :, :-1] + self.error[at] * (2 * t if self.timed else 1.0)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def denoise(self, inputs, *, key=None):
        base, l = self.data.symbols + 1, self.data.length
        table = jnp.asarray(np.maximum(self.table, -60.0), jnp.float32)
        error = jnp.asarray(np.pad(self.error, ((0, 0), (0, 0), (0, 1))), jnp.float32)
        digits = jnp.asarray(base ** np.arange(l)[::-1])[None]
        t = jnp.broadcast_to(inputs.t, inputs.tokens.shape)[..., None]
        scale = 2 * t if self.timed else 1.0
        if not self.in_blocks:
            at = (inputs.tokens * digits).sum(-1)
            return DenseLogits(table[at] + error[at] * scale)
        of, out = np.arange(l) // self.block, jnp.zeros((*inputs.tokens.shape, base))
        for j in range(l // self.block):
            seen = jnp.where((of == j)[None], inputs.tokens, self.data.mask_id)
            at = (jnp.where((of < j)[None], inputs.clean, seen) * digits).sum(-1)
            out = jnp.where((of == j)[None, :, None], table[at] + error[at] * scale, out)
        return DenseLogits(out)

    def diffusion(self, schedule=None) -> Diffusion:
        return Diffusion(
            process=Masked(schedule=schedule or LogLinear(eps=0.0), mask_id=self.data.mask_id),
            parameterization=Subs(mask_id=self.data.mask_id, vocab_size=self.data.mask_id + 1),
            denoise=self.denoise,
        )

    @cached_property
    def by_order(self) -> np.ndarray:
        """log p(x_block | order, clean blocks before), [sequences blocks orders]."""
        d, size = self.data, self.block
        out = np.zeros((len(d.sequences), d.length // size, len(self.orders)))
        for s, x in enumerate(d.sequences):
            for j, o in np.ndindex(*out.shape[1:]):
                z = np.where(np.arange(d.length) < j * size, x, d.mask_id)
                for i in j * size + np.array(self.orders[o]):
                    out[s, j, o] += self.log_p(z)[i, x[i]]
                    z[i] = x[i]
        return out

    @property
    def orders(self) -> list[tuple[int, ...]]:
        return list(itertools.permutations(range(self.block)))

    @cached_property
    def truth(self) -> np.ndarray:
        """-log p(x), by sequence and block."""
        return -log_mean_exp(self.by_order)


THREE, FOUR = Distribution(), Distribution(length=4, symbols=2, seed=1)
ROW, PAIRS, EXACT = Imperfect(THREE, 1.0), Imperfect(FOUR, 1.5, block=2), Imperfect(THREE, 0.0)
MESH = MeshShape().build()


@pytest.mark.parametrize("law", [ROW, PAIRS, EXACT], ids=["row", "pairs", "posterior"])
def test_the_mixture_over_orders_is_a_distribution(law):
    assert np.exp(-law.truth.sum(axis=1)).sum() == pytest.approx(1, abs=1e-9)
    spread = np.ptp(law.by_order, axis=-1)
    assert spread.max() < 1e-9 if law is EXACT else np.median(spread) > 0.05


def expected(by_order: np.ndarray, k: int, scale: float = 0.0) -> dict[str, float]:
    """The mean of each estimate of one block over all tuples of k orders. TUBE by its definition,
    not by its code, with psi the geometric mean of the other paths times exp(scale)."""
    tuples = by_order[np.array(list(itertools.product(range(len(by_order)), repeat=k)))]
    found = {name: getattr(sides(tuples), name).mean() for name in ("single", "mean")}
    tube = 0.0
    for one in range(k):
        psi = np.exp(scale + np.delete(tuples, one, axis=1).mean(axis=1))
        tube += -(np.log(psi) + np.exp(tuples[:, one]) / psi - 1) / k
    return {**found, "tube": tube.mean()}


@pytest.mark.parametrize("law", [ROW, PAIRS], ids=["row", "pairs"])
def test_both_sides_hold_in_expectation_and_close_with_more_paths(law):
    for s, j in np.ndindex(law.truth.shape):
        truth, ls = law.truth[s, j], law.by_order[s, j]
        two, three, four = (expected(ls, k) for k in (2, 3, 4))
        assert two["single"] == pytest.approx(-ls.mean())
        assert two["single"] >= two["mean"] - 1e-12 >= three["mean"] - 2e-12
        assert three["mean"] >= four["mean"] - 1e-12 >= truth - 2e-12
        assert two["tube"] <= three["tube"] + 1e-12 <= four["tube"] + 2e-12 <= truth + 3e-12
        for scale in (-1.0, 0.5, 3.0):
            assert expected(ls, 3, scale)["tube"] <= truth + 1e-12
    gap = lambda k: np.mean(
        [
            law.truth[at] - expected(law.by_order[at], k)["tube"]
            for at in np.ndindex(law.truth.shape)
        ]
    )
    assert 1e-4 < gap(4) < gap(2)


def test_the_posterior_has_one_likelihood():
    ls = EXACT.by_order[:, 0, :4]
    found = sides(ls)
    for name in ("single", "mean", "tube"):
        np.testing.assert_allclose(getattr(found, name), EXACT.truth[:, 0], atol=1e-9)
    np.testing.assert_allclose(found.effective, 4)
    assert np.exp(-EXACT.truth[:, 0]) == pytest.approx(THREE.p)


def test_tube_is_the_tangent_at_the_other_paths():
    """The code against the definition: psi's mean of the other paths, its variance of the other
    blocks."""
    ls = np.random.default_rng(0).normal(size=(5, 4)) * 2 - 7
    for n in range(5):
        theirs = [ls[m].var(ddof=1) * 4 / 3 for m in range(5) if (m - n) % 2]
        value = 0.0
        for one in range(4):
            psi = np.exp(np.delete(ls[n], one).mean() + np.mean(theirs) / 2)
            value -= (np.log(psi) + np.exp(ls[n, one]) / psi - 1) / 4
        assert sides(ls).tube[n] == pytest.approx(value)
    np.testing.assert_allclose(log_surrogate(ls[:1]).sum(), ls[0].sum())
    huge = np.array([[-5000.0, -100.0, -5000.0], [-3.0, -2.0, -1.0]])
    assert np.isfinite(sides(huge).tube).all() and np.isfinite(sides(huge).mean).all()


def test_the_surrogate_is_independent_of_the_path_that_it_is_compared_with():
    ls = np.random.default_rng(1).normal(size=(4, 3))
    for n, k in np.ndindex(ls.shape):
        changed = ls.copy()
        changed[n, k] += 5
        moved = np.abs(log_surrogate(changed)[n] - log_surrogate(ls)[n])
        assert moved[k] < 1e-12 and (np.delete(moved, k) > 1).all()


def test_tube_is_tight_where_orders_are_log_normal():
    """l = N(m, s^2) over orders: log p = m + s^2 / 2, and the slack falls as 1 / K."""
    random = np.random.default_rng(2)
    for k, slack in ((4, 0.5 / 3 + 0.02), (16, 0.5 / 15 + 0.02)):
        ls = random.normal(-30, 1.0, size=(60_000, k))
        found = sides(ls)
        assert 29.5 - slack < found.tube.mean() < 29.5 - 1e-3
        assert 29.5 < found.mean.mean() < found.single.mean() == pytest.approx(30, abs=0.02)


@pytest.mark.parametrize("error, most", [(0.3, 1.15), (1.0, 2.0)], ids=["short tails", "long"])
def test_standard_errors_are_those_of_the_paths(error, most):
    """Many repeats: the jackknife's errors are the spread of the sums, or above it for long tails
    (by Efron and Stein's inequality it is never below on average)."""
    random = np.random.default_rng(5)
    law, of = Imperfect(THREE, error), random.integers(0, len(THREE.sequences), 40)
    totals, claimed = [], []
    for _ in range(60):
        chosen = random.integers(0, 6, (40, 10))
        ls = np.take_along_axis(law.by_order[of, 0], chosen, axis=1)
        found = sides(ls)
        totals.append([found.single.sum(), found.mean.sum(), found.tube.sum()])
        claimed.append([noise(ls)[name] for name in ("single", "mean", "tube")])
    ratio = np.sqrt(np.square(claimed).mean(axis=0)) / np.std(totals, axis=0, ddof=1)
    assert (ratio > 0.85).all() and (ratio[:2] < 1.15).all() and ratio[2] < most


@pytest.mark.parametrize("law", [ROW, PAIRS], ids=["row", "pairs"])
def test_paths_are_the_chain_rule_in_their_order(law):
    d = law.data
    paths = Paths(
        lambda _: law.diffusion(), {}, mesh=MESH, batch_size=7, block=law.block * law.in_blocks
    )
    for s in (0, 5, len(d.sequences) - 1):
        row = {"tokens": d.sequences[s].astype(np.int32), "loss_mask": np.ones(d.length, bool)}
        n = d.length // law.block
        level = np.zeros((len(law.orders), n, law.block))
        for o, order in enumerate(law.orders):
            level[o][:, list(order)] = np.linspace(0.9, 0.1, law.block)
        found = paths(row, level.reshape(len(law.orders), -1))
        np.testing.assert_allclose(found, law.by_order[s].T, rtol=1e-4, atol=1e-4)


def test_unscored_tokens_are_read_clean():
    law = ROW
    paths = Paths(lambda _: law.diffusion(), {}, mesh=MESH, batch_size=4)
    x = THREE.sequences[7]
    row = {"tokens": x.astype(np.int32), "loss_mask": np.array([True, False, True])}
    [[found]] = paths(row, np.array([[0.2, 0.9, 0.7]]))
    z = np.array([3, x[1], 3])
    truth = law.log_p(z)[2, x[2]] + law.log_p(np.array([3, x[1], x[2]]))[0, x[0]]
    assert found == pytest.approx(truth, rel=1e-4)
    valid = {**row, "loss_mask": np.ones(3, bool), "is_valid": np.array([True, False, True])}
    assert paths(valid, np.array([[0.2, 0.9, 0.7]]))[0, 0] == pytest.approx(truth, rel=1e-4)
    rank, reveal = ranks(np.array([[0.2, 0.9, 0.7]]), row["loss_mask"], 3)
    assert rank.tolist() == [[1, -1, 0]] and reveal.tolist() == [[[0.7, 0.2]]]


@pytest.mark.parametrize("schedule", [LogLinear(eps=0.0), LogLinear(eps=0.1), Cosine(eps=0.0)])
def test_a_network_that_reads_the_time_is_asked_at_the_time_of_the_reveal(schedule):
    """Two tokens: p(x) by quadrature over the two levels, and the mean of many paths."""
    data = Distribution(length=2, symbols=2, seed=4)
    law = Imperfect(data, 1.0, timed=True)
    at = (np.arange(16) + 0.5) / 16
    level = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
    noised = level * float(schedule.one_minus_alpha(jnp.ones(())))
    t = np.asarray(jax.vmap(schedule.time_of)(jnp.asarray(noised, jnp.float32)), np.float64)
    paths = Paths(lambda _: law.diffusion(schedule), {}, mesh=MESH, batch_size=256)
    total = 0.0
    for x in data.sequences:
        truth = np.zeros(len(level))
        for n, times in enumerate(t):
            z = np.full(2, data.mask_id)
            for i in np.argsort(-level[n], kind="stable"):
                truth[n] += law.log_p(z, times[i])[i, x[i]]
                z[i] = x[i]
        row = {"tokens": x.astype(np.int32), "loss_mask": np.ones(2, bool)}
        found = paths(row, level)[:, 0]
        np.testing.assert_allclose(found, truth, rtol=2e-4, atol=2e-4)
        total += np.exp(truth).mean()
    assert total == pytest.approx(1, abs=1e-9)


def test_without_enough_orders_there_is_no_lower_bound():
    """Log-probabilities that differ by several nats: what carries the mean is not among K."""
    random = np.random.default_rng(6)
    counts = [np.array([5, 3]), np.array([8])]
    for spread, is_told in ((0.1, True), (6.0, False)):
        log_p = [random.normal(-20, spread, (len(one), 8)) for one in counts]
        found = summary(log_p, counts, lambda words: f"first, {words}")
        names = [m.protocol for m in found.metrics if m.name == "nats per token"]
        assert ("TUBE" in names[-1]) == is_told and len(names) == 2 + is_told
        assert (found.loose is not None) == is_told
        assert (found.effective > 4) == is_told
        total = -sum(one.mean(axis=1).sum() for one in log_p) / 16
        assert found.metrics[0].value == pytest.approx(total)
    with pytest.raises(InputError, match="no token of these rows is scored"):
        summary([], [], str)
