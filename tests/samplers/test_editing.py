"""Token editing: written and rewritten by threshold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import LENGTH, MASK, PARTS, SYMBOLS, posterior, sample

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.editing import Editing
from mdlm.samplers.loop import generate
from mdlm.schedules.base import Schedule
from mdlm.types import DenseLogits


def table(*distributions):
    """A network: `distributions[number of masks in the row][i]` is that of position i."""
    padded = np.stack(
        [np.pad(np.log(p), ((0, 0), (0, 1)), constant_values=50.0) for p in distributions]
    )

    def denoise(inputs, *, key=None):
        masks = (inputs.tokens == MASK).sum(-1)
        return DenseLogits(jnp.asarray(padded)[masks])

    return denoise


def watched(denoise, sampler, *, length, tokens=None, is_fixed=None, key=None):
    """Tokens after each step of one row, and the samples."""
    seen = []

    def asked(inputs, *, key=None):
        jax.debug.callback(
            lambda z, t: seen.append((np.asarray(z)[0], float(t[0, 0]))), inputs.tokens, inputs.t
        )
        return denoise(inputs)

    tokens = np.zeros((1, length), np.int32) if tokens is None else np.array([tokens])
    is_fixed = np.zeros((1, length), bool) if is_fixed is None else np.array([is_fixed])
    samples = sample(
        jax.random.key(0) if key is None else key,
        1,
        sampler,
        tokens=tokens,
        is_fixed=is_fixed,
        denoise=asked,
    )
    jax.effects_barrier()
    return seen, np.asarray(samples.tokens)[0], int(samples.nfe)


SURE_0, SURE_1, UNSURE = [0.98, 0.01, 0.01], [0.01, 0.98, 0.01], [0.4, 0.35, 0.25]


def test_masks_are_written_and_tokens_edited():
    """Three masks: 0 and 1 are written; with one mask left, token 0 is edited; then it is still."""
    few = [SURE_1, SURE_1, UNSURE]
    denoise = table(few, few, few, [SURE_0, SURE_1, UNSURE])
    seen, tokens, nfe = watched(denoise, Editing(), length=3)
    states = [list(z) for z, _ in seen] + [list(tokens)]
    assert states == [[3, 3, 3], [0, 1, 3], [1, 1, 0], [1, 1, 0]]
    assert nfe == 3
    # Asked at alpha = the share of tokens, of one mask at least.
    np.testing.assert_allclose([t for _, t in seen], [1, 1 / 3, 1 / 3], rtol=1e-6)


@pytest.mark.slow
def test_time_is_told_as_the_share_of_open_positions_that_is_masked():
    p = [UNSURE] * 4
    seen, _, _ = watched(
        table(p, p, p, p, p),
        Editing(),
        length=4,
        tokens=[1, 0, 0, 0],
        is_fixed=[True, False, False, False],
    )
    np.testing.assert_allclose([t for _, t in seen], [1, 2 / 3, 1 / 3, 1 / 3], rtol=1e-6)


@pytest.mark.slow
def test_one_mask_at_least_is_written_in_each_step():
    order = [[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.2, 0.3, 0.5]]
    seen, tokens, nfe = watched(table(order, order, order, order), Editing(), length=3)
    states = [list(z) for z, _ in seen] + [list(tokens)]
    # Of equal ones the left one; the last call finds nothing to edit.
    assert states == [[3, 3, 3], [3, 1, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]]
    assert nfe == 4


@pytest.mark.slow
def test_thresholds_are_what_they_say():
    p = [[0.8, 0.1, 0.1], [0.85, 0.1, 0.05], [0.9, 0.05, 0.05]]
    first, _, _ = watched(table(p, p, p, p), Editing(write_above=0.84), length=3)
    assert list(first[1][0]) == [3, 0, 0]
    other = [[0.1, 0.8, 0.1], [0.1, 0.85, 0.05], [0.05, 0.9, 0.05]]
    sampler = Editing(write_above=0.0, edit_above=0.84)
    _, tokens, _ = watched(table(other, p, p, p), sampler, length=3)
    assert list(tokens) == [0, 1, 1]


@pytest.mark.slow
def test_edits_without_end_are_ended():
    """The network wants 1 where it sees 0, and 0 where it sees 1."""

    def denoise(inputs, *, key=None):
        wants = jnp.where(inputs.tokens == 0, 1, 0)
        return DenseLogits(10.0 * jax.nn.one_hot(wants, 4))

    for edits in (0, 1, 5):
        _, tokens, nfe = watched(
            denoise,
            Editing(edits=edits),
            length=3,
            tokens=[0, 0, 2],
            is_fixed=[False, False, True],
        )
        assert nfe == 1 + edits
        assert list(tokens) == [edits % 2, edits % 2, 2]  # the prompt stays, wanted or not


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_prompts_stay_no_mask_is_left_and_rows_are_their_own(key, temperature):
    rng = np.random.default_rng(1)
    tokens, is_fixed = rng.integers(0, SYMBOLS, (64, LENGTH)), rng.random((64, LENGTH)) < 0.4
    sampler = Editing(edits=3, temperature=temperature, write_above=0.3)
    keys = by_row(key, jnp.arange(64))
    run = jax.jit(
        lambda *row: generate(
            *row, sampler=sampler, diffusion=Diffusion(denoise=posterior, **PARTS)
        )
    )
    samples = run(keys, tokens, is_fixed)
    found = np.asarray(samples.tokens)
    assert (found[is_fixed] == tokens[is_fixed]).all()
    assert (found < SYMBOLS).all() and (found >= 0).all()
    assert int(samples.nfe) <= LENGTH + 3
    few = slice(20, 25)
    alone = run(keys[few], tokens[few], is_fixed[few])
    assert (np.asarray(alone.tokens) == found[few]).all()


def test_written_tokens_carry_their_confidence():
    sampler = Editing()
    few = [SURE_1, SURE_1, UNSURE]
    state = sampler.init(
        by_row(jax.random.key(0), jnp.arange(1)),
        jnp.zeros((1, 3), jnp.int32),
        jnp.zeros((1, 3), bool),
        Diffusion(denoise=posterior, **PARTS),
    )
    denoise = table(few, few, few, [SURE_0, SURE_1, UNSURE])
    state = sampler.step(state, diffusion=Diffusion(denoise=denoise, **PARTS))
    np.testing.assert_allclose(state.confidence, [[0.98, 0.98, 0]], rtol=1e-5)
    state = sampler.step(state, diffusion=Diffusion(denoise=denoise, **PARTS))
    np.testing.assert_allclose(state.confidence, [[0.98, 0.98, 0.4]], rtol=1e-5)


def test_what_it_is_not_for_is_refused():
    class NoInverse(Schedule):
        def alpha(self, t, x_0=None):
            return 1 - t

    assert Editing().incompatibility(Masked(), Subs()) is None
    assert "no inverse" in (Editing().incompatibility(Masked(schedule=NoInverse()), Subs()) or "")


@pytest.mark.parametrize(
    "setting", [{"write_above": 1.1}, {"edit_above": -0.1}, {"edits": -1}, {"temperature": -1.0}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Editing(**setting)
