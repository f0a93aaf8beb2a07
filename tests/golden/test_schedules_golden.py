"""Schedules and times against the values that the public MDLM and MD4 projects compute."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.schedules.change_of_variables import ChangeOfVariables
from mdlm.schedules.closed_form import Cosine, CosineSquared, Geometric, LinearSigma, LogLinear
from mdlm.schedules.md4 import OneMinusSine, Polynomial
from mdlm.times import restrict, stratify

pytestmark = pytest.mark.golden

MDLM = {
    "loglinear": LogLinear(),
    "cosine": Cosine(),
    "cosinesqr": CosineSquared(),
    "linear_default": LinearSigma(sigma_min=0.0, sigma_max=10.0),
    "linear_config": LinearSigma(),
    "geometric_default": Geometric(sigma_min=1e-3, sigma_max=1.0),
    "geometric_config": Geometric(),
}
MD4 = {
    "linear": lambda eps: Polynomial(power=1, eps=eps),
    "cosine": lambda eps: OneMinusSine(eps=eps),
} | {f"poly{p}": lambda eps, p=p: Polynomial(power=p, eps=eps) for p in (0.5, 1, 2, 3, 5)}
CLOCKED = {name: MDLM[name] for name in ("loglinear", "linear_config")}


@pytest.mark.parametrize("name", MDLM)
def test_mdlm_schedules(golden, name):
    arrays, schedule = golden("mdlm_schedules.npz"), MDLM[name]
    sigma, dsigma, noised = (
        arrays[f"{name}__{quantity}__f64"].astype(np.float64)
        for quantity in ("sigma", "dsigma", "move_chance")
    )
    # The reference keeps sigma_min and sigma_max in float32, even where it computes in float64.
    rtol = 1e-7 if isinstance(schedule, LinearSigma | Geometric) else 1e-9
    with jax.enable_x64(True):
        t = jnp.asarray(arrays["t"])
        # Its own 1 - exp(-sigma) and -log cancel near t = 0, to about 1e-16.
        np.testing.assert_allclose(schedule.sigma(t), sigma, rtol=rtol, atol=3e-16)
        np.testing.assert_allclose(schedule.one_minus_alpha(t), noised, rtol=rtol, atol=3e-16)
        np.testing.assert_allclose(schedule.alpha(t), np.exp(-sigma), rtol=5 * rtol)
        rate = dsigma * np.exp(-sigma)
        np.testing.assert_allclose(-schedule.dalpha(t), rate, rtol=5 * rtol, atol=1e-15)


@pytest.mark.parametrize("name", MDLM)
def test_mdlm_loss_weights(golden, name):
    arrays, schedule = golden("mdlm_schedules.npz"), MDLM[name]
    weight = arrays[f"{name}__subs_weight"].astype(np.float64)
    # In float32 the reference's cosines lose 1 - alpha where it is small, down to a weight of inf,
    # and its sin(pi) is not 0.
    is_sharp = arrays[f"{name}__move_chance__f64"] > (1e-3 if name.startswith("cosine") else 0)
    assert is_sharp.sum() >= 13
    with jax.enable_x64(True):
        ours = np.asarray(schedule.weight(jnp.asarray(arrays["t"])))
    np.testing.assert_allclose(ours[is_sharp], weight[is_sharp], rtol=2e-4, atol=2e-7)


@pytest.mark.parametrize("name", CLOCKED)
def test_mdlm_change_of_variables(golden, name):
    arrays = golden("mdlm_schedules.npz")
    coefficient = float(arrays[f"{name}__cov_loss_coef"])
    ours = ChangeOfVariables(base=CLOCKED[name], sigma_min=float(arrays[f"{name}__sigma_min"]))
    # The reference's coefficient is our weight without f_1 = log(1 - alpha(1)); its float32
    # 1 - exp(-0.001) is 1e-5 off, and so is everything that it makes of it.
    f_1 = math.log1p(-math.exp(-float(arrays[f"{name}__sigma_max"])))
    weight = float(ours.weight(jnp.ones(())))
    np.testing.assert_allclose(weight - f_1, -coefficient, atol=1.1e-5)
    t = jnp.asarray(arrays["t"], jnp.float32)
    moved = arrays[f"{name}__cov_move_chance"]
    np.testing.assert_allclose(ours.one_minus_alpha(t), moved, rtol=1.1e-5)
    same_start = start_from(CLOCKED[name], coefficient)
    np.testing.assert_allclose(same_start.one_minus_alpha(t), moved, rtol=2e-6)
    there = arrays[f"{name}__importance_t"]
    np.testing.assert_allclose(same_start.base_time(t), there, rtol=1e-5, atol=2e-9)


def start_from(base, log_noised):
    """The clock that starts at the given log(1 - alpha)."""
    return ChangeOfVariables(base=base, sigma_min=-math.log1p(-math.exp(log_noised)))


def test_mdlm_training_times(golden):
    arrays = golden("mdlm_losses.npz")
    u = jnp.asarray(arrays["sample_t_u"])
    independent = restrict(u, 1e-3)
    np.testing.assert_allclose(independent, arrays["sample_t_antithetic0"], rtol=1e-6)
    stratified = restrict(stratify(u, jnp.arange(8), jnp.int32(8)), 1e-3)
    np.testing.assert_allclose(stratified, arrays["sample_t_antithetic1"], rtol=1e-6)
    coefficient = float(golden("mdlm_schedules.npz")["loglinear__cov_loss_coef"])
    there = start_from(LogLinear(), coefficient).base_time(stratified)
    np.testing.assert_allclose(there, arrays["sample_t_importance"], rtol=2e-6)


@pytest.mark.parametrize(
    ("case", "schedule"),
    [
        ("subs_ct", LogLinear()),
        ("subs_ct_linear", LinearSigma()),
        ("subs_ct_cosine", Cosine()),
        ("subs_ct_geometric", Geometric()),
        ("subs_cov", start_from(LogLinear(), -6.908245)),
        ("subs_cov_linear", start_from(LinearSigma(), -6.908245)),
    ],
)
def test_mdlm_masking_probabilities(golden, case, schedule):
    arrays = golden("mdlm_losses.npz")
    noised = schedule.one_minus_alpha(jnp.asarray(arrays["t"]))
    # 1 - exp(-sigma) in the reference's float32 is 6e-8 off absolutely.
    reference = arrays[f"{case}__move_chance"][:, 0]
    np.testing.assert_allclose(noised, reference, rtol=2e-6, atol=6e-8)


@pytest.mark.parametrize(("case", "name"), [("is", "loglinear"), ("is_linear", "linear_config")])
def test_mdlm_importance_times(golden, case, name):
    arrays = golden("mdlm_losses.npz")
    there = start_from(MDLM[name], -6.908245).base_time(jnp.asarray(arrays["t"]))
    np.testing.assert_allclose(there, arrays[f"subs_{case}__t_sampled"], rtol=1e-5)


@pytest.mark.parametrize("eps", [0.0001, 0.01])
@pytest.mark.parametrize("name", MD4)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_md4_schedules(golden, eps, name, precision):
    arrays, schedule = golden("md4_schedules.npz"), MD4[name](eps)
    rtol = 1e-5 if precision == "float32" else 1e-9
    with jax.enable_x64(precision == "float64"):
        t = jnp.asarray(arrays["t"], precision)
        for quantity, ours in (
            ("alpha", schedule.alpha(t)),
            ("dalpha", schedule.dalpha(t)),
            ("dgamma_times_alpha", -schedule.weight(t)),
            ("logsnr", schedule.log_snr(t)),
        ):
            reference = arrays[f"eps{eps}/{name}/{quantity}"]
            atol = rtol if quantity == "logsnr" else 0.0  # it crosses 0
            assert ours.dtype == precision
            np.testing.assert_allclose(ours, reference, rtol, atol, err_msg=quantity)
