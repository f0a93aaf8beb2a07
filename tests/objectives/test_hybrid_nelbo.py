"""Training weights of GIDD, and what its objective and the uniform one refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jaxtyping import TypeCheckError

from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.objectives.hybrid import HybridNelbo
from mdlm.objectives.interpolating import divergences, elbo_weight
from mdlm.objectives.uniform import UniformNelbo
from mdlm.parameterizations.mean import Mean
from mdlm.parameterizations.subs import Subs
from mdlm.processes.hybrid import Hybrid, HybridSchedule, LogSNRHybrid
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers.reverse import Reverse
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import Batch, DenseLogits, Vocab

VOCAB = Vocab(size=6, mask_id=2)
X_0 = jnp.array([[0, 1, 3, 4, 5, 0], [5, 5, 4, 4, 3, 3]])
Z_T = jnp.array([[0, 2, 4, 4, 2, 1], [5, 2, 4, 0, 0, 3]])


def terms(objective, process, logits, t=0.3):
    batch = Batch(
        tokens=X_0, loss_mask=jnp.ones(X_0.shape, bool), row=jnp.arange(2), rows=jnp.asarray(2)
    )
    return objective.score_noised(
        batch,
        z_t=Z_T,
        t=jnp.full((2, 1), t),
        is_last=jnp.zeros((2, 1), bool),
        diffusion=Diffusion(
            process=process.with_vocab(VOCAB),
            parameterization=Mean().with_vocab(VOCAB),
            denoise=lambda inputs, *, key=None: DenseLogits(logits),
        ),
    )


def logits(key):
    return jax.random.normal(key, (2, 6, 8))


def test_the_bound_is_the_same_whatever_is_trained(key):
    """`total` is the weighted loss; `bound` is that of the unweighted one."""
    output = logits(key)
    plain = terms(HybridNelbo(weights="elbo"), Hybrid(), output)
    np.testing.assert_array_equal(plain.values, plain.bound)
    for weights in ("clip", "dynamic_as_in_paper", "dynamic_as_in_code", "log_snr"):
        other = terms(HybridNelbo(weights=weights), Hybrid(), output)
        np.testing.assert_allclose(other.bound, plain.bound, rtol=1e-5)
        assert np.abs(other.values - plain.bound).max() > 0.1
        np.testing.assert_allclose(other.total, other.values.sum(), rtol=1e-5)


def test_dynamic_weights_of_the_paper():
    """2 at masks, 1 at replaced tokens, B / K exp(-lambda / 2) at the others."""
    process = Hybrid(schedule=HybridSchedule(p_uniform=0.2)).with_vocab(VOCAB)
    t = jnp.broadcast_to(jnp.array([0.01, 0.9])[:, None], X_0.shape)
    weight = HybridNelbo(max_weight=9.0).training_weight(process, Z_T, X_0, t)
    amplitude = 2 * 0.2 / 0.8
    for i, at in enumerate((0.01, 0.9)):
        c = amplitude * np.sqrt(at * (1 - at))
        same = amplitude / 5 * np.sqrt((at + c) / (1 - at))
        expected = np.where(Z_T[i] == 2, 2.0, np.where(Z_T[i] == X_0[i], same, 1.0))
        np.testing.assert_allclose(weight[i], expected, rtol=1e-5)
    limited = HybridNelbo(max_weight=0.5).training_weight(process, Z_T, X_0, t)
    np.testing.assert_allclose(limited, jnp.minimum(weight, 0.5), rtol=1e-6)


def test_log_snr_weights_do_not_depend_on_the_clock():
    """Nor on the schedule: they are the bound's, per unit of log-SNR."""
    process = Hybrid().with_vocab(VOCAB)
    t = jnp.full(X_0.shape, 0.3)
    weight = HybridNelbo(weights="log_snr", max_weight=1e3).training_weight(process, Z_T, X_0, t)
    with jax.enable_x64(True):
        snr = [float(process.schedule.log_snr(jnp.asarray(0.3 + h))) for h in (-1e-6, 1e-6)]
    expected = elbo_weight(process, Z_T, X_0, t) * 2e-6 / (snr[0] - snr[1])
    np.testing.assert_allclose(weight, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "process", [Uniform(), Hybrid(), LogSNRHybrid(), Hybrid(posterior="mixture")]
)
def test_divergences_near_the_ends_of_time(key, process):
    """Float32 against float64, weighted as in the bound; and a finite gradient."""
    process = process.with_vocab(VOCAB)
    z_t = jnp.where((Z_T == 2) & isinstance(process, Uniform), 1, Z_T).ravel()
    x_0 = X_0.ravel()

    def loss(output, t):
        log_p0 = jax.nn.log_softmax(
            jnp.where(process.is_token(jnp.arange(8))[None], output, -jnp.inf)
        )
        kl, divergence, _ = divergences(process, log_p0, z_t, x_0, t)
        return elbo_weight(process, z_t, x_0, t) * (kl + divergence)

    output = logits(key).reshape(12, 8)
    for t in (1e-4, 0.5, 1 - 1e-4, 1 - 2**-20):
        at = jnp.full(12, t, jnp.float32)
        ours = loss(output, at)
        with jax.enable_x64(True):
            exact = loss(jnp.asarray(output, jnp.float64), jnp.asarray(at, jnp.float64))
        np.testing.assert_allclose(ours, exact, rtol=2e-4, atol=2e-5)
        slope = jax.grad(lambda output, at=at: loss(output, at).sum())(output)
        assert jnp.isfinite(slope).all()
        assert (slope[:, [2, 6, 7]] == 0).all()


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: HybridNelbo(weights="none"), "none"),  # pyright: ignore[reportArgumentType]
        (lambda: HybridNelbo(max_weight=0.0), "max_weight=0.0"),
        (lambda: HybridNelbo(t_min=0.5), "t_min=0.5"),
        (lambda: UniformNelbo(t_min=0.0), "t_min=0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, value):
    with pytest.raises((ValueError, TypeCheckError), match=value):
        make()


@pytest.mark.parametrize(
    ("objective", "process", "parameterization", "reason"),
    [
        (UniformNelbo(), Masked(), Mean(), "process=Uniform"),
        (UniformNelbo(), Uniform(), Subs(), "parameterization=Mean"),
        (UniformNelbo(), Uniform(), Mean(mask_has_mass=True), "never the mask"),
        (HybridNelbo(), Uniform(), Mean(), "process=Hybrid.* or LogSNRHybrid"),
        (HybridNelbo(), Hybrid(), Subs(), "parameterization=Mean"),
        (HybridNelbo(), Hybrid(), Mean(mask_has_mass=True), "never the mask"),
        (HybridNelbo(), LogSNRHybrid(), Mean(), "dynamic weights"),
    ],
)
def test_combinations_are_refused(tmp_path, objective, process, parameterization, reason):
    def compose(objective, process, parameterization):
        return tiny.experiment(
            tmp_path / "text",
            process=process,
            parameterization=parameterization,
            objective=objective,
            sampler=Reverse(),
        )

    compose(UniformNelbo(), Uniform(schedule=LogLinear()), Mean())
    compose(HybridNelbo(weights="log_snr"), LogSNRHybrid(), Mean())
    with pytest.raises(InputError, match=reason):
        compose(objective, process, parameterization)
