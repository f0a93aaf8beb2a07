"""Counts and sets of masked tokens: how many, where, and what a row without any gives."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.keys import stream
from mdlm.objectives.masked_count import OrderAgnostic, choose, count_of
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.base import Schedule
from mdlm.schedules.closed_form import Cosine, LogLinear
from mdlm.schedules.per_token import Spindle
from mdlm.times import BELOW_ONE
from mdlm.types import Batch, DenseLogits, Vocab

VOCAB = Vocab(size=9, mask_id=4)
B, L = 6, 20
LOG_LINEAR = LogLinear()


@pytest.fixture
def batch(key):
    tokens = jax.random.randint(key, (B, L), 0, 4)
    loss_mask = jnp.ones((B, L), bool).at[1, :7].set(False).at[2].set(False).at[3, 1:].set(False)
    is_valid = jnp.ones((B, L), bool).at[4, 15:].set(False)
    return Batch(
        tokens=tokens,
        loss_mask=loss_mask,
        is_valid=is_valid,
        row=jnp.arange(B),
        rows=jnp.asarray(B),
    )


@partial(jax.jit, static_argnums=(0, 3))
def run(objective, batch, key, schedule=LOG_LINEAR):
    seen = []

    def denoise(inputs, *, key=None):
        seen.append(inputs)
        return DenseLogits(jnp.zeros((*inputs.tokens.shape, VOCAB.size)))

    terms = objective.with_vocab(VOCAB)(
        key,
        batch,
        diffusion=Diffusion(
            process=Masked(schedule=schedule).with_vocab(VOCAB),
            parameterization=Subs().with_vocab(VOCAB),
            denoise=denoise,
        ),
    )
    return terms, seen[0]


def test_counts_are_uniform_from_one_to_n():
    u = jnp.linspace(0, BELOW_ONE, 60_001)[:, None]
    for n in (1, 5, 7):
        count = np.asarray(count_of(u, jnp.full((len(u), 1), n)))
        sizes = np.bincount(count[:, 0], minlength=n + 1)
        assert sizes[0] == 0 and len(sizes) == n + 1
        assert np.abs(sizes[1:] - len(u) / n).max() <= 2
    # In float32, u n rounds up to n here.
    assert int(count_of(jnp.full((1, 1), BELOW_ONE), jnp.full((1, 1), 3))[0, 0]) == 3
    assert int(count_of(jnp.full((1, 1), 0.3), jnp.zeros((1, 1), jnp.int32))[0, 0]) == 0


def test_exactly_so_many_of_those_that_may(key):
    may_change = jax.random.bernoulli(stream(key, "may"), 0.6, (50, L))
    n = may_change.sum(-1, keepdims=True)
    count = jnp.arange(50)[:, None] % (n + 1)
    is_chosen = choose(jax.random.split(key, 50), may_change, count)
    np.testing.assert_array_equal(is_chosen.sum(-1), count[:, 0])
    assert not (is_chosen & ~may_change).any()


def test_scored_tokens_only_and_nothing_from_a_row_without(batch, key):
    terms, inputs = run(OrderAgnostic(), batch, key)
    scored = np.asarray(batch.loss_mask & batch.is_valid)
    is_masked = np.asarray(inputs.tokens == VOCAB.mask_id)
    np.testing.assert_array_equal(
        np.where(is_masked, 0, inputs.tokens) + is_masked * batch.tokens, batch.tokens
    )
    assert not is_masked[~scored].any()
    count, n = is_masked.sum(-1), scored.sum(-1)
    assert (count[n > 0] >= 1).all() and count[2] == 0 and count[3] == 1
    # All logits 0: ln 8 for each masked token, so n ln 8 for each row whatever its count.
    np.testing.assert_allclose(terms.values.sum(-1), n * np.log(8), rtol=1e-5)
    np.testing.assert_array_equal(terms.values != 0, is_masked)
    np.testing.assert_allclose(terms.total, (n * np.log(8)).sum(), rtol=1e-5)
    np.testing.assert_array_equal(terms.count, batch.loss_mask)
    assert np.isfinite(terms.values).all()


def test_is_told_the_time_at_which_so_many_are_masked(batch, key):
    schedule = Cosine(eps=0.0)
    _, inputs = run(OrderAgnostic(), batch, key, schedule)
    scored = np.asarray(batch.loss_mask & batch.is_valid).sum(-1)
    share = np.asarray(inputs.tokens == VOCAB.mask_id).sum(-1) / np.maximum(scored, 1)
    found = schedule.one_minus_alpha(inputs.t[:, 0])
    np.testing.assert_allclose(found, share, rtol=1e-5, atol=1e-6)


def test_a_row_draws_by_its_place(batch, key):
    whole = run(OrderAgnostic(), batch, key)[1].tokens
    part = jax.tree.map(lambda x: x if x.ndim == 0 else x[2:5], batch)
    np.testing.assert_array_equal(run(OrderAgnostic(), part, key)[1].tokens, whole[2:5])
    other = replace(batch, row=batch.row[::-1])
    assert (run(OrderAgnostic(), other, key)[1].tokens != whole).any()


class NoInverse(Schedule):
    def alpha(self, t, x_0=None):
        return 1 - t


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [(NoInverse(), "NoInverse has none"), (Spindle(), "a rate for each")],
)
def test_schedules_without_a_time_for_a_share_are_refused(schedule, reason):
    refusal = OrderAgnostic().incompatibility(Masked(schedule=schedule), Subs())
    assert refusal is not None and reason in refusal
    assert OrderAgnostic().incompatibility(Masked(), Subs()) is None
