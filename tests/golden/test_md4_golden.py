"""MD4's losses and sampler, from the values that its public project computes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.objectives.base import score_masked
from mdlm.objectives.discrete_time import DiscreteNelbo
from mdlm.objectives.nelbo import Nelbo
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.ancestral import Ancestral, RevealState
from mdlm.samplers.logits.filters import keep_top_p
from mdlm.schedules.md4 import OneMinusSine, Polynomial
from mdlm.times import Antithetic, cosine_grid, uniform_grid
from mdlm.types import Batch, DenseLogits

pytestmark = pytest.mark.golden

EPS, MASK, LENGTH = 1e-4, 27, 12
SCHEDULES = {"linear": Polynomial(power=1, eps=EPS), "cosine": OneMinusSine(eps=EPS)} | {
    f"poly{power}": Polynomial(power=power, eps=EPS) for power in (0.5, 1, 2, 3, 5)
}
CLOSE = dict(rtol=1e-4, atol=1e-6)
SUBS = Subs(mask_id=MASK, vocab_size=MASK + 1)
OBJECTIVES = {"cont": Nelbo(t_min=1e-6)} | {
    f"T{T}": DiscreteNelbo(steps=T) for T in (1, 4, 50, 1000)
}
DRAWN = ("linear", "cosine", "poly3")


def masked(name):
    return Masked(schedule=SCHEDULES[name], mask_id=MASK)


def batch(x_0):
    b = len(x_0)
    loss_mask = jnp.ones(x_0.shape, bool)
    return Batch(
        tokens=jnp.asarray(x_0), loss_mask=loss_mask, row=jnp.arange(b), rows=jnp.asarray(b)
    )


def score(x_0, z_t, t, weight, logits, name):
    return score_masked(
        batch(x_0),
        z_t=jnp.asarray(z_t),
        t=t,
        weight=weight,
        diffusion=Diffusion(
            process=masked(name),
            parameterization=SUBS,
            denoise=lambda inputs, *, key=None: DenseLogits(logits),
        ),
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_losses(golden, name, objective):
    data = golden("md4_losses.npz")
    t = jnp.asarray(data["t"], jnp.float32)[:, None]
    times, weight = OBJECTIVES[objective].times_and_weights(SCHEDULES[name], t)
    case = f"{name}/{objective}/"
    np.testing.assert_allclose(times[:, 0], data[case + "t_used"], rtol=1e-6)

    def total(logits):
        terms = score(data["x0"], data["zt"], times, weight, logits, name)
        return terms.total, terms.values

    logits = jnp.asarray(data["logits"])
    (_, values), gradient = jax.value_and_grad(total, has_aux=True)(logits)
    np.testing.assert_allclose(values, data[case + "loss_diff_per_token"], **CLOSE)
    np.testing.assert_allclose(values.sum(-1), data[case + "loss_diff"], **CLOSE)
    if case + "grad_logits" in data:
        np.testing.assert_allclose(gradient, data[case + "grad_logits"], **CLOSE)
    else:
        assert objective in ("T1", "T4", "T50")


@pytest.mark.parametrize("name", SCHEDULES)
def test_reconstruction(golden, name):
    """MD4 charges a token that is masked at t = 0 with log V, whatever the network says of it.

    Ours charges what the network says, at t_min: the same number for a network that knows nothing.
    """
    data = golden("md4_losses.npz")
    objective = Nelbo(t_min=1e-9)
    t, weight = objective.times_and_weights(SCHEDULES[name], jnp.zeros((1, 1)))
    # Drawn with probability t_min, the weight of a reconstruction is 1 / t_min.
    share = float(weight[0, 0]) * objective.t_min
    x_0 = data["x0"][:1]

    def expected(logits):
        all_masked = np.full_like(x_0, MASK)
        terms = score(x_0, all_masked, t, jnp.ones((1, 1)), logits, name)
        return share * float(SCHEDULES[name].one_minus_alpha(jnp.zeros(()))) * terms.bound.sum()

    published = float(data[f"{name}/recon_loss"])
    assert published == pytest.approx(LENGTH * EPS * math.log(MASK), rel=1e-9)
    assert float(expected(jnp.zeros((1, LENGTH, MASK)))) == pytest.approx(published, rel=1e-5)
    knowing = 3 * jax.nn.one_hot(jnp.asarray(x_0), MASK)
    assert float(expected(knowing)) < 0.5 * published


@pytest.mark.parametrize("name", SCHEDULES)
def test_prior(golden, name):
    """Nobody charges for the share eps of tokens that can be read at t = 1: MD4 calls that 0."""
    assert golden("md4_losses.npz")[f"{name}/prior_loss"] == 0
    assert SCHEDULES[name].alpha(jnp.ones(())) == np.float32(EPS)


@pytest.mark.parametrize("objective", ["cont", "T1000"])
@pytest.mark.parametrize("name", DRAWN)
def test_whole_losses_are_bits_per_token(golden, name, objective):
    data = golden("md4_losses.npz")
    for times in ("antithetic", "iid"):
        case = f"call/{name}/{objective}/{times}/"
        total = sum(data[case + f"loss_{part}"] for part in ("diff", "prior", "recon"))
        assert total == pytest.approx(float(data[case + "loss"]), rel=1e-9)
        in_bits = data[f"{name}/recon_loss"] / (LENGTH * math.log(2))
        assert in_bits == pytest.approx(float(data[case + "loss_recon"]), rel=1e-9)


@pytest.mark.parametrize("name", DRAWN)
def test_antithetic_times(golden, key, name):
    theirs = golden("md4_losses.npz")[f"call/{name}/cont/antithetic/t"]
    rows = len(theirs)
    ours = np.asarray(Antithetic().sample(key, jnp.arange(rows), jnp.int32(rows)), np.float64)
    moved = (ours - ours[0] + theirs[0]) % 1  # on to their offset
    np.testing.assert_allclose(moved, theirs, atol=2e-7)


SAMPLED = [(name, grid) for name in ("linear", "cosine", "poly2") for grid in ("uniform", "cosine")]
GRIDS = {"uniform": uniform_grid, "cosine": cosine_grid}
INDICES, STEPS = (0, 1, 8, 15), 16


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [8, 256, 1000])
def test_grids(golden, grid, steps):
    data, times = golden("md4_samplers.npz"), GRIDS[grid](steps)
    # Their t - 1 / T and cos(pi / 2) are not quite 0 at the last step; ours are.
    np.testing.assert_allclose(times[:-1], data[f"grid/{grid}/T{steps}/t"], rtol=1e-6)
    np.testing.assert_allclose(times[1:], data[f"grid/{grid}/T{steps}/s"], rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize(("name", "grid"), SAMPLED)
def test_unmask_probabilities(golden, name, grid):
    data, process, times = golden("md4_samplers.npz"), masked(name), GRIDS[grid](STEPS)
    case, t, s = f"{name}/{grid}/", times[:-1], times[1:]
    for quantity, ours in (
        ("alpha_t", process.schedule.alpha(t)),
        ("alpha_s", process.schedule.alpha(s)),
        ("unmask_prob", process.reveal_probability(t, s)),
    ):
        np.testing.assert_allclose(ours, data[case + quantity], rtol=1e-5, err_msg=quantity)


@pytest.mark.parametrize("top_p", [1.0, 0.98, 0.8, 0.3])
@pytest.mark.parametrize(("name", "grid"), SAMPLED)
def test_ancestral_probabilities(golden, name, grid, top_p):
    data, times = golden("md4_samplers.npz"), GRIDS[grid](STEPS)
    z_t = jnp.asarray(data["zt"])
    b, l = z_t.shape
    logits = jnp.pad(jnp.asarray(data["logits"]), ((0, 0), (0, 0), (0, 1)))  # a mask's column
    log_p0 = SUBS.log_p0(logits, z_t)
    kept = keep_top_p(log_p0.reshape(b * l, -1), top_p).reshape(log_p0.shape)
    # 1 - u is rounded as u is, by 6e-8. Their nucleus is cut and renormalised to 5e-4.
    close = dict(rtol=1e-5, atol=1e-7) if top_p == 1 else dict(rtol=5e-4, atol=1e-6)
    for i in INDICES:
        t, s = (jnp.full((b, 1), times[j]) for j in (i, i + 1))
        ours = masked(name).reverse_probabilities(kept, z_t, t, s)
        case = f"{name}/{grid}/i{i}/"
        kind = "ancestral_probs" if top_p == 1 else f"topp{top_p}_probs"
        is_masked = np.asarray(z_t) == MASK
        assert is_masked.any() and not is_masked.all()
        np.testing.assert_allclose(ours[is_masked], data[case + kind][is_masked], **close)
        carried = np.take_along_axis(np.asarray(ours), np.asarray(z_t)[..., None], -1)[..., 0]
        assert (carried[~is_masked] == 1).all()


def state(tokens, step):
    b = len(tokens)
    return RevealState(
        tokens=jnp.asarray(tokens),
        is_fixed=jnp.zeros(tokens.shape, bool),
        step=jnp.asarray(step),
        done=jnp.zeros(b, bool),
        keys=by_row(jax.random.key(3), jnp.arange(b)),
        nfe=jnp.asarray(0),
        confidence=jnp.zeros(tokens.shape),
        due=jnp.full(tokens.shape, step),
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_the_network_is_told_the_time_it_stands_at(golden, grid):
    data, told = golden("md4_samplers.npz"), []
    sampler = Ancestral(steps=STEPS, grid=grid)

    def denoise(inputs, *, key=None):
        jax.debug.callback(lambda t: told.append(float(t)), inputs.t[0, 0])
        return DenseLogits(jnp.zeros((*inputs.tokens.shape, MASK + 1)))

    tokens = np.full((1, 4), MASK, np.int32)
    diffusion = Diffusion(process=masked("linear"), parameterization=SUBS, denoise=denoise)
    step = jax.jit(lambda state: sampler.step(state, diffusion))
    for i in INDICES:
        step(state(tokens, i))
        jax.effects_barrier()
    reference = [float(data[f"linear/{grid}/i{i}/t_model"]) for i in INDICES]
    np.testing.assert_allclose(told, reference, rtol=1e-6)


def test_the_last_step_cleans_up(golden):
    data = golden("md4_samplers.npz")
    logits = jnp.pad(jnp.asarray(data["logits"]), ((0, 0), (0, 0), (0, 1)), constant_values=99.0)
    cleaned = Ancestral(steps=STEPS, last="argmax").step(
        state(data["zt"], STEPS),
        diffusion=Diffusion(
            process=masked("linear"),
            parameterization=SUBS,
            denoise=lambda inputs, *, key=None: DenseLogits(logits),
        ),
    )
    np.testing.assert_array_equal(cleaned.tokens, data["decode/out"])
    assert cleaned.done.all()


def test_the_prior_is_all_mask(golden, key):
    prior = golden("md4_samplers.npz")["prior_sample"]
    ours = masked("linear").prior(by_row(key, jnp.arange(2)), prior.shape[1])
    np.testing.assert_array_equal(ours, prior)
