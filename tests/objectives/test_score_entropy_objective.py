"""The score entropy beside its bound: settings, refusals, and what is counted."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.objectives.score_entropy import ScoreEntropy, score_noised
from mdlm.parameterizations.score import Score
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.schedules.closed_form import Geometric, LogLinear
from mdlm.types import Batch, DenseLogits

MASK, V, B, L = 4, 6, 6, 7
FIELDS = {"mask_id": MASK, "vocab_size": V}
GRAPHS = {
    "absorbing": (Masked(mask_id=MASK), Score(**FIELDS)),
    "uniform": (Uniform(**FIELDS), Score(graph="uniform", **FIELDS)),
}


@pytest.fixture
def batch(key):
    return Batch(
        tokens=jax.random.randint(key, (B, L), 0, MASK),
        loss_mask=jnp.ones((B, L), bool).at[1, 3:].set(False).at[2, 0].set(False),
        is_valid=jnp.ones((B, L), bool).at[1, 3:].set(False),
        row=jnp.arange(B),
        rows=jnp.asarray(B),
    )


@pytest.mark.parametrize("t_min", [0.0, 1.0, -1.0])
def test_bad_settings(t_min):
    with pytest.raises(ValueError, match=f"t_min={t_min}"):
        ScoreEntropy(t_min=t_min)


def test_refuses_what_its_score_refuses():
    for process, score in GRAPHS.values():
        assert ScoreEntropy().incompatibility(process, score) is None
    assert "Score(graph=" in (ScoreEntropy().incompatibility(Uniform(), Score()) or "")
    assert "alpha = 0" in (
        ScoreEntropy().incompatibility(Masked(schedule=LogLinear(eps=0.0)), Score()) or ""
    )


@pytest.mark.parametrize("graph", GRAPHS)
def test_what_is_not_scored_costs_nothing(key, batch, graph):
    process, score = GRAPHS[graph]
    seen = []

    def denoise(inputs, *, key=None):
        seen.append(inputs)
        return DenseLogits(jnp.sin(inputs.tokens[..., None] + jnp.arange(V)[None, None]))

    diffusion = Diffusion(process=process, parameterization=score, denoise=denoise)
    terms = ScoreEntropy(t_min=0.2)(key, batch, diffusion)
    (inputs,) = seen
    assert (inputs.t >= 0.2).all() and (inputs.t < 1).all()
    np.testing.assert_array_equal(inputs.tokens[1, 3:], batch.tokens[1, 3:])
    counts = inputs.tokens == MASK if graph == "absorbing" else jnp.ones((B, L), bool)
    np.testing.assert_array_equal(terms.scored > 0, counts & batch.loss_mask)
    np.testing.assert_array_equal(terms.values > 0, terms.scored > 0)
    np.testing.assert_array_equal(terms.bound, terms.values)
    np.testing.assert_allclose(terms.total, terms.values.sum(), rtol=1e-6)
    empty = replace(batch, loss_mask=jnp.zeros_like(batch.loss_mask))
    assert float(ScoreEntropy()(key, empty, diffusion).total) == 0


@pytest.mark.parametrize("t", [1e-3, 0.5, 1.0])
@pytest.mark.parametrize("schedule", [LogLinear(), Geometric()])
@pytest.mark.parametrize("graph", GRAPHS)
def test_loss_and_gradient_are_finite_at_the_ends(batch, graph, schedule, t):
    process, score = GRAPHS[graph]
    process = replace(process, schedule=schedule)
    z_t = (batch.tokens + jnp.arange(L)[None]) % MASK
    z_t = jnp.where(jnp.arange(L)[None] > 3, MASK, z_t) if graph == "absorbing" else z_t

    def total(logits):
        return score_noised(
            batch,
            z_t=z_t,
            t=jnp.full((B, 1), t),
            diffusion=Diffusion(
                process=process,
                parameterization=score,
                denoise=lambda inputs, *, key=None: DenseLogits(logits),
            ),
        ).total

    value, slope = jax.value_and_grad(total)(jnp.zeros((B, L, V)))
    assert jnp.isfinite(value) and value >= 0
    assert jnp.isfinite(slope).all()
    # The columns of the token that is there, and of the mask, are not asked for.
    assert (slope[..., MASK] == 0).all()
    own = jnp.take_along_axis(slope, z_t[..., None], -1)
    assert (own == 0).all()
