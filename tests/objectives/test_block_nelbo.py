"""Block diffusion's objective: what is drawn, kept, counted, said and refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.objectives.block import BlockNelbo, masked_within, strata
from mdlm.objectives.clip_search import candidates, search
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import Cosine, LogLinear
from mdlm.times import balanced_order
from mdlm.types import Batch, DenseLogits

MASK, V = 9, 10
PARTS = dict(
    process=Masked(schedule=LogLinear(eps=0.0), mask_id=MASK),
    parameterization=Subs(mask_id=MASK, vocab_size=V),
)


def batch(rows=6, length=12, **changes):
    rng = np.random.default_rng(0)
    values = dict(
        tokens=jnp.asarray(rng.integers(0, MASK, (rows, length)), jnp.int32),
        loss_mask=jnp.ones((rows, length), bool),
        row=jnp.asarray(balanced_order(rows)),
        rows=jnp.asarray(rows),
    )
    return Batch(**{**values, **changes})


def equal(inputs, *, key=None):
    """A network of equal probabilities."""
    return DenseLogits(jnp.zeros((*inputs.tokens.shape, V)))


def run(objective, key, data, **parts):
    """The loss under a network of equal probabilities, and what the network was asked."""

    @jax.jit
    def asked(key, data):
        seen = []

        def denoise(inputs, *, key=None):
            seen.append(inputs)
            return equal(inputs)

        terms = objective(key, data, Diffusion(denoise=denoise, **{**PARTS, **parts}))
        return terms, seen[-1]

    return asked(key, data)


@pytest.mark.parametrize("rows, blocks", [(8, 4), (4, 8), (6, 6), (1, 5)])
def test_strata_cover_all_and_spread_over_rows_and_places(rows, blocks):
    place = np.asarray(strata(jnp.asarray(balanced_order(rows)), jnp.asarray(rows), blocks))
    np.testing.assert_array_equal(np.sort(place.reshape(-1)), np.arange(rows * blocks))
    level = place // rows  # one of `blocks` equal parts of all noise levels
    assert all(len(set(row)) == blocks for row in level)
    assert all(len(set(column)) == min(rows, blocks) for column in level.T)


def test_the_network_sees_a_time_for_each_block_and_the_clean_tokens(key):
    data = batch()
    terms, inputs = run(BlockNelbo(block_size=4), key, data)
    np.testing.assert_array_equal(inputs.clean, data.tokens)
    t = np.asarray(inputs.t)
    assert t.shape == data.tokens.shape
    by_block = t.reshape(6, 3, 4)
    assert (by_block == by_block[..., :1]).all()
    assert len(np.unique(by_block[..., 0])) == 18
    # One in each of 18 equal parts of [0, 1): low discrepancy over all blocks of the batch.
    assert sorted(np.floor(by_block[..., 0].reshape(-1) * 18).astype(int)) == list(range(18))
    masked = np.asarray(inputs.tokens) == MASK
    assert 0 < masked.sum() < masked.size
    np.testing.assert_allclose(terms.values, np.where(masked, np.log(MASK) / t, 0), rtol=1e-5)
    assert float(terms.total) == pytest.approx(float(terms.values.sum()))
    np.testing.assert_array_equal(terms.bound, terms.values)


@pytest.mark.parametrize(
    "objective", [BlockNelbo(block_size=4), BlockNelbo(block_size=4, low=0.3, high=0.8)]
)
def test_a_row_draws_the_same_however_the_batch_is_cut(key, objective):
    data = batch()
    _, whole = run(objective, key, data)
    for part in (slice(0, 2), slice(3, 6)):
        cut = batch(tokens=data.tokens[part], loss_mask=data.loss_mask[part], row=data.row[part])
        _, inputs = run(objective, key, cut)
        np.testing.assert_array_equal(inputs.t, whole.t[part])
        np.testing.assert_array_equal(inputs.tokens, whole.tokens[part])


def test_clipped_times_and_shares(key):
    data = batch(rows=200, length=32)
    _, inputs = run(BlockNelbo(block_size=8, low=0.3, high=0.8), key, data)
    t = np.asarray(inputs.t)
    assert 0.3 <= t.min() < 0.31 and 0.79 < t.max() < 0.8
    share = (np.asarray(inputs.tokens) == MASK).reshape(200, 4, 8).mean(-1)
    assert set(np.unique(share)) == {3 / 8, 4 / 8, 5 / 8, 6 / 8}
    _, free = run(BlockNelbo(block_size=8, low=0.3, high=0.8, rounds=0), key, data)
    share = (np.asarray(free.tokens) == MASK).reshape(200, 4, 8).mean(-1)
    assert share.min() < 0.3 and share.max() > 0.8


def test_shares_are_of_the_tokens_that_may_change():
    """Padding is no token; a block where no number of masks will do stays as first drawn."""
    may_change = jnp.array([[True] * 4, [True, True, False, False], [True] + 3 * [False]])
    x_0 = jnp.zeros((3, 4), jnp.int32)
    first = jnp.ones((3, 4))  # nothing masked, then everything but the last
    later = jnp.tile(jnp.array([0.0, 0.0, 0.0, 1.0]), (3, 1))
    some = jnp.tile(jnp.array([0.0, 1.0, 1.0, 1.0]), (3, 1))
    z_t, draws = masked_within(
        lambda i: jnp.stack([first, later, some])[i],
        x_0,
        jnp.full((3, 4), 0.5),
        PARTS["process"],
        block_size=4,
        low=0.5,
        high=0.8,
        rounds=2,
        may_change=may_change,
    )
    assert int(draws) == 3
    np.testing.assert_array_equal(
        np.asarray(z_t) == MASK, [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    )


def test_rounds_end():
    z_t, draws = masked_within(
        lambda i: jnp.ones((1, 4)),
        jnp.zeros((1, 4), jnp.int32),
        jnp.full((1, 4), 0.5),
        PARTS["process"],
        block_size=4,
        low=0.5,
        high=1.0,
        rounds=7,
    )
    assert int(draws) == 8 and (np.asarray(z_t) == 0).all()


@pytest.mark.parametrize("low", [0.0, 1.0])
def test_a_given_first_token_stays_and_is_not_counted(key, low):
    data = batch(length=4, is_valid=jnp.arange(4)[None].repeat(6, 0) < 3)
    objective = BlockNelbo(block_size=1, low=low, first_is_given=True)
    for seed in range(5):
        terms, inputs = run(objective, jax.random.fold_in(key, seed), data)
        for fixed in (0, 3):
            np.testing.assert_array_equal(inputs.tokens[:, fixed], data.tokens[:, fixed])
        assert (terms.count[:, 0] == 0).all() and (terms.count[:, 1:3] == 1).all()
    assert (run(replace(objective, first_is_given=False), key, data)[0].count[:, 0] == 1).all()


def test_the_protocol_says_what_is_a_bound():
    said = lambda **changes: BlockNelbo(**{"block_size": 4, **changes}).protocol
    assert said() == "NELBO, blocks of 4, continuous time"
    assert "t in [0.3, 0.8] (no bound), blocks of 4" in said(low=0.3, high=0.8)
    assert said(low=1e-3) == (
        "NELBO without the reconstruction term (t >= 0.001), blocks of 4, continuous time"
    )
    exact = BlockNelbo(block_size=1, low=1.0)
    assert exact.is_exact and exact.protocol == "exact NLL, token by token"
    assert not BlockNelbo(block_size=1).is_exact
    assert "first token of each row not scored" in said(first_is_given=True)


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (dict(block_size=0), "block_size=0: must be at least 1"),
        (dict(block_size=4, low=0.8, high=0.3), "low=0.8, high=0.3: must satisfy 0 <= low < high"),
        (dict(block_size=4, low=-0.1), "low=-0.1, high=1.0: must satisfy 0 <= low < high"),
        (dict(block_size=4, low=1.0), "for block_size=1, not block_size=4"),
        (dict(block_size=1, low=0.3, high=0.8), "no share of block_size=1 tokens"),
        (dict(block_size=4, t_min=0.0), "t_min=0.0"),
        (dict(block_size=4, rounds=-1), "rounds=-1"),
    ],
)
def test_wrong_settings_are_refused(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        BlockNelbo(**wrong)


def test_an_interval_of_rates_needs_a_schedule_whose_times_they_are(key):
    clipped, whole = BlockNelbo(block_size=4, high=0.8), BlockNelbo(block_size=4)
    cosine = Masked(schedule=Cosine(), mask_id=MASK)
    subs = PARTS["parameterization"]
    assert "the times of LogLinear, not of Cosine" in clipped.incompatibility(cosine, subs)
    assert whole.incompatibility(cosine, subs) is None
    assert clipped.incompatibility(PARTS["process"], subs) is None
    with pytest.raises(ValueError, match="block_size=5 does not divide the length of 12"):
        run(BlockNelbo(block_size=5), key, batch())


def test_search_finds_the_interval_of_least_spread(key):
    data = [batch(rows=64, length=16), batch(rows=64, length=16)]
    found = search(
        BlockNelbo(block_size=4),
        key,
        data,
        diffusion=lambda params: Diffusion(denoise=equal, **PARTS),
        params={},
        intervals=[(1e-3, 1.0), (0.3, 0.8), (0.45, 0.95), (1e-3, 0.5)],
    )
    spreads = [interval.spread for interval in found]
    assert spreads == sorted(spreads)
    # Equal probabilities: a block's loss is log(9) k / (4 t), which varies most where t is small.
    assert (found[0].low, found[0].high) == (0.45, 0.95)
    assert found[-1].low == 1e-3
    # The variance of k / t by quadrature over t, k kept to 2 or 3 of 4.
    t = 0.3 + 0.5 * (np.arange(2000) + 0.5) / 2000
    two, three = 6 * t**2 * (1 - t) ** 2, 4 * t**3 * (1 - t)
    moment = lambda n: ((two * (2 / t) ** n + three * (3 / t) ** n) / (two + three)).mean()
    expected = 2 * (np.log(9) / 4) ** 2 * (moment(2) - moment(1) ** 2)
    (middle,) = (i for i in found if i.low == 0.3)
    assert middle.spread == pytest.approx(expected, rel=0.2)


def test_search_with_one_token_to_a_block_finds_that_all_masked_spreads_nothing(key):
    parts = {"diffusion": lambda params: Diffusion(denoise=equal, **PARTS), "params": {}}
    table = search(BlockNelbo(block_size=1), key, [batch(rows=64)], **parts)
    assert [(i.low, i.high) for i in table] == [(1.0, 1.0), (1e-3, 1.0)]
    assert table[0].spread == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="low=0.5, high=0.4: must satisfy"):
        search(BlockNelbo(block_size=4), key, [], intervals=[(0.5, 0.4)], **parts)
    assert len(candidates(8)) == 36
