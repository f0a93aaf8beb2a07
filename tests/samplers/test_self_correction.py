"""Self-correction: what the network would rather have, in place of what was sampled."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.parameterizations.mean import Mean
from mdlm.parameterizations.subs import Subs
from mdlm.processes.hybrid import Hybrid, HybridSchedule
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers.grid import GridSampler
from mdlm.samplers.loop import generate
from mdlm.samplers.remask import Remask
from mdlm.samplers.reverse import Reverse
from mdlm.samplers.self_correction import SelfCorrection, agreement, moved
from mdlm.types import DenseLogits, Vocab

VOCAB = Vocab(size=5, mask_id=4)
MEAN = Mean().with_vocab(VOCAB)
PROCESS = Hybrid(schedule=HybridSchedule(p_uniform=0.2)).with_vocab(VOCAB)
LENGTH = 6


@dataclass(frozen=True, kw_only=True)
class AtOnce(GridSampler):
    """Writes 0, 1, 2, .. in its first step. Takes a row's length of further steps, a row its
    number of them, to see whether rows wait for each other."""

    def step(self, state, diffusion):
        l = state.tokens.shape[1]
        tokens = jnp.where(state.is_fixed, state.tokens, jnp.arange(l)[None] % 4)
        return replace(state, tokens=tokens, done=state.step >= state.tokens[:, 0] % 4)


def towards(target, sureness):
    """A network that wants `target`, whatever it sees, and is as sure as it is told."""

    def denoise(inputs, *, key=None):
        hot = jax.nn.one_hot(jnp.asarray(target), 5) * jnp.asarray(sureness)[:, None]
        return DenseLogits(jnp.broadcast_to(hot[None], (*inputs.tokens.shape, 5)))

    return denoise


def run(
    sampler, denoise, *, rows=3, tokens=None, is_fixed=None, process=PROCESS, reads=MEAN, key=None
):
    seen = []

    def asked(inputs, *, key=None):
        jax.debug.callback(
            lambda z, t: seen.append((np.asarray(z), float(t[0, 0]))), inputs.tokens, inputs.t
        )
        return denoise(inputs)

    shape = (rows, LENGTH)
    samples = jax.jit(
        lambda *inputs: generate(
            *inputs,
            sampler=sampler,
            diffusion=Diffusion(process=process, parameterization=reads, denoise=asked),
        )
    )(
        by_row(jax.random.key(0) if key is None else key, jnp.arange(rows)),
        jnp.zeros(shape, jnp.int32) if tokens is None else jnp.asarray(tokens),
        jnp.zeros(shape, bool) if is_fixed is None else jnp.asarray(is_fixed),
    )
    jax.effects_barrier()
    return seen, np.asarray(samples.tokens), int(samples.nfe)


TARGET, SURENESS = [3, 3, 3, 3, 3, 3], [4.0, 9.0, 5.0, 6.0, 8.0, 7.0]


@pytest.mark.parametrize("moves", [1, 2])
def test_the_surest_are_replaced_first(moves):
    """0 1 2 3 0 1 becomes all 3: five tokens, in the order of sureness."""
    sampler = SelfCorrection(first=AtOnce(), moves=moves, temperature=0.5)
    seen, tokens, nfe = run(sampler, towards(TARGET, SURENESS))
    assert (tokens == TARGET).all()
    changed = [1, 4, 5, 2, 0]
    states = np.stack([z for z, _ in seen] + [tokens])[:, 0]
    assert (states[0] == np.arange(6) % 4).all()
    for before, after, i in zip(states[:-1], states[1:], range(0, 10, moves), strict=False):
        assert set(np.flatnonzero(before != after)) == set(changed[i : i + moves])
    assert nfe == len(seen) == -(-5 // moves) + 1  # the last one changes nothing
    assert all(t == pytest.approx(0.01) for _, t in seen)


def test_prompts_stay():
    is_fixed = np.zeros((3, LENGTH), bool)
    is_fixed[:, [1, 4]] = True
    tokens = np.full((3, LENGTH), 2)
    sampler = SelfCorrection(first=AtOnce(), temperature=0.0)
    seen, found, nfe = run(sampler, towards(TARGET, SURENESS), tokens=tokens, is_fixed=is_fixed)
    assert (found[:, [1, 4]] == 2).all() and (found[:, [0, 2, 3, 5]] == 3).all()
    assert nfe == 4


@pytest.mark.slow
def test_it_gives_up():
    """The network wants each row otherwise than it is, so that no round is better."""

    def contrary(inputs, *, key=None):
        return DenseLogits(9.0 * jax.nn.one_hot((inputs.tokens + 1) % 4, 5))

    first = SelfCorrection(first=AtOnce(), temperature=0.0, patience=3, moves=1)
    # Self-accuracy is 1/6 after the first round, and no better after the next three.
    assert run(first, contrary)[2] == 4
    assert run(replace(first, patience=50, rounds=7), contrary)[2] == 7


@pytest.mark.slow
def test_noise_is_no_correction_and_steps_of_the_first_count():
    """Reverse sampling of hybrid noise, by a network that is surest of the mask."""
    sampler = SelfCorrection(first=Reverse(steps=3), rounds=5, temperature=1.0)
    sharp = jnp.array([1.0, 0.5, 0.0, 0.0, 30.0])

    def denoise(inputs, *, key=None):
        return DenseLogits(jnp.broadcast_to(sharp, (*inputs.tokens.shape, 5)))

    reads = Mean(mask_has_mass=True).with_vocab(VOCAB)
    seen, tokens, nfe = run(sampler, denoise, rows=16, reads=reads)
    assert (tokens != 4).all()
    assert nfe == len(seen) and 3 < nfe <= 8
    times = np.array([t for _, t in seen])
    np.testing.assert_allclose(times[:3], [1, 2 / 3, 1 / 3], rtol=1e-5)
    np.testing.assert_allclose(times[3:], 0.01, rtol=1e-5)


@pytest.mark.slow
def test_a_row_does_not_depend_on_the_rows_beside_it(key):
    """`AtOnce` takes as many steps for a row as its first token says."""
    table = 3 * jax.random.normal(jax.random.key(3), (5, 5))

    def denoise(inputs, *, key=None):
        return DenseLogits(table[jnp.roll(inputs.tokens, 1, axis=1)])

    sampler = SelfCorrection(first=AtOnce(), temperature=0.8, rounds=9)
    tokens = np.arange(4)[:, None] * np.eye(1, LENGTH, dtype=int)
    is_fixed = np.broadcast_to(np.arange(LENGTH)[None] == 0, (4, LENGTH))
    _, together, _ = run(sampler, denoise, rows=4, tokens=tokens, is_fixed=is_fixed, key=key)
    tokens[2:] = 0  # the rows beside now take other numbers of steps
    _, beside, _ = run(sampler, denoise, rows=4, tokens=tokens, is_fixed=is_fixed, key=key)
    assert (together[:2] == beside[:2]).all()
    assert len({tuple(row[1:]) for row in together}) == 4


def test_moves_and_agreement():
    tokens, proposed = jnp.array([[0, 1, 2]]), jnp.array([[1, 1, 0]])
    log_p = jnp.log(jnp.array([[[0.4, 0.5, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]]]))
    may_move = jnp.ones((1, 3), bool)
    np.testing.assert_array_equal(moved(tokens, proposed, log_p, may_move, 1), [[1, 1, 2]])
    np.testing.assert_array_equal(moved(tokens, proposed, log_p, may_move, 3), [[1, 1, 0]])
    may_move = jnp.array([[False, True, True]])
    np.testing.assert_array_equal(moved(tokens, proposed, log_p, may_move, 1), [[0, 1, 0]])
    assert agreement(tokens, log_p, jnp.ones((1, 3), bool)) == pytest.approx(2 / 3)
    assert agreement(tokens, log_p, may_move) == 1


def test_what_it_is_not_for_is_refused():
    assert SelfCorrection().incompatibility(PROCESS, MEAN) is None
    assert SelfCorrection().incompatibility(Uniform().with_vocab(VOCAB), MEAN) is None
    assert "Remask" in (SelfCorrection(first=Remask()).incompatibility(PROCESS, MEAN) or "")
    assert not issubclass(Masked, SelfCorrection.processes)
    assert not issubclass(Subs, SelfCorrection.parameterizations)


@pytest.mark.parametrize(
    "setting", [{"moves": 0}, {"rounds": 0}, {"patience": 0}, {"time": 0.0}, {"top_p": 0.0}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        SelfCorrection(**setting)
