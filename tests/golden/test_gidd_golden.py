"""Losses, gradients and transitions of the public GIDD code, in its time and log-SNR forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.objectives.hybrid import HybridNelbo
from mdlm.objectives.interpolating import divergences, elbo_weight
from mdlm.parameterizations.mean import Mean
from mdlm.parameterizations.subs import Subs
from mdlm.processes.hybrid import Hybrid, HybridSchedule, LogSNRHybrid
from mdlm.processes.masked import Masked
from mdlm.samplers.logits.filters import filter_log_p
from mdlm.samplers.self_correction import agreement, moved
from mdlm.schedules.base import Schedule
from mdlm.schedules.closed_form import LogLinear
from mdlm.times import stratify
from mdlm.types import Batch, DenseLogits, Vocab

pytestmark = pytest.mark.golden

SHIFTS = [(-1000, 1), (-2, 1), (0, 1), (0, 0.5), (2, 1), (2, 0.5), (1000, 1)]
LOSS = dict(rtol=1e-4, atol=1e-6)


def hybrid(p):
    schedule = HybridSchedule(p_uniform=float(p))
    return Hybrid(schedule=schedule).with_vocab(Vocab(size=17, mask_id=16))


def batch_of(x_0, loss_mask=None):
    return Batch(
        tokens=jnp.asarray(x_0),
        loss_mask=jnp.ones(x_0.shape, bool) if loss_mask is None else jnp.asarray(loss_mask),
        row=jnp.arange(len(x_0)),
        rows=jnp.asarray(len(x_0)),
    )


# Time form.


def scored(process, objective, data, logits, loss_mask=None):
    """The objective's terms for the stored noised rows, and the gradient in the logits."""

    def terms(logits):
        return objective.score_noised(
            batch_of(data["x0"], loss_mask),
            z_t=jnp.asarray(data["zt"]),
            t=jnp.asarray(data["t"], jnp.float32)[:, None],
            is_last=jnp.zeros((6, 1), bool),
            diffusion=Diffusion(
                process=process,
                parameterization=Mean().with_vocab(Vocab(size=17, mask_id=16)),
                denoise=lambda inputs, *, key=None: DenseLogits(logits),
            ),
        )

    logits = jnp.asarray(logits)
    return terms(logits), jax.grad(lambda logits: terms(logits).total)(logits)


def assert_slopes(ours, theirs):
    """Entries of one token's gradient cancel from terms as large as its largest."""
    scale = np.maximum(np.abs(theirs).max(-1, keepdims=True), 1.0)
    np.testing.assert_array_less(np.abs(ours - theirs), 1e-4 * np.abs(theirs) + 1e-6 * scale)


def float64_divergences(process, data, t):
    """KL and IS by token with everything in float64; call with x64 enabled."""
    logits = np.asarray(data["logits"], np.float64)
    column = jnp.arange(logits.shape[-1])[None, None]
    log_p0 = jax.nn.log_softmax(jnp.where(process.is_token(column), logits, -jnp.inf))
    flat = [jnp.asarray(a).ravel() for a in (data["zt"], data["x0"], t)]
    out = divergences(process, log_p0.reshape(-1, logits.shape[-1]), *flat)
    return [np.asarray(a).reshape(data["x0"].shape) for a in out]


@pytest.mark.parametrize("p", ["0", "0.1", "0.2", "0.5"])
def test_time_divergences(golden, p):
    data, process = golden("gidd_losses.npz"), hybrid(p)
    with jax.enable_x64(True):
        t = jnp.broadcast_to(jnp.asarray(data["t"])[:, None], data["x0"].shape)
        kl, divergence, _ = float64_divergences(process, data, t)
        log_q = jnp.log(process.probability(jnp.asarray(data["zt"]), jnp.asarray(data["x0"]), t))
        np.testing.assert_allclose(log_q, data[f"pu{p}/log_q_zt"], rtol=1e-9)
    # The reference adds KL up from terms of either sign.
    np.testing.assert_allclose(kl, data[f"pu{p}/kl_per_token"], rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(divergence, data[f"pu{p}/is_per_token"], rtol=1e-7, atol=1e-13)


@pytest.mark.parametrize("p", ["0", "0.1", "0.2", "0.5"])
@pytest.mark.parametrize(
    ("stored", "weights"),
    [("none", "elbo"), ("clip", "clip"), ("dynamic", "dynamic_as_in_code")],
)
def test_time_losses(golden, p, stored, weights):
    data, process = golden("gidd_losses.npz"), hybrid(p)
    name, objective = f"pu{p}/{stored}/", HybridNelbo(weights=weights)
    terms, slope = scored(process, objective, data, data["logits"])
    np.testing.assert_allclose(terms.values, data[name + "loss_per_token"], **LOSS)
    np.testing.assert_allclose(terms.bound, data[f"pu{p}/elbo_per_token"], **LOSS)
    mean = terms.total / terms.count.sum()
    np.testing.assert_allclose(mean, data[name + "loss_tokenmean"], rtol=1e-4)
    if stored != "clip":
        assert_slopes(slope, data[name + "grad_logits"])
    loss_mask = data["attention_mask"] > 0
    terms, _ = scored(process, objective, data, data["logits"], loss_mask)
    elbo = terms.bound.sum() / terms.count.sum()
    np.testing.assert_allclose(elbo, data[name + "metric_elbo"], rtol=1e-4)


def test_time_losses_of_padded_columns(golden):
    """No token stands behind the columns beyond the vocabulary, and ours have no mass. Theirs
    have some, which is lost to all tokens."""
    data, process = golden("gidd_losses.npz"), hybrid("0.1")
    objective = HybridNelbo(weights="dynamic_as_in_code")
    terms, slope = scored(process, objective, data, data["padded/logits"])
    np.testing.assert_allclose(terms.values, data["pu0.1/dynamic/loss_per_token"], **LOSS)
    assert_slopes(slope[..., :17], data["pu0.1/dynamic/grad_logits"])
    assert (slope[..., 17:] == 0).all()
    logits = data["padded/logits"] + np.where(np.arange(24) == 16, -np.inf, 0.0)
    log_p0 = jnp.where(
        jnp.arange(24)[None] < 17, jax.nn.log_softmax(logits).reshape(54, 24), -jnp.inf
    )
    x_0, z_t = jnp.asarray(data["x0"]), jnp.asarray(data["zt"])
    t = jnp.broadcast_to(jnp.asarray(data["t"], jnp.float32)[:, None], x_0.shape)
    kl, divergence, _ = divergences(process, log_p0, z_t.ravel(), x_0.ravel(), t.ravel())
    theirs = elbo_weight(process, z_t, x_0, t) * (kl + divergence).reshape(6, 9)
    np.testing.assert_allclose(theirs, data["padded/pu0.1/elbo_per_token"], **LOSS)


def test_times(golden):
    data = golden("gidd_losses.npz")
    u = stratify(jnp.full(8, data["time/offset"][0] * 8 % 1), jnp.arange(8), jnp.asarray(8))
    shift = int(data["time/offset"][0] * 8)
    t, is_last = HybridNelbo().times_and_weights(jnp.roll(u, -shift)[:, None])
    np.testing.assert_allclose(t[:, 0], data["time/t_low_discrepancy"], rtol=1e-5)
    assert not is_last.any()


@pytest.mark.parametrize("p", ["0", "0.1", "0.2", "0.5"])
def test_time_transitions(golden, p):
    data, process = golden("gidd_sampler.npz"), hybrid(p)
    z_t, logits = jnp.asarray(data["zt"]), jnp.asarray(data["logits"])
    log_p0 = Mean().with_vocab(Vocab(size=17, mask_id=16)).log_p0(logits, z_t)
    for i, (t, s) in enumerate(zip(data["t"], data["s"], strict=True)):
        times = [jnp.full((3, 1), a, jnp.float32) for a in (t, s)]
        distribution = process.reverse_probabilities(log_p0, z_t, *times)
        expected = data[f"pu{p}/minp0/q_zs_given_zt"][i]
        np.testing.assert_allclose(distribution, expected, rtol=1e-4, atol=1e-7)


def test_steps_of_the_masked_baseline(golden):
    data, vocab = golden("gidd_sampler.npz"), Vocab(size=17, mask_id=16)
    z_t, logits = jnp.asarray(data["zt"]), jnp.asarray(data["logits"])
    log_p0 = Subs().with_vocab(vocab).log_p0(logits, z_t)
    process = Masked(schedule=LogLinear(eps=0.0)).with_vocab(vocab)
    for i, distribution in enumerate(data["mdlm/probs"]):
        t, s = (jnp.full((3, 1), a[i], jnp.float32) for a in (data["t"], data["s"]))
        ours = process.reverse_probabilities(log_p0, z_t, t, s)
        # They draw for tokens that stay as well.
        np.testing.assert_allclose(ours[z_t == 16], distribution[z_t == 16], rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(jnp.argmax(log_p0, axis=-1), data["mdlm/zs_final_step"])


@pytest.mark.parametrize("tau", ["0.1", "0.5", "1"])
def test_self_correction(golden, tau):
    """One round from the stored proposals, which inverse distribution functions drew."""
    data = golden("gidd_sampler.npz")
    z, logits = jnp.asarray(data["selfcorr/zt"]), jnp.asarray(data["logits"])
    log_p0 = Mean().with_vocab(Vocab(size=17, mask_id=16)).log_p0(logits, z)
    name = f"selfcorr/temp{tau}/"
    distribution = filter_log_p(
        log_p0.reshape(-1, 17), temperature=float(tau), top_k=0, top_p=1.0
    ).reshape(log_p0.shape)
    np.testing.assert_allclose(jnp.exp(distribution), data[name + "p"], rtol=1e-4, atol=1e-7)
    proposed = jnp.asarray(data[name + "z_proposal"])
    for k in (1, 2, 4):
        tokens = moved(z, proposed, distribution, jnp.ones(z.shape, bool), k)
        np.testing.assert_array_equal(tokens, data[f"{name}k{k}/z_next"])
        accuracy = agreement(tokens, log_p0, jnp.ones(z.shape, bool)).mean()
        assert float(accuracy) == pytest.approx(float(data[f"{name}k{k}/acc"]), rel=1e-6)


# Log-SNR form.


def log_snr_process(shift, scale, schedule):
    process = LogSNRHybrid(schedule=schedule, shift=float(shift), scale=float(scale))
    return process.with_vocab(Vocab(size=19, mask_id=3))


@pytest.mark.parametrize(("shift", "scale"), SHIFTS)
def test_log_snr_losses_in_float64(golden, shift, scale):
    data, process = golden("gidd_logsnr.npz"), log_snr_process(shift, scale, LogLinear(eps=0.0))
    name = f"shift{shift}_scale{scale}/"
    with jax.enable_x64(True):
        t = jax.nn.sigmoid(-jnp.asarray(data["log_snr"]))
        z_t, x_0 = jnp.asarray(data["zt"]), jnp.asarray(data["x0"])
        kl, divergence, _ = float64_divergences(process, data, t)
        objective = HybridNelbo(weights="log_snr", max_weight=1e3)
        weight = np.asarray(objective.training_weight(process, z_t, x_0, t))
        elbo = np.asarray(jnp.minimum(elbo_weight(process, z_t, x_0, t), 1e6))  # their limit
        logits = np.where(np.arange(19) == 3, -np.inf, np.asarray(data["logits"], np.float64))
        p_0 = np.take_along_axis(np.asarray(jax.nn.softmax(logits)), data["zt"][..., None], -1)
        q = np.asarray(process.probability(z_t, x_0, t))
        # Below, x_0 = -1 is no token: what is left is the noise alone.
        p = np.asarray(process.schedule.alpha(t)) * p_0[..., 0]
        p = p + np.asarray(process.probability(z_t, jnp.full_like(x_0, -1), t))
    with np.errstate(divide="ignore", invalid="ignore"):
        theirs = divergence + np.where(q > 0, q / (p + 1e-12) - q / p, -1.0)  # they add 1e-12
    seen = q > 0  # the others cannot occur; their weight is 0, and ours is defined all the same
    for ours, stored in (
        (weight * kl, "kl_loss_per_token"),
        (weight * theirs, "is_loss_per_token"),
        (weight * (kl + theirs), "loss_per_token"),
        (elbo * (kl + theirs), "elbo_per_token"),
    ):
        np.testing.assert_allclose(
            ours[seen], data[name + stored][seen], rtol=1e-8, atol=1e-10, err_msg=stored
        )
    assert (weight[~seen] == 0).all()


class LinearLogSNR(Schedule):
    """lambda = 9 (1 - 2 t)."""

    def log_snr(self, t, x_0=None):
        return 9 * (1 - 2 * t)

    def alpha(self, t, x_0=None):
        return jax.nn.sigmoid(self.log_snr(t))

    def one_minus_alpha(self, t, x_0=None):
        return jax.nn.sigmoid(-self.log_snr(t))


@pytest.mark.parametrize(("shift", "scale"), SHIFTS)
def test_log_snr_losses(golden, shift, scale):
    """The trained loss does not depend on the clock: any schedule with these log-SNRs will do."""
    data, process = golden("gidd_logsnr.npz"), log_snr_process(shift, scale, LinearLogSNR())
    name = f"shift{shift}_scale{scale}/"

    def terms(logits):
        return HybridNelbo(weights="log_snr", max_weight=1e3).score_noised(
            batch_of(data["x0"]),
            z_t=jnp.asarray(data["zt"]),
            t=jnp.asarray((1 - data["log_snr"] / 9) / 2, jnp.float32),
            is_last=jnp.zeros((5, 1), bool),
            diffusion=Diffusion(
                process=process,
                parameterization=Mean().with_vocab(Vocab(size=19, mask_id=3)),
                denoise=lambda inputs, *, key=None: DenseLogits(logits),
            ),
        )

    logits = jnp.asarray(data["logits"])
    ours, theirs = terms(logits).values, data[name + "loss_per_token"]
    np.testing.assert_allclose(ours, theirs, **LOSS)
    assert_slopes(jax.grad(lambda x: terms(x).total)(logits), data[name + "grad_logits"])


@pytest.mark.parametrize("shift", [-2, 0, 2, 1000, -1000])
def test_log_snr_transitions(golden, shift):
    data, process = golden("gidd_logsnr.npz"), log_snr_process(shift, 1, LinearLogSNR())
    stored = [k for k in data if k.startswith(f"sample/shift{shift}/") and "ancestral" in k]
    assert stored
    z_t = jnp.asarray(data["sample/zt_nomask" if shift == 1000 else "zt"])
    log_p0 = Mean().with_vocab(Vocab(size=19, mask_id=3)).log_p0(jnp.asarray(data["logits"]), z_t)
    for name in stored:
        t, s = (float(part[1:]) for part in name.split("/")[2].split("_"))
        times = [jnp.full((5, 1), (1 - a / 9) / 2, jnp.float32) for a in (t, s)]
        distribution = process.reverse_probabilities(log_p0, z_t, *times)
        np.testing.assert_allclose(distribution, data[name], rtol=1e-4, atol=1e-7, err_msg=name)
