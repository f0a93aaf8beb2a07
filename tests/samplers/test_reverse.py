"""The reverse chain of a whole process as a sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.parameterizations.mean import Mean
from mdlm.parameterizations.score import Score
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.loop import generate
from mdlm.samplers.reverse import Reverse
from mdlm.schedules.closed_form import LogLinear
from mdlm.schedules.md4 import Polynomial
from mdlm.types import DenseLogits

MASK = 3
SUBS = Subs(mask_id=MASK, vocab_size=4)


def denoise(inputs, *, key=None):
    """A network whose distribution of a token depends on how many are masked."""
    masked = (inputs.tokens == MASK).sum(-1)[:, None, None]
    logits = jnp.array([[[0.0, 1.0, -1.0, 9.0]]]) * jnp.where(masked > 1, 1.0, 0.3)
    return DenseLogits(jnp.broadcast_to(logits, (*inputs.tokens.shape, 4)))


def drawn(sampler, rows=4000, schedule=None, fixed=None, reads=SUBS):
    process = Masked(schedule=schedule or LogLinear(eps=0.0), mask_id=MASK)
    tokens = jnp.zeros((rows, 2), jnp.int32)
    is_fixed = jnp.broadcast_to(jnp.array([fixed or [False, False]]), (rows, 2))
    out = jax.jit(
        lambda keys: generate(
            keys,
            tokens,
            is_fixed,
            sampler=sampler,
            diffusion=Diffusion(process=process, parameterization=reads, denoise=denoise),
        )
    )(by_row(jax.random.key(0), jnp.arange(rows)))
    return np.asarray(out.tokens), int(out.nfe)


def histogram(tokens):
    return np.bincount(tokens[:, 0] * 4 + tokens[:, 1], minlength=16) / len(tokens)


@pytest.mark.parametrize("steps", [1, 3])
def test_has_the_distribution_of_ancestral_sampling(steps):
    ours, nfe = drawn(Reverse(steps=steps))
    theirs, _ = drawn(Ancestral(steps=steps))
    assert nfe == steps
    # Two samples of 4,000 of one distribution on nine pairs: each share within 5 standard errors.
    a, b = histogram(ours), histogram(theirs)
    error = np.sqrt((a * (1 - a) + b * (1 - b)) / len(ours))
    assert (np.abs(a - b) <= 5 * error + 1e-12).all()
    assert steps == 1 or np.abs(a - histogram(drawn(Reverse(steps=1))[0])).max() > 0.01


def test_what_is_still_masked_at_the_end_is_drawn():
    schedule = Polynomial(power=1.0, eps=0.3)  # three tenths are masked at t = 0
    tokens, nfe = drawn(Reverse(steps=2), schedule=schedule)
    assert nfe == 3
    assert (tokens != MASK).all()


def test_fixed_tokens_stay():
    tokens, _ = drawn(Reverse(steps=4), rows=64, fixed=[True, False])
    assert (tokens[:, 0] == 0).all()
    assert (tokens[:, 1] != 0).any()


def test_temperature_zero_takes_the_likeliest():
    tokens, _ = drawn(Reverse(steps=2, temperature=0.0), rows=64)
    assert (tokens == 1).all()


def test_a_network_s_mass_on_the_mask_is_no_clean_token():
    mean = Mean(mask_has_mass=True, mask_id=MASK, vocab_size=4)
    for temperature in (0.0, 1.0):
        tokens, _ = drawn(Reverse(steps=2, temperature=temperature), rows=64, reads=mean)
        assert (tokens != MASK).all()
        assert temperature or (tokens == 1).all()


def test_scores_between_tokens_are_refused():
    score = Score(graph="uniform")
    assert "Tweedie" in (Reverse().incompatibility(Uniform(), score) or "")
    assert Reverse().incompatibility(Masked(), Score()) is None


@pytest.mark.parametrize("settings", [{"steps": 0}, {"temperature": -1.0}])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Reverse(**settings)
