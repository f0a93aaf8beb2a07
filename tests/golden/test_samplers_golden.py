"""One noising and one reverse update against the values of the public MDLM project."""

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import LogLinear

pytestmark = pytest.mark.golden


def test_noised_tokens(golden):
    arrays = golden("mdlm_losses.npz")
    u, chance = arrays["q_xt_u"], arrays["q_xt_move_chance"]
    assert (u == chance).sum() == 1  # the tie, which stays clean
    process = Masked(schedule=LogLinear(eps=0.0), mask_id=int(arrays["mask_index_last"]))
    z_t = process.mask_where(
        jnp.asarray(u), jnp.asarray(arrays["x0"], jnp.int32), jnp.asarray(chance)
    )
    np.testing.assert_array_equal(z_t, arrays["q_xt_out"])


# The cached update of the public project takes t itself for 1 - alpha(t).
@pytest.mark.parametrize(
    ("update", "schedule"), [("ddpm", LogLinear()), ("ddpm_cache", LogLinear(eps=0.0))]
)
@pytest.mark.parametrize("network", ["time", "notime"])
@pytest.mark.parametrize(("place", "mask_id"), [("last", 66), ("mid", 5)])
def test_reverse_probabilities(golden, update, schedule, network, place, mask_id):
    arrays = golden("mdlm_samplers.npz")
    case = f"subs_{network}_{place}__"
    z_t = jnp.asarray(arrays["x" if place == "last" else "x_mid"], jnp.int32)
    t = jnp.asarray(arrays["t"])
    s = t - jnp.float32(arrays["dt"])
    log_p0 = Subs(mask_id=mask_id, vocab_size=67).log_p0(jnp.asarray(arrays[case + "logits"]), z_t)
    process = Masked(schedule=schedule, mask_id=mask_id)
    ours = process.reverse_probabilities(log_p0, z_t, t, s)

    is_masked = np.asarray(z_t) == mask_id
    assert is_masked.any() and not is_masked.all()
    reference = arrays[f"{case}{update}_probs"]
    # Stored without their common factor 1 - alpha(t), and for tokens that stay anyway as well.
    scale = np.broadcast_to(schedule.one_minus_alpha(t), z_t.shape)[..., None]
    total = np.broadcast_to(reference.sum(-1, keepdims=True), scale.shape)
    np.testing.assert_allclose(total, scale, rtol=1e-5)
    np.testing.assert_allclose(
        ours[is_masked], (reference / scale)[is_masked], rtol=1e-4, atol=1e-6
    )
    kept = np.take_along_axis(np.asarray(ours), np.asarray(z_t)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(kept[~is_masked], 1)


@pytest.mark.parametrize("network", ["time", "notime"])
def test_the_analytic_sampler_of_subs_is_the_ancestral_one(golden, network):
    """Tweedie's step of the score that SUBS implies, at masks, is its reverse step."""
    arrays = golden("mdlm_samplers.npz")
    case, mask_id, schedule = f"subs_{network}_last__", 66, LogLinear()
    z_t, t = jnp.asarray(arrays["x"], jnp.int32), jnp.asarray(arrays["t"])
    log_p0 = Subs(mask_id=mask_id, vocab_size=67).log_p0(jnp.asarray(arrays[case + "logits"]), z_t)
    process = Masked(schedule=schedule, mask_id=mask_id)
    ours = process.reverse_probabilities(log_p0, z_t, t, t - jnp.float32(arrays["dt"]))
    is_masked = np.asarray(z_t) == mask_id
    theirs = arrays[case + "analytic_probs"]
    theirs = theirs / theirs.sum(-1, keepdims=True)
    np.testing.assert_allclose(ours[is_masked], theirs[is_masked], rtol=2e-4, atol=1e-6)
    ratio = jnp.exp(log_p0) * (schedule.alpha(t) / schedule.one_minus_alpha(t))[..., None]
    is_token = np.arange(67) != mask_id
    np.testing.assert_allclose(
        ratio[is_masked][:, is_token], arrays[case + "score"][is_masked][:, is_token], rtol=2e-4
    )


def test_what_is_masked_at_the_end_has_the_network_s_distribution(golden):
    arrays = golden("mdlm_samplers.npz")
    z_t = jnp.asarray(arrays["x"], jnp.int32)
    logits = jnp.asarray(arrays["subs_notime__denoiser_logits"])
    p = np.asarray(jnp.exp(Subs(mask_id=66, vocab_size=67).log_p0(logits, z_t)))
    theirs = arrays["subs_notime__denoiser_probs"]
    theirs = theirs / theirs.sum(-1, keepdims=True)
    is_masked = np.asarray(z_t) == 66
    np.testing.assert_allclose(p[is_masked], theirs[is_masked], rtol=2e-3, atol=1e-5)
