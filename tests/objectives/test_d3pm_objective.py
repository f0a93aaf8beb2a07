"""The D3PM objective beside its bound: settings, refusals, and the published last term."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.objectives.d3pm import D3PM
from mdlm.parameterizations.mean import Mean
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import Geometric, LogLinear
from mdlm.types import Batch, DenseLogits

MASK, V, B, L = 4, 5, 6, 7
MEAN = Mean(mask_has_mass=True, mask_id=MASK, vocab_size=V)
PROCESS = Masked(mask_id=MASK)
COLUMN = jnp.arange(V)[None, None]


class PerToken(LogLinear):
    per_token = True


@pytest.fixture
def batch(key):
    return Batch(
        tokens=jax.random.randint(key, (B, L), 0, MASK),
        loss_mask=jnp.ones((B, L), bool).at[1, 3:].set(False),
        is_valid=jnp.ones((B, L), bool).at[1, 3:].set(False),
        row=jnp.arange(B),
        rows=jnp.asarray(B),
    )


def run(key, batch, objective, calls=None):
    def denoise(inputs, *, key=None):
        if calls is not None:
            calls.append((inputs, key))
        t = inputs.t[..., None] * COLUMN
        return DenseLogits(jnp.sin(1.0 + inputs.tokens[..., None] * COLUMN) + t)

    return objective(
        key, batch, diffusion=Diffusion(process=PROCESS, parameterization=MEAN, denoise=denoise)
    )


@pytest.mark.parametrize("steps", [0, -1])
def test_bad_settings(steps):
    with pytest.raises(ValueError, match=f"steps={steps}"):
        D3PM(steps=steps)


def test_refusals():
    assert D3PM().incompatibility(PROCESS, MEAN) is None
    assert D3PM(reconstruction=True).incompatibility(PROCESS, MEAN) is None
    assert "PerToken" in (D3PM().incompatibility(Masked(schedule=PerToken()), MEAN) or "")
    geometric = Masked(schedule=Geometric())
    assert D3PM().incompatibility(geometric, MEAN) is None
    assert "Geometric" in (D3PM(reconstruction=True).incompatibility(geometric, MEAN) or "")


def test_reconstruction_reads_the_clean_row_at_0(key, batch):
    calls = []
    plain = run(key, batch, D3PM(steps=3))
    whole = run(key, batch, D3PM(steps=3, reconstruction=True), calls)
    (_, first_key), (last, last_key) = calls
    np.testing.assert_array_equal(last.tokens, batch.tokens)
    assert (last.t == 0).all()
    assert not (jax.random.key_data(first_key) == jax.random.key_data(last_key)).all()
    logits = jnp.sin(1.0 + batch.tokens[..., None] * COLUMN)
    expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.tokens[..., None], -1)[..., 0]
    expected = jnp.where(batch.loss_mask, expected, 0.0)
    np.testing.assert_allclose(whole.values - plain.values, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole.bound, whole.values)
    np.testing.assert_allclose(whole.total, whole.values.sum(), rtol=1e-6)
    np.testing.assert_array_equal(whole.scored, batch.loss_mask)
    np.testing.assert_array_equal(whole.count, plain.count)


def test_what_is_not_scored_costs_nothing(key, batch):
    calls = []
    terms = run(key, batch, D3PM(steps=2), calls)
    z_t = calls[0][0].tokens
    np.testing.assert_array_equal(z_t[1, 3:], batch.tokens[1, 3:])
    np.testing.assert_array_equal(terms.scored > 0, (z_t == MASK) & batch.loss_mask)
    np.testing.assert_array_equal(terms.values > 0, terms.scored > 0)
    other = replace(batch, loss_mask=jnp.zeros_like(batch.loss_mask))
    assert float(run(key, other, D3PM(steps=2)).total) == 0


def test_gradients_are_finite_where_the_mask_has_all_mass(key, batch):
    def total(logit):
        def denoise(inputs, *, key=None):
            logits = jnp.zeros((B, L, V)).at[..., MASK].set(logit)
            return DenseLogits(logits)

        return D3PM(steps=1000)(
            key, batch, diffusion=Diffusion(process=PROCESS, parameterization=MEAN, denoise=denoise)
        ).total

    for logit in (-200.0, 0.0, 30.0):
        value, slope = jax.value_and_grad(total)(logit)
        assert jnp.isfinite(value) and jnp.isfinite(slope)
        assert slope >= 0  # mass on the mask is never worth it
