"""Block diffusion against values of the public BD3-LM code, with its weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.interop.mdlm_torch import params_from
from mdlm.models.attention.mask import AttentionMask, Halves
from mdlm.models.block import BlockDiT
from mdlm.models.network import denoiser
from mdlm.objectives.base import score_masked
from mdlm.objectives.block import BlockNelbo, masked_within
from mdlm.objectives.clip_search import candidates, spread
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import LogLinear
from mdlm.times import stratify
from mdlm.types import Batch, DenseLogits, NetInput

pytestmark = pytest.mark.golden
COLUMNS, MASK, LENGTH = 67, 66, 32
INTERVALS = {"full": (1e-3, 1.0), "clip": (0.3, 0.8), "high": (0.6, 1.0)}
PROCESS = Masked(schedule=LogLinear(eps=0.0), mask_id=MASK)  # masks with probability t
SUBS = Subs(mask_id=MASK, vocab_size=COLUMNS)
sizes = pytest.mark.parametrize("block_size", [1, 4, 8, 16, 32])
intervals = pytest.mark.parametrize("interval", INTERVALS)


@pytest.fixture(scope="module")
def values(golden):
    return golden("bd3lm.npz")


def ask(golden, block_size, tokens, clean):
    network = BlockDiT(
        width=64, depth=2, heads=4, cond_dim=32, dtype="float32", block_size=block_size
    )
    params = params_from(golden("bd3lm.safetensors"), network, COLUMNS)
    tokens, clean = (jnp.asarray(x, jnp.int32) for x in (tokens, clean))
    return denoiser(network, COLUMNS, params)(NetInput(tokens=tokens, clean=clean)).logits()


def times(values, block_size, interval):
    t = jnp.asarray(values[f"bs{block_size}__{interval}__t"])
    return jnp.broadcast_to(t, (3, LENGTH))  # stored once for a row of one block


@sizes
def test_mask(values, block_size):
    whole = slice(0, 2 * LENGTH)
    seen = AttentionMask(halves=Halves(LENGTH, block_size)).dense(whole, whole)
    np.testing.assert_array_equal(seen[0, 0], values[f"bs{block_size}__attn_mask"])


@sizes
@intervals
def test_logits(golden, values, block_size, interval):
    logits = ask(golden, block_size, values[f"bs{block_size}__{interval}__xt"], values["x0"])
    expected = values[f"bs{block_size}__{interval}__logits"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=2e-5)


@sizes
@intervals
def test_times_and_noised_tokens(values, block_size, interval):
    """The reference numbers blocks row by row, and leaves the first token of each row clean."""
    u_t = jnp.asarray(values[f"bs{block_size}__u_t"])
    place = jnp.arange(u_t.size)
    u = stratify(u_t.reshape(-1), place, jnp.asarray(u_t.size)).reshape(u_t.shape)
    objective = BlockNelbo(block_size=block_size)
    u = jnp.repeat(u, block_size, axis=1)
    t, weight = objective.times_and_weights(PROCESS.schedule, u, *INTERVALS[interval])
    expected = times(values, block_size, interval)
    np.testing.assert_allclose(t, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weight, 1 / expected, rtol=1e-5)
    z_t = PROCESS.mask_where(
        jnp.asarray(values[f"bs{block_size}__u_q"]),
        jnp.asarray(values["x0"], jnp.int32),
        expected,
        jnp.broadcast_to(jnp.arange(LENGTH) > 0, (3, LENGTH)),
    )
    np.testing.assert_array_equal(z_t, values[f"bs{block_size}__{interval}__xt"])


def batch_of(x_0, loss_mask):
    return Batch(
        tokens=jnp.asarray(x_0, jnp.int32),
        loss_mask=jnp.asarray(loss_mask),
        row=jnp.arange(3),
        rows=jnp.asarray(3),
    )


@sizes
@intervals
def test_losses(values, block_size, interval):
    case = f"bs{block_size}__{interval}__"
    t = times(values, block_size, interval)
    # Above 0.5 the reference weighs by 1, and not by 1 / t.
    weight = jnp.ones_like(t) if interval == "high" else PROCESS.schedule.weight(t)
    scored = values[case + "eval_token_mask"] > 0
    for loss_mask, name in ((np.ones_like(scored), "loss"), (scored, "eval_loss")):
        terms = score_masked(
            batch_of(values["x0"], loss_mask),
            z_t=jnp.asarray(values[case + "xt"], jnp.int32),
            t=t,
            weight=weight,
            diffusion=Diffusion(
                process=PROCESS,
                parameterization=SUBS,
                denoise=lambda inputs, *, key=None: DenseLogits(
                    jnp.asarray(values[case + "logits"])
                ),
            ),
        )
        np.testing.assert_allclose(terms.values, values[case + "nlls"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(terms.total / terms.count.sum(), values[case + name], rtol=1e-5)


def test_one_token_to_a_block_is_the_exact_likelihood(golden, values, key):
    """The objective whole, with the network: nothing in it is drawn."""
    asked = []

    def denoise(inputs, *, key=None):
        asked.append(inputs)
        return DenseLogits(ask(golden, 1, inputs.tokens, inputs.clean))

    terms = BlockNelbo(block_size=1, low=1.0, high=1.0, first_is_given=True)(
        key,
        batch_of(values["x0"], np.ones((3, LENGTH), bool)),
        diffusion=Diffusion(process=PROCESS, parameterization=SUBS, denoise=denoise),
    )
    np.testing.assert_array_equal(asked[0].tokens, values["bs1__nll__xt"])
    np.testing.assert_allclose(terms.bound, values["bs1__nll__nlls"], rtol=1e-4, atol=1e-4)
    mean = terms.bound.sum() / terms.count.sum()
    np.testing.assert_allclose(mean, values["bs1__nll__loss"], rtol=1e-5)


@pytest.mark.parametrize(
    "block_size, low, high", [(4, 0.45, 0.95), (8, 0.3, 0.8), (8, 0.001, 0.6), (8, 0.5, 1)]
)
def test_masks_are_drawn_again(values, block_size, low, high):
    """Draw by draw from the stored uniforms; only blocks that lie outside are drawn again."""
    case = f"resample_bs{block_size}_{low}_{high}__"
    u, t = jnp.asarray(values[case + "u"]), jnp.asarray(values[case + "t"])
    assert not (u == t[None]).any()  # where the first draw of the reference, u <= t, would differ
    z_t, draws = masked_within(
        lambda i: u[i],
        jnp.asarray(values["x0"], jnp.int32),
        t,
        PROCESS,
        block_size=block_size,
        low=0.0 if low == 0.001 else low,
        high=high,
        rounds=100,
    )
    assert int(draws) == int(values[case + "draws"])
    np.testing.assert_array_equal(z_t, values[case + "xt"])


def test_one_step_of_sampling(golden, values):
    x = values["sample_bs8__x"]

    def denoise(inputs, *, key=None):
        return DenseLogits(ask(golden, 8, inputs.tokens, inputs.clean))

    # As `BlockByBlock` asks.
    tokens = jnp.asarray(x, jnp.int32)
    diffusion = Diffusion(process=PROCESS, parameterization=SUBS, denoise=denoise)
    logits = diffusion.with_clean(tokens).denoise(NetInput(tokens=tokens)).logits()
    np.testing.assert_allclose(logits, values["sample_bs8__logits"], rtol=1e-5, atol=2e-5)
    z_t, t = jnp.asarray(x[:, -8:], jnp.int32), jnp.asarray(values["sample_bs8__t"])
    step = PROCESS.reverse_probabilities(
        SUBS.log_p0(logits[:, -8:], z_t), z_t, t, t - jnp.float32(values["sample_bs8__dt"])
    )
    # The stored distribution is that of a masked token wherever one is asked for; at "nucleus0.9"
    # it leaves out the token that crosses p, which ours keeps (see `samplers.filters`).
    masked = np.asarray(z_t) == MASK
    assert masked.sum() == 7
    expected = values["sample_bs8__nucleus1.0__q_xs"]
    np.testing.assert_allclose(step[masked], expected[masked], rtol=1e-4, atol=1e-6)


def test_clip_search(golden, values):
    nlls = values["clipvar__nlls"]
    ours = sum(spread(batch, np.ones_like(batch), 8) for batch in nlls)
    np.testing.assert_allclose(ours, values["clipvar__value_bs8"], rtol=1e-5)
    grid = golden("bd3lm_clip_grid.json")
    for block_size, name in ((8, "block_size_gt_1"), (1, "block_size_1")):
        np.testing.assert_allclose(candidates(block_size), grid[name], atol=1e-6)
