"""Noise and weights of the public GIDD code, in its time and log-SNR forms.

In float64, as some stored times are no float32 numbers; `tests/processes` compares the two
precisions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.objectives.hybrid import HybridNelbo
from mdlm.objectives.interpolating import elbo_weight
from mdlm.processes.hybrid import Hybrid, HybridSchedule, LogSNRHybrid
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import Vocab

pytestmark = pytest.mark.golden

SETTINGS = [(m, 1, p) for m in (16, 3) for p in ("0", "0.1", "0.2", "0.5")]
SETTINGS += [(16, g, p) for g in (0.5, 2) for p in ("0", "0.1", "0.2", "0.5")]
SHIFTS = [(-1000, 1), (-2, 1), (0, 1), (0, 0.5), (2, 1), (2, 0.5), (1000, 1)]
EXACT = dict(rtol=1e-9, atol=1e-16)


def hybrid(mask_id, gamma, p):
    schedule = HybridSchedule(p_uniform=float(p), gamma=gamma)
    return Hybrid(schedule=schedule).with_vocab(Vocab(size=17, mask_id=mask_id))


def log_snr_process(shift, scale):
    process = LogSNRHybrid(schedule=LogLinear(eps=0.0), shift=float(shift), scale=float(scale))
    return process.with_vocab(Vocab(size=19, mask_id=3))


@pytest.mark.parametrize(("mask_id", "gamma", "p"), SETTINGS)
def test_time_schedule(golden, mask_id, gamma, p):
    data, process = golden("gidd_schedule.npz"), hybrid(mask_id, gamma, p)
    name = f"mask{mask_id}/gamma{gamma}/pu{p}/"
    np.testing.assert_allclose(process.schedule.log_amplitude, data[name + "log_B"], rtol=1e-9)
    other = (mask_id + 1) % 17
    with jax.enable_x64(True):
        t = jnp.asarray(data["t"])
        np.testing.assert_allclose(process.schedule.alpha(t), data[name + "alpha"], **EXACT)
        token, mask = process.noise(t)
        noise = data[name + "beta_pi"]
        np.testing.assert_allclose(mask, noise[:, mask_id], **EXACT)
        np.testing.assert_allclose(token, noise[:, other], **EXACT)
        if name + "q_zt_given_x" not in data:
            assert gamma != 1
            return
        clean = np.delete(np.arange(17), mask_id)
        z, x, t = jnp.broadcast_arrays(
            jnp.arange(17)[None, None], clean[None, :, None], t[:, None, None]
        )
        distribution = data[name + "q_zt_given_x"][:, clean]
        np.testing.assert_allclose(process.probability(z, x, t), distribution, **EXACT)
        s, t = jnp.asarray(data[name + "trans_s"]), jnp.asarray(data[name + "trans_t"])
        token, mask = process.renewal(s, t)
        kept = process.schedule.alpha(t) / process.schedule.alpha(s)
        step = data[name + "trans_q_zt_given_zs"]
        np.testing.assert_allclose(mask, step[:, other, mask_id], **EXACT)
        np.testing.assert_allclose(token, step[:, mask_id, other], **EXACT)
        np.testing.assert_allclose(kept + mask, step[:, mask_id, mask_id], **EXACT)
        np.testing.assert_allclose(kept + token, step[:, other, other], **EXACT)


@pytest.mark.parametrize(("mask_id", "gamma", "p"), SETTINGS[:8])
def test_time_weights(golden, mask_id, gamma, p):
    data, process = golden("gidd_schedule.npz"), hybrid(mask_id, gamma, p)
    name = f"mask{mask_id}/gamma{gamma}/pu{p}/weights/"
    with jax.enable_x64(True):
        t = jnp.broadcast_to(jnp.asarray(data["t"])[:, None], (15, 3))
        x_0 = jnp.full((15, 3), 5)
        z_t = jnp.broadcast_to(jnp.array([5, mask_id, 6]), (15, 3))
        ratio = process.schedule.dalpha(t[:, 0]) / process.schedule.alpha(t[:, 0])
        np.testing.assert_allclose(ratio, data[name + "alpha_ratio"], **EXACT)
        np.testing.assert_allclose(elbo_weight(process, z_t, x_0, t), data[name + "elbo"], **EXACT)
        for stored, weights, limit in (
            ("none", "elbo", 2.0),
            ("clip", "clip", 2.0),
            ("clip_max1", "clip", 1.0),
            ("dynamic", "dynamic_as_in_code", 2.0),
            ("dynamic_max1", "dynamic_as_in_code", 1.0),
        ):
            objective = HybridNelbo(weights=weights, max_weight=limit)
            ours = objective.training_weight(process, z_t, x_0, t)
            np.testing.assert_allclose(ours, data[name + "loss_" + stored], **EXACT, err_msg=stored)


@pytest.mark.parametrize(("shift", "scale"), SHIFTS)
def test_log_snr_noise(golden, shift, scale):
    data, process = golden("gidd_logsnr.npz"), log_snr_process(shift, scale)
    name = f"shift{shift}_scale{scale}/"
    with jax.enable_x64(True):
        log_snr = jnp.asarray(data["log_snr_grid"])
        t = jax.nn.sigmoid(-log_snr)
        np.testing.assert_allclose(t, data[name + "time"], rtol=1e-12)
        np.testing.assert_allclose(process.schedule.alpha(t), data[name + "alpha"], rtol=1e-11)
        token, mask = (a / t for a in process.noise(t))
        np.testing.assert_allclose(mask, data[name + "pi"][:, 3], **EXACT)
        np.testing.assert_allclose(token, data[name + "pi"][:, 4], **EXACT)
        # rate = (1 - alpha) (pi - pi') |d lambda / dt|, and |d lambda / dt| = 1 / p(lambda) here.
        token, mask = (a * data[name + "p_log_snr"] / t for a in process.rate(t))
        left = data[name + "pi"] - data[name + "pi_prime"]
        np.testing.assert_allclose(mask, left[:, 3], **EXACT)
        np.testing.assert_allclose(token, left[:, 4], **EXACT)


@pytest.mark.parametrize(("shift", "scale"), SHIFTS)
def test_log_snr_weights(golden, shift, scale):
    data, process = golden("gidd_logsnr.npz"), log_snr_process(shift, scale)
    name = f"shift{shift}_scale{scale}/weights_"
    with jax.enable_x64(True):
        t = jax.nn.sigmoid(-jnp.asarray(data["log_snr_grid"]))
        t = jnp.broadcast_to(t[:, None], (15, 3))
        x_0, z_t = jnp.full((15, 3), 5), jnp.broadcast_to(jnp.array([5, 3, 6]), (15, 3))
        elbo = elbo_weight(process, z_t, x_0, t)
        objective = HybridNelbo(weights="log_snr", max_weight=1e9)
        loss = objective.training_weight(process, z_t, x_0, t)
        for ours, stored in ((elbo, "elbo_x_mask_other"), (loss, "loss_x_mask_other")):
            np.testing.assert_allclose(ours, data[name + stored], rtol=1e-8, atol=1e-12)
