"""The SUBS losses of the MDLM repository, from its stored times, noised tokens and logits."""

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.objectives.base import score_masked
from mdlm.objectives.discrete_time import DiscreteNelbo
from mdlm.objectives.nelbo import Nelbo
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.change_of_variables import ChangeOfVariables
from mdlm.schedules.closed_form import Cosine, Geometric, LinearSigma, LogLinear
from mdlm.types import Batch, DenseLogits

pytestmark = pytest.mark.golden

LINEAR = LinearSigma(sigma_min=1e-3, sigma_max=7.0)
GEOMETRIC = Geometric(sigma_min=1e-4, sigma_max=20.0)
CASES = {
    "subs_ct": LogLinear(),
    "subs_ct_mid": LogLinear(),
    "subs_ct_time": LogLinear(),
    "subs_ct_linear": LINEAR,
    "subs_ct_cosine": Cosine(),
    "subs_ct_geometric": GEOMETRIC,
    "subs_T10": LogLinear(),
    "subs_T10_firstbin": LogLinear(),
    "subs_cov": LogLinear(),
    "subs_cov_linear": LINEAR,
    "subs_is": LogLinear(),
    "subs_is_linear": LINEAR,
}


@pytest.mark.parametrize("case", CASES)
def test_losses(golden, case):
    data, schedule = golden("mdlm_losses.npz"), CASES[case]
    place = "mid" if case.endswith("_mid") else "last"
    mask_id = int(data[f"mask_index_{place}"])
    logits = data[f"{case}__logits" if f"{case}__logits" in data else f"logits_notime_{place}"]
    loss_mask = data["attention_mask"] > 0
    x_0 = jnp.asarray(data["x0"], jnp.int32)
    batch = Batch(
        tokens=x_0,
        loss_mask=jnp.asarray(loss_mask),
        is_valid=jnp.ones(x_0.shape, bool),  # the reference attends to padding
        row=jnp.arange(3),
        rows=jnp.asarray(3),
    )
    t = jnp.asarray(data[f"{case}__t_sampled"])[:, None]
    if "_T10" in case:
        t, weight = DiscreteNelbo(steps=10).times_and_weights(
            schedule, t
        )  # stored before it is put on a grid
        # The reference weighs as if t were at most 1 - 1e-4.
        np.testing.assert_allclose(weight, 1 / t, rtol=1e-6)
        weight = 1 / jnp.minimum(t, 1 - 1e-4)
    elif "_cov" in case or "_is" in case:
        clock = ChangeOfVariables(base=schedule, sigma_min=1e-3)
        weight = clock.weight(t)
        # The reference weighs by -f_0 and leaves out f_1.
        f_0, f_1 = jnp.log(clock.one_minus_alpha(jnp.array([0.0, 1.0])))
        np.testing.assert_allclose(weight, f_1 - f_0, rtol=1e-6)
        weight = weight * -f_0 / (f_1 - f_0)
        if "_cov" in case:
            schedule = clock
    else:
        t_of_u, weight = Nelbo(reconstruction=False).times_and_weights(
            schedule, (t - 1e-3) / (1 - 1e-3)
        )
        np.testing.assert_allclose(t_of_u, t, rtol=1e-5)
    np.testing.assert_allclose(
        schedule.one_minus_alpha(t), data[f"{case}__move_chance"], rtol=1e-5, atol=1e-7
    )
    terms = score_masked(
        batch,
        z_t=jnp.asarray(data[f"xt_{place}"], jnp.int32),
        t=t,
        weight=weight,
        diffusion=Diffusion(
            process=Masked(schedule=schedule, mask_id=mask_id),
            parameterization=Subs(mask_id=mask_id, vocab_size=67),
            denoise=lambda inputs, *, key=None: DenseLogits(jnp.asarray(logits)),
        ),
    )
    expected = data[f"{case}__nlls"]
    known = np.isfinite(expected)
    if case.endswith("_firstbin"):
        assert not known[0].any() and known[1:].all()  # their division by t - 1/T
        assert np.isfinite(terms.values).all()
    else:
        assert known.all()
        total = terms.total / terms.count.sum()
        np.testing.assert_allclose(total, data[f"{case}__loss"], rtol=1e-5)
    np.testing.assert_allclose(terms.values[known], expected[known], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(terms.count, data["attention_mask"])
