"""GenMD4's schedule, loss, estimator and transition against the public MD4 project's values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.objectives.generalized import GeneralizedNelbo, Moment, log_q_of
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.per_token import LearnedPolynomial
from mdlm.types import Batch, DenseLogits, Vocab

pytestmark = pytest.mark.golden

MASK, T_MIN = 27, 1e-3
PUBLISHED = GeneralizedNelbo(t_min=T_MIN, reconstruction="rates")


@pytest.fixture
def data(golden):
    return golden("genmd4.npz")


def padded(array, value=0.0):
    """The reference's networks and schedules have no entry for the mask, ours have."""
    array = np.asarray(array)
    return np.concatenate([array, np.full((*array.shape[:-1], 1), value, array.dtype)], -1)


def schedule_of(w):
    return LearnedPolynomial(eps=1e-4, vocab_size=len(w), w=jnp.asarray(w))


def scored(w, logits, x_0, z_t, t, mask=MASK, objective=PUBLISHED):
    """Loss terms of given noised rows `z_t` [b n l] with given logits [b n l v]."""
    b, n, l = z_t.shape
    t = jnp.asarray(t, jnp.float32)[:, None]
    batch = Batch(
        tokens=jnp.asarray(x_0),
        loss_mask=jnp.ones(x_0.shape, bool),
        row=jnp.arange(b),
        rows=jnp.asarray(b),
    )
    at = Moment(t=t, s=t, is_last=jnp.zeros_like(t, bool), scale=jnp.ones_like(t))
    process = Masked(schedule=schedule_of(w), mask_id=mask)
    terms = objective.score(
        batch,
        z_t=jnp.asarray(z_t),
        at=at,
        diffusion=Diffusion(
            process=process,
            parameterization=Subs(mask_id=mask, vocab_size=mask + 1),
            denoise=lambda inputs, *, key=None: DenseLogits(logits.reshape(b * n, l, -1)),
        ),
    )
    return terms, log_q_of(process, batch, jnp.asarray(z_t), t)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_schedule(data, precision):
    rtol = 1e-5 if precision == "float32" else 1e-9
    with jax.enable_x64(precision == "float64"):
        schedule = schedule_of(data["w"].astype(precision))
        np.testing.assert_allclose(schedule.powers, data["sched/power"], rtol)
        t = jnp.asarray(data["sched/t"], precision)[:, None]
        x_0 = jnp.arange(27)[None]
        t, x_0 = jnp.broadcast_arrays(t, x_0)
        for name, ours in (
            ("alpha", schedule.alpha(t, x_0)),
            ("dalpha", schedule.dalpha(t, x_0)),
            ("dgamma_times_alpha", -schedule.weight(t, x_0)),
            ("logsnr", schedule.log_snr(t, x_0)),
        ):
            atol = rtol if name == "logsnr" else 0.0  # it crosses 0
            np.testing.assert_allclose(ours, data[f"sched/{name}"], rtol, atol, err_msg=name)
            every = getattr(
                schedule.of_all(),
                {"dgamma_times_alpha": "weight", "logsnr": "log_snr"}.get(name, name),
            )(t)
            np.testing.assert_array_equal(np.abs(every), np.abs(ours))
        survives = schedule.alpha(
            jnp.broadcast_to(jnp.asarray(data["t"], precision)[:, None], (5, 10)),
            jnp.asarray(data["x0"]),
        )
        np.testing.assert_allclose(survives, data["fwd/unmask_prob"], rtol)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_initial_parameters(data, power, key):
    schedule = LearnedPolynomial(power=power).with_vocab(Vocab(size=5, mask_id=4))
    w = schedule.init(key)["w"]
    np.testing.assert_allclose(w, np.full(5, data[f"sched/w_init_power{power}"]), rtol=1e-6)
    np.testing.assert_allclose(schedule.bind({"w": w}).powers, np.full(5, power), rtol=1e-6)


@pytest.mark.parametrize("copy", [1, 2])
def test_loss_of_one_copy(data, copy):
    w = jnp.asarray(padded(data["w"]), jnp.float32)
    logits = jnp.asarray(padded(data[f"logits_{copy}"]))[:, None]
    z_t = data[f"zt_{copy}"][:, None]
    by_rates = PUBLISHED.by_rates(
        Masked(schedule=schedule_of(w), mask_id=MASK), jnp.asarray(data["x0"])
    )
    np.testing.assert_allclose(by_rates, data["loss/recon_per_token"], rtol=1e-4)
    np.testing.assert_allclose(by_rates.sum(1), data["loss/recon"], rtol=1e-4)

    def values(w, logits):
        terms, _ = scored(w, logits, data["x0"], z_t, data["t"])
        return terms.total, terms.values

    diffusion = values(w, logits)[1] - by_rates
    expected = data[f"loss/diff_{copy}_per_token"]
    # The reconstruction, up to 0.05 in float32, has been taken off again.
    np.testing.assert_allclose(diffusion, expected, rtol=1e-4, atol=1e-6)
    if copy == 1:
        slope = jax.grad(lambda a: values(w, a)[0])(logits)[:, 0]
        np.testing.assert_allclose(
            slope[..., :MASK], data["grad_logits/diff_1"], rtol=1e-4, atol=1e-4
        )
        assert (slope[..., MASK] == 0).all()


def test_gradients_in_the_powers_by_row(data):
    """Pathwise gradients of either copy and the reconstruction, and the score function's."""
    w = jnp.asarray(padded(data["w"]), jnp.float32)
    logits = jnp.asarray(padded(np.stack([data["logits_1"], data["logits_2"]], 1)))
    z_t = np.stack([data["zt_1"], data["zt_2"]], 1)

    @functools.partial(jax.jit, static_argnames="copies")
    def gradients(w, copies):
        kept = slice(copies[0], copies[-1] + 1)

        def of_rows(w_by_row):
            total = 0.0
            for row in range(5):
                one = slice(row, row + 1)
                terms, _ = scored(
                    w_by_row[row],
                    logits[one, kept],
                    data["x0"][one],
                    z_t[one, kept],
                    data["t"][one],
                    objective=GeneralizedNelbo(t_min=T_MIN),
                )
                total += terms.total
            return total

        return jax.grad(of_rows)(jnp.tile(w, (5, 1)))[:, :MASK]

    alone = [gradients(w, (i,)) for i in (0, 1)]
    for i in (0, 1):
        np.testing.assert_allclose(alone[i], data[f"grad_w/diff_{i + 1}"], rtol=1e-4, atol=1e-4)
    score = gradients(w, (0, 1)) - (alone[0] + alone[1]) / 2
    np.testing.assert_allclose(score, data["grad_w/reinforce"], rtol=1e-4, atol=1e-4)

    def reconstruction(w, x_0):
        process = Masked(schedule=schedule_of(w), mask_id=MASK)
        return PUBLISHED.by_rates(process, x_0[None]).sum()

    recon = jax.vmap(jax.grad(reconstruction), (None, 0))(w, jnp.asarray(data["x0"]))
    np.testing.assert_allclose(recon[:, :MASK], data["grad_w/recon"], rtol=1e-4, atol=1e-6)
    assert (recon[:, MASK] == 0).all()


def test_total_is_the_bound_with_the_surrogate_s_gradient(data):
    w = jnp.asarray(padded(data["w"]), jnp.float32)
    twice = lambda name: np.stack([data[f"{name}_1"], data[f"{name}_2"]], 1)
    logits, z_t = jnp.asarray(padded(twice("logits"))), twice("zt")

    def total(w):
        terms, log_q = scored(w, logits, data["x0"], z_t, data["t"])
        return terms.total / 5, (terms.bound, log_q)

    (value, (bound, log_q)), slope = jax.value_and_grad(total, has_aux=True)(w)
    np.testing.assert_allclose(value, data["loss/nelbo_total"], rtol=1e-5)
    np.testing.assert_allclose(bound.sum() / 5, data["loss/nelbo_total"], rtol=1e-5)
    expected = data["grad_w/surrogate_total"]
    assert np.abs(expected - data["grad_w/nelbo_total_pathwise"]).max() > 1
    np.testing.assert_allclose(slope[:MASK], expected, rtol=1e-4, atol=1e-3)
    assert slope[MASK] == 0
    # The reference's surrogate has the value, too, of which ours leaves the bound alone.
    gap = data["loss/diff_1"] - data["loss/diff_2"]
    reinforce = gap * (log_q[:, 0] - log_q[:, 1]) / 2
    np.testing.assert_allclose(reinforce, data["loss/reinforce"], rtol=1e-5)


def test_reported_numbers_of_a_whole_evaluation(data):
    """In bits per token; the rest of it is of a network that is not stored."""
    w = jnp.asarray(padded(data["w"]), jnp.float32)
    process = Masked(schedule=schedule_of(w), mask_id=MASK)
    bits = PUBLISHED.by_rates(process, jnp.asarray(data["x0"])).mean() / np.log(2)
    np.testing.assert_allclose(bits, data["call/loss_recon"], rtol=1e-5)
    figures = schedule_of(w[:MASK]).figures()
    for name in ("min", "max"):
        np.testing.assert_allclose(figures[f"power_{name}"], data[f"call/power_{name}"], rtol=1e-6)
    np.testing.assert_allclose(figures["power_mean"], data["call/power_avg"], rtol=1e-6)


def test_equal_powers_are_md4(data):
    start = float(
        LearnedPolynomial().with_vocab(Vocab(size=2, mask_id=1)).init(jax.random.key(0))["w"][0]
    )
    w = jnp.full(MASK + 1, start)
    terms, _ = scored(
        w,
        jnp.asarray(padded(data["logits_1"]))[:, None],
        data["x0"],
        data["zt_1"][:, None],
        data["t"],
        objective=GeneralizedNelbo(t_min=T_MIN),
    )
    np.testing.assert_allclose(terms.bound.sum(1), data["md4_reduction/diff_1_power1"], rtol=1e-5)


def test_expected_gradient_is_the_exact_one(data):
    """Over all pairs of the four maskings of two tokens, weighed by their probability."""
    w = jnp.asarray(padded(data["enum/w"]), jnp.float32)
    x_0, masks, q = data["enum/x0"], data["enum/masks"] > 0, data["enum/q"]
    logits = jnp.asarray(padded(data["enum/logits"]))[:, 0]
    z = np.where(masks, 3, x_0).astype(np.int32)
    bare = GeneralizedNelbo(t_min=T_MIN)

    @jax.jit
    def of_pair(i, j):
        def total(w):
            pair = jnp.stack([i, j])
            terms, log_q = scored(
                w, logits[pair][None], x_0, jnp.asarray(z)[pair][None], data["enum/t"], 3, bare
            )
            return terms.total, (terms.bound.sum(), log_q[0, 0])

        slope, rest = jax.grad(total, has_aux=True)(w)
        return slope[:3], *rest

    pairs = [[jax.device_get(of_pair(i, j)) for j in range(4)] for i in range(4)]
    slopes = np.array([[pair[0] for pair in row] for row in pairs], np.float64)
    np.testing.assert_allclose(slopes, data["enum/pair_grad_w"], rtol=1e-4, atol=1e-4)
    f = np.array([pairs[i][i][1] for i in range(4)])
    np.testing.assert_allclose(f, data["enum/f"], rtol=1e-5)
    np.testing.assert_allclose(np.exp([pairs[i][0][2] for i in range(4)]), q, rtol=1e-5)
    np.testing.assert_allclose((q * f).sum(), data["enum/exact_value"], rtol=1e-5)
    mean = np.einsum("i,j,ijk->k", q, q, slopes)
    np.testing.assert_allclose(mean, data["enum/exact_grad_w"], rtol=1e-4)
    np.testing.assert_allclose(mean, data["enum/mean_pair_grad_w"], rtol=1e-4)


def test_transition(data):
    w = jnp.asarray(padded(data["w"]), jnp.float32)
    process = Masked(schedule=schedule_of(w), mask_id=MASK)
    s, t = (jnp.asarray(data[f"sample/{name}"], jnp.float32)[:, None] for name in "st")
    token = jnp.broadcast_to(jnp.arange(MASK)[None], (3, MASK))
    each = [jnp.broadcast_to(a, token.shape) for a in (t, s)]
    np.testing.assert_allclose(
        process.reveal_probability(*each, token), data["sample/unmask_prob_per_token"], rtol=1e-5
    )
    log_p0 = Subs(mask_id=MASK, vocab_size=MASK + 1).log_p0(
        jnp.broadcast_to(jnp.asarray(padded(data["sample/logits"])), (3, 10, MASK + 1)),
        jnp.full((3, 10), MASK),
    )
    ours = process.reverse_probabilities(log_p0, jnp.full((3, 10), MASK), t, s)
    np.testing.assert_allclose(ours, data["sample/probs_if_masked"], rtol=1e-5)
