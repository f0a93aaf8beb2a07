"""LLaDA: NELBO of the scored tokens, the others given. That it is the bound: tests/exact."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.objectives.llada import LLaDA
from mdlm.objectives.nelbo import Nelbo
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import LogLinear
from mdlm.times import IID
from mdlm.types import Batch, DenseLogits

V, MASK = 9, 8
B, L = 64, 50


@partial(jax.jit, static_argnums=0)
def run(objective, key, loss_mask, **changes):
    batch = Batch(
        tokens=jax.random.randint(jax.random.key(5), (B, L), 0, MASK),
        loss_mask=loss_mask,
        row=jnp.arange(B),
        rows=jnp.asarray(B),
        **changes,
    )
    seen = []

    def denoise(inputs, *, key=None):
        seen.append(inputs)
        return DenseLogits(jnp.zeros((B, L, V)))

    terms = objective(
        key,
        batch,
        diffusion=Diffusion(
            process=Masked(schedule=LogLinear(eps=0.0), mask_id=MASK),
            parameterization=Subs(mask_id=MASK, vocab_size=V),
            denoise=denoise,
        ),
    )
    return terms, seen[0]


def test_the_prompt_is_seen_clean(key):
    loss_mask = jnp.ones((B, L), bool).at[:, :20].set(False)
    is_valid = jnp.ones((B, L), bool).at[:, 45:].set(False)
    _, inputs = run(LLaDA(), key, loss_mask, is_valid=is_valid)
    is_masked = np.asarray(inputs.tokens == MASK)
    assert not is_masked[:, :20].any() and not is_masked[:, 45:].any()
    assert is_masked[:, 20:45].any(0).all()
    # Nelbo takes every valid token for one that may be noised.
    _, inputs = run(Nelbo(), key, loss_mask, is_valid=is_valid)
    is_masked = np.asarray(inputs.tokens == MASK)
    assert is_masked[:, :45].any(0).all() and not is_masked[:, 45:].any()


def test_each_token_by_itself_with_probability_t(key):
    loss_mask = jnp.ones((B, L), bool).at[:, :20].set(False)
    terms, inputs = run(LLaDA(), key, loss_mask)
    is_masked, t = np.asarray(inputs.tokens == MASK), np.asarray(inputs.t)
    share = is_masked[:, 20:].mean(-1)
    assert np.abs(share - t[:, 0]).max() < 5 * 0.5 / np.sqrt(30)
    assert (share * 30 != np.round(t[:, 0] * 30)).any()  # no exact counts
    expected = is_masked / np.maximum(t, 1e-3) * np.log(V - 1)
    np.testing.assert_allclose(terms.values, expected, rtol=1e-5)


def test_without_a_prompt_it_is_the_nelbo(key):
    loss_mask = jnp.ones((B, L), bool)
    for one, other in zip(run(LLaDA(), key, loss_mask), run(Nelbo(), key, loss_mask), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("reconstruction", [True, False])
def test_times_near_zero(reconstruction):
    """As published t runs over [eps, 1), weighing 1 / t; in full, u < eps stands at eps."""
    objective = LLaDA(times=IID(), reconstruction=reconstruction)
    u = jnp.array([[0.0], [5e-4], [0.25], [0.999]])
    t, weight = objective.times_and_weights(LogLinear(eps=0.0), u)
    published = (1 - 1e-3) * u + 1e-3
    np.testing.assert_allclose(t, jnp.maximum(u, 1e-3) if reconstruction else published, rtol=1e-6)
    np.testing.assert_allclose(weight, 1 / t, rtol=1e-6)
