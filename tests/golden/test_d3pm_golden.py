"""The D3PM losses and update of the MDLM repository, from its stored tokens and logits."""

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.objectives.d3pm import D3PM, score_clean, score_step
from mdlm.parameterizations.mean import Mean
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import Batch, DenseLogits

pytestmark = pytest.mark.golden

CASES = ["d3pm_T10", "d3pm_T10_subsmasking", "d3pm_T10_mid", "d3pm_T1000", "d3pm_T10_firstbin"]


@pytest.mark.parametrize("case", CASES)
def test_losses(golden, case):
    data = golden("mdlm_losses.npz")
    place = "mid" if case.endswith("_mid") else "last"
    mask_id = golden("mdlm_losses.json")[case]["mask_index"]
    steps = 1000 if "T1000" in case else 10
    logits = data.get(f"{case}__logits", data[f"logits_notime_{place}"])
    at_zero = data.get(f"{case}__logits_recon", data["logits_recon_notime"])
    x_0 = jnp.asarray(data["x0"], jnp.int32)
    batch = Batch(
        tokens=x_0,
        loss_mask=jnp.asarray(data["attention_mask"] > 0),
        is_valid=jnp.ones(x_0.shape, bool),  # the reference attends to padding
        row=jnp.arange(3),
        rows=jnp.asarray(3),
    )
    parameterization = Mean(mask_has_mass="subsmasking" not in case, mask_id=mask_id, vocab_size=67)
    s, t = D3PM(steps=steps).times_and_weights(jnp.asarray(data[f"{case}__t_sampled"])[:, None])
    # The reference noises with eps = 1e-3, weighs as if there were none, and as if t and s were
    # at most 1 - 1e-4 and 1/T below that.
    np.testing.assert_allclose(
        LogLinear().one_minus_alpha(t), data[f"{case}__move_chance"], rtol=1e-5
    )
    cut = jnp.maximum(t - (1 - 1e-4), 0.0)
    terms = score_step(
        batch,
        z_t=jnp.asarray(data[f"xt_{place}"], jnp.int32),
        s=s - cut,
        t=t - cut,
        scale=steps,
        diffusion=Diffusion(
            process=Masked(schedule=LogLinear(eps=0.0), mask_id=mask_id),
            parameterization=parameterization,
            denoise=lambda inputs, *, key=None: DenseLogits(jnp.asarray(logits)),
        ),
    )
    last = score_clean(
        batch,
        Diffusion(
            process=Masked(schedule=LogLinear(eps=0.0), mask_id=mask_id),
            parameterization=parameterization,
            denoise=lambda inputs, *, key=None: DenseLogits(jnp.asarray(at_zero)),
        ),
    )
    values = np.asarray(terms.values + last.values)
    expected = data[f"{case}__nlls"]
    known = np.isfinite(expected)
    if case.endswith("_firstbin"):
        # A recorded defect: they divide by t - 1/T = 0 in the first bin.
        assert not known[0].any() and known[1:].all()
        assert np.isfinite(values).all()
        first = values[0] - np.asarray(last.values)[0]
        is_masked = (data[f"xt_{place}"][0] == mask_id) & (data["attention_mask"][0] > 0)
        p = np.exp(np.asarray(parameterization.log_p0(jnp.asarray(logits[0]), x_0[0]), np.float64))
        p_x = np.take_along_axis(p, data["x0"][0][:, None], 1)[:, 0]
        # All that is masked at t = 1/10 is revealed: 9 p_m is alpha_t p_m / (1 - alpha_t).
        np.testing.assert_allclose(
            first, is_masked * 10 * (np.log1p(9 * p[:, mask_id]) - np.log(p_x)), rtol=1e-5
        )
    else:
        assert known.all()
        total = (terms.total + last.total) / terms.count.sum()
        np.testing.assert_allclose(total, data[f"{case}__loss"], rtol=1e-5)
    np.testing.assert_allclose(values[known], expected[known], rtol=1e-4, atol=1e-4)


def test_reverse_step(golden):
    """Which token is as there; whether it is revealed is not, where the mask has mass."""
    data = golden("mdlm_samplers.npz")
    mask_id = int(data["mask_index_last"])
    z_t = jnp.asarray(data["x"], jnp.int32)
    t = jnp.asarray(data["t"])
    s = t - jnp.float32(data["dt"])
    process = Masked(schedule=LogLinear(), mask_id=mask_id)
    mean = Mean(mask_has_mass=True, mask_id=mask_id, vocab_size=67)
    log_p0 = mean.log_p0(jnp.asarray(data["d3pm_time__logits"]), z_t)
    ours = np.asarray(process.reverse_probabilities(log_p0, z_t, t, s), np.float64)
    theirs = data["d3pm_time__ddpm_probs"].astype(np.float64)
    theirs = theirs / theirs.sum(-1, keepdims=True)

    is_masked = np.asarray(z_t) == mask_id
    assert is_masked.any() and not is_masked.all()
    np.testing.assert_array_equal(
        ours[~is_masked], np.eye(67)[np.asarray(z_t)[~is_masked]]
    )  # the reference copies these after its draw
    given = [
        p[is_masked][:, :66] / p[is_masked][:, :66].sum(-1, keepdims=True) for p in (ours, theirs)
    ]
    np.testing.assert_allclose(*given, rtol=1e-4, atol=1e-6)
    # Theirs writes 1 - alpha_s over the mask's p_m (alpha_s - alpha_t), which is neither the step
    # of D3PM's bound nor that of a distribution without mass on the mask.
    p_mask = np.exp(np.asarray(log_p0, np.float64))[is_masked][:, mask_id]
    noised_s, noised_t = (
        np.broadcast_to(LogLinear().one_minus_alpha(a), z_t.shape)[is_masked] for a in (s, t)
    )
    gap = noised_t - noised_s
    reveal = gap * (1 - p_mask) / (gap * (1 - p_mask) + noised_s)
    np.testing.assert_allclose(1 - theirs[is_masked][:, mask_id], reveal, rtol=1e-4)
    np.testing.assert_allclose(1 - ours[is_masked][:, mask_id], gap / noised_t, rtol=1e-4)
