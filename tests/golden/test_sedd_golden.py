"""Scores, score entropy and samplers against the SEDD and MDLM repositories' values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.interop.mdlm_torch import params_from
from mdlm.models.dit import DiT
from mdlm.models.network import denoiser
from mdlm.objectives.score_entropy import ScoreEntropy, score_noised
from mdlm.parameterizations.score import Score
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers.score import Euler, clean_weights, tweedie_weights
from mdlm.schedules.closed_form import Geometric, LogLinear
from mdlm.times import restrict
from mdlm.types import Batch, DenseLogits, NetInput

pytestmark = pytest.mark.golden

SCHEDULES = {
    "loglinear": LogLinear(),
    "geometric": Geometric(sigma_min=1e-4, sigma_max=20.0),
}
GRAPHS = [f"{graph}_{noise}" for graph in ("absorb", "uniform") for noise in SCHEDULES]
TOKENS = 19


def batch_of(x_0, loss_mask=None):
    b = len(x_0)
    return Batch(
        tokens=jnp.asarray(x_0, jnp.int32),
        loss_mask=jnp.ones(x_0.shape, bool) if loss_mask is None else jnp.asarray(loss_mask),
        is_valid=jnp.ones(x_0.shape, bool),
        row=jnp.arange(b),
        rows=jnp.asarray(b),
    )


def from_log_score(data, case):
    """Process, parameterization, output and log-score for a stored score; the mask is id 19.

    Their uniform graph has no mask: ours gets a column for it, filled with something large.
    """
    graph, noise = case.split("_")
    fields = {"mask_id": TOKENS, "vocab_size": TOKENS + 1}
    schedule = SCHEDULES[noise]
    log_score = jnp.asarray(data[f"{case}__log_score"])
    if graph == "absorb":
        sigma = schedule.sigma(jnp.asarray(data["t"]))[:, None, None]
        output = log_score + jnp.log(jnp.expm1(sigma)) + np.log(TOKENS)
        return Masked(schedule=schedule, mask_id=TOKENS), Score(**fields), output
    output = jnp.pad(log_score, ((0, 0), (0, 0), (0, 1)), constant_values=50.0)
    return Uniform(schedule=schedule, **fields), Score(graph="uniform", **fields), output


def scores(data, case):
    process, score, output = from_log_score(data, case)
    x = jnp.asarray(data[f"{case}__x"], jnp.int32)
    t = jnp.asarray(data["t"])[:, None]
    return process, x, t, score.log_score(output, x, process.schedule.sigma(t))


def close(ours, theirs, rtol=1e-3):
    """`ours`, normalised weights, against probabilities up to a factor, some a little negative."""
    theirs = np.maximum(theirs.astype(np.float64), 0)
    theirs = theirs / theirs.sum(-1, keepdims=True)
    np.testing.assert_allclose(ours[..., : theirs.shape[-1]], theirs, rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(ours[..., theirs.shape[-1] :], 0, atol=0)


def normalised(weights, z_t):
    others, stay = (np.asarray(w, np.float64) for w in weights)
    p = others.copy()
    np.put_along_axis(p, np.asarray(z_t)[..., None], stay[..., None], -1)
    assert (p >= 0).all()
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("case", GRAPHS)
def test_score_entropy(golden, case):
    data = golden("sedd_graph.npz")
    process, score, output = from_log_score(data, case)
    schedule, t = process.schedule, jnp.asarray(data["t"])[:, None]
    np.testing.assert_allclose(schedule.sigma(t)[:, 0], data[f"{case}__sigma"], rtol=1e-3)
    dsigma = data[f"{case}__dsigma"]
    np.testing.assert_allclose((-schedule.dalpha(t) / schedule.alpha(t))[:, 0], dsigma, rtol=1e-3)
    terms = score_noised(
        batch_of(data[f"{case}__x0"]),
        z_t=jnp.asarray(data[f"{case}__x"], jnp.int32),
        t=t,
        diffusion=Diffusion(
            process=process,
            parameterization=score,
            denoise=lambda inputs, *, key=None: DenseLogits(output),
        ),
    )
    theirs = data[f"{case}__score_entropy"]
    np.testing.assert_allclose(terms.values / dsigma[:, None], theirs, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(terms.values.sum(-1), data[f"{case}__loss"], rtol=1e-3)
    np.testing.assert_allclose(terms.total, data[f"{case}__loss"].sum(), rtol=1e-3)


@pytest.mark.parametrize("case", GRAPHS)
def test_rates_and_steps(golden, case):
    data = golden("sedd_graph.npz")
    process, x, t, log_score = scores(data, case)
    s = t - jnp.float32(data["step_size"])
    euler = Euler().weights(log_score, x, t, s, process=process)
    close(normalised(euler, x), data[f"{case}__euler_probs"])
    # Jumps of Euler are dt sigma' times the rates of their graph.
    rate = data[f"{case}__reverse_rate"].copy()
    np.put_along_axis(rate, np.asarray(x)[..., None], 0.0, -1)
    scale = float(data["step_size"]) * data[f"{case}__dsigma"][:, None, None]
    d = rate.shape[-1]
    np.testing.assert_allclose(euler[0][..., :d], scale * rate, rtol=1e-3, atol=1e-7)
    tweedie = tweedie_weights(log_score, x, t, s, process=process)
    close(normalised(tweedie, x), data[f"{case}__analytic_probs"])


@pytest.mark.parametrize("case", GRAPHS)
def test_all_noise_undone(golden, case):
    data = golden("sedd_graph.npz")
    process, x, t, log_score = scores(data, case)
    # Staggered by all of sigma and weighed by the transition, with their sign.
    undone = data[f"{case}__staggered_score"] * data[f"{case}__transp_transition"]
    if case.startswith("absorb"):
        undone = undone[..., :TOKENS]
    close(normalised(clean_weights(log_score, x, t, process=process), x), undone)
    first = jnp.full((3, 1), 1e-5)  # their denoiser's time, with the same score
    stored = jnp.asarray(data[f"{case}__log_score"])
    if case.startswith("uniform"):
        stored = jnp.pad(stored, ((0, 0), (0, 0), (0, 1)), constant_values=-jnp.inf)
    weights = clean_weights(stored, x, first, process=process)
    close(normalised(weights, x), data[f"{case}__denoiser_probs"])


@pytest.mark.parametrize("noise", SCHEDULES)
def test_uniform_transition(golden, noise):
    data = golden("sedd_graph.npz")
    process, *_ = from_log_score(data, f"uniform_{noise}")
    start = jnp.asarray(data[f"uniform_{noise}__x"])[..., None]  # theirs starts at the noised one
    t = jnp.asarray(data["t"])[:, None, None]
    column = jnp.arange(TOKENS)[None, None]
    ours = process.probability(*jnp.broadcast_arrays(column, start, t))
    np.testing.assert_allclose(ours, data[f"uniform_{noise}__transition"], rtol=1e-3, atol=1e-7)


def test_log_score_of_the_mdlm_repository(golden):
    data = golden("mdlm_dit.npz")
    score = Score(mask_id=66, vocab_size=67)
    ours = score.log_score(
        jnp.asarray(data["logits_time"]),
        jnp.asarray(data["x"], jnp.int32),
        jnp.asarray(data["sigma"])[:, None],
    )
    np.testing.assert_allclose(ours, data["sedd_logscore_time_last"], rtol=1e-6, atol=3e-5)


@pytest.mark.parametrize("case", ["sedd", "sedd_mid", "sedd_geometric"])
def test_losses_of_the_mdlm_repository(golden, case):
    data = golden("mdlm_losses.npz")
    mask_id = golden("mdlm_losses.json")[case]["mask_index"]
    schedule = SCHEDULES["geometric" if "geometric" in case else "loglinear"]
    t = jnp.asarray(data[f"{case}__t_sampled"])[:, None]
    np.testing.assert_allclose(schedule.one_minus_alpha(t), data[f"{case}__move_chance"], rtol=2e-4)
    terms = score_noised(
        batch_of(data["x0"], data["attention_mask"] > 0),
        z_t=jnp.asarray(data["xt_mid" if "mid" in case else "xt_last"], jnp.int32),
        t=t,
        diffusion=Diffusion(
            process=Masked(schedule=schedule, mask_id=mask_id),
            parameterization=Score(mask_id=mask_id, vocab_size=67),
            denoise=lambda inputs, *, key=None: DenseLogits(jnp.asarray(data[f"{case}__logits"])),
        ),
    )
    rtol = 2e-4 if "geometric" in case else 1e-4
    np.testing.assert_allclose(terms.values, data[f"{case}__nlls"], rtol=rtol, atol=1e-4)
    total = terms.total / terms.count.sum()
    np.testing.assert_allclose(total, data[f"{case}__loss"], rtol=rtol)


@pytest.mark.parametrize(("case", "eps"), [("base_sedd", 0.0), ("base_sedd_lossscale", 1e-3)])
def test_losses_of_the_bd3lm_repository(golden, case, eps):
    data = golden("bd3lm.npz")
    schedule, t = LogLinear(eps=eps), jnp.asarray(data["base__t"])  # the same along each row
    np.testing.assert_allclose(schedule.sigma(t)[:, 0], data[f"{case}__cond"], rtol=1e-5)
    terms = score_noised(
        batch_of(data["x0"]),
        z_t=jnp.asarray(data[f"{case}__xt"], jnp.int32),
        t=t,
        diffusion=Diffusion(
            process=Masked(schedule=schedule, mask_id=66),
            parameterization=Score(mask_id=66, vocab_size=67),
            denoise=lambda inputs, *, key=None: DenseLogits(jnp.asarray(data[f"{case}__logits"])),
        ),
    )
    np.testing.assert_allclose(terms.values, data[f"{case}__nlls"], rtol=1e-5, atol=1e-6)
    total = terms.total / terms.count.sum()
    np.testing.assert_allclose(total, data[f"{case}__loss"], rtol=1e-5)


def test_times_are_the_published_ones(golden):
    data = golden("mdlm_losses.npz")
    u = jnp.asarray(data["sample_t_u"])
    np.testing.assert_allclose(
        restrict(u, ScoreEntropy().t_min), data["sample_t_antithetic0"], rtol=1e-6
    )


@pytest.mark.parametrize("last", [False, True])
def test_steps_of_the_mdlm_repository(golden, last):
    data = golden("mdlm_samplers.npz")
    process = Masked(schedule=LogLinear(), mask_id=66)
    x = jnp.asarray(data["x"], jnp.int32)
    t = jnp.asarray(data["denoiser_t" if last else "t"])
    name = "denoiser_" if last else ""
    log_score = Score(mask_id=66, vocab_size=67).log_score(
        jnp.asarray(data[f"sedd__{name}logits"]), x, process.schedule.sigma(t)
    )
    if last:
        weights = clean_weights(log_score, x, t, process=process)
    else:
        np.testing.assert_allclose(jnp.exp(log_score), data["sedd__score"], rtol=1e-4)
        weights = tweedie_weights(log_score, x, t, t - jnp.float32(data["dt"]), process=process)
    theirs = data["sedd__denoiser_probs" if last else "sedd__analytic_probs"]
    close(normalised(weights, x), theirs, rtol=2e-3 if last else 1e-4)


def test_trajectory_of_the_mdlm_repository(golden):
    """A whole run of the analytic sampler; the draw alone is theirs, an exponential race."""
    data = golden("mdlm_trajectories.npz")
    states = data["analytic_sedd__states"]
    steps, eps = len(states), float(data["eps"])
    network = DiT(width=64, depth=2, heads=4, cond_dim=32, dtype="float32")
    process = Masked(schedule=LogLinear(), mask_id=66)
    score = Score(mask_id=66, vocab_size=67)
    params = params_from(golden("mdlm_dit.safetensors"), network, 67)
    denoise = denoiser(network, 67, params, condition=process.schedule.sigma)
    times = jnp.asarray(np.linspace(1, eps, steps + 1), jnp.float32)
    dt = (1 - eps) / steps

    @jax.jit
    def race(z, t, u, is_last):
        logits = denoise(NetInput(tokens=z, t=t)).logits()
        log_score = score.log_score(logits, z, process.schedule.sigma(t))
        others, stay = jax.lax.cond(
            is_last,
            lambda: clean_weights(log_score, z, t, process=process),
            lambda: tweedie_weights(log_score, z, t, t - dt, process=process),
        )
        is_own = jnp.arange(67)[None, None] == z[..., None]
        p = jnp.where(is_own, stay[..., None], others)
        return jnp.argmax(p / (1e-10 - jnp.log(u + 1e-10)), axis=-1)

    z = process.prior(jax.random.split(jax.random.key(0), 2), 32)
    for i in range(steps):
        z = race(z, jnp.full((2, 1), times[i]), jnp.asarray(data["u"][i]), False)
        np.testing.assert_array_equal(z, states[i])
    z = race(z, jnp.full((2, 1), times[-1]), jnp.asarray(data["u"][steps]), True)
    np.testing.assert_array_equal(z, data["analytic_sedd__final"])
