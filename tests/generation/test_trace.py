"""A traced run draws what `generate` draws, and its events tell how the text came about."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.generation.trace import generate_traced, rows_of
from mdlm.generation.windows import Windows, generate_long
from mdlm.keys import by_row
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.base import Sampler
from mdlm.samplers.editing import Editing
from mdlm.samplers.first_hitting import FirstHitting
from mdlm.samplers.left_to_right import LeftToRight
from mdlm.samplers.loop import Loop, generate
from mdlm.samplers.parallel import Parallel, ParallelBlocks
from mdlm.samplers.remask import Remask
from mdlm.samplers.reverse import Reverse
from mdlm.samplers.state import placed, removed
from mdlm.types import DenseLogits, NetInput, Vocab

SIZE, LENGTH, ROWS = 12, 8, 4
MASKED = Masked()
VOCAB = Vocab(size=SIZE, mask_id=SIZE - 1, bos_id=SIZE - 3, eos_id=SIZE - 2)
TABLE = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)


def denoise(inputs, *, key=None):
    """Looks at both neighbours: what is drawn depends on what was drawn."""
    left, right = jnp.roll(inputs.tokens, 1, axis=1), jnp.roll(inputs.tokens, -1, axis=1)
    return DenseLogits(jnp.asarray(TABLE)[left] + jnp.asarray(TABLE.T)[right])


class TakesBack(Sampler):
    """Writes two open places a step, left to right; takes place 1 back once, in the third step.

    Its `finish` takes the last place's token back and writes it anew.
    """

    def step(self, state, diffusion):
        process = diffusion.process
        is_open = process.is_masked(state.tokens) & ~state.is_fixed
        is_next = is_open & (is_open.cumsum(-1) <= 2)
        state = self.write(state, is_next, None, diffusion)
        back = (state.step == 2) & (jnp.arange(LENGTH) == 1)[None] & ~state.is_fixed
        # It says nothing of its confidence: the trace knows what a mask's is.
        state = replace(state, tokens=jnp.where(back, process.mask_id, state.tokens))
        return replace(state, done=~(process.is_masked(state.tokens) & ~state.is_fixed).any(-1))

    def finish(self, state, diffusion):
        process = diffusion.process
        last = (jnp.arange(LENGTH) == LENGTH - 1)[None] & ~state.is_fixed
        state, proposal = self.propose(
            removed(state, last, process.mask_id),
            last,
            None,
            diffusion,
        )
        return placed(state, proposal, last)


def parts(sampler, process=MASKED):
    return dict(
        sampler=sampler,
        diffusion=Diffusion(
            process=process.with_vocab(VOCAB),
            parameterization=Subs().with_vocab(VOCAB),
            denoise=denoise,
        ),
    )


def tracer(**parts):
    loop = Loop(**parts)
    begin, advance, finish = jax.jit(loop.begin), jax.jit(loop.advance), jax.jit(loop.finish)
    return partial(
        generate_traced, begin=begin, advance=advance, finish=finish, mask_id=VOCAB.mask_id
    )


def prompts(seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, SIZE - 3, (ROWS, LENGTH)).astype(np.int32)
    is_fixed = rng.random((ROWS, LENGTH)) < 0.3
    is_fixed[-1] = True  # a row with nothing to do
    return tokens, is_fixed


SAMPLERS = {
    "ancestral": parts(Ancestral(steps=5, top_p=0.9)),
    "reverse": parts(Reverse(steps=4)),
    "left to right": parts(LeftToRight()),
    "first hitting": parts(FirstHitting(per_call=2)),
    "parallel": parts(Parallel(block_size=3)),
    "parallel blocks": parts(ParallelBlocks(block_size=4)),
    "remask": parts(Remask(steps=4, eta=0.5)),
    "editing": parts(Editing(write_above=0.3, edit_above=0.3, temperature=1.0, edits=3)),
    "takes back": parts(TakesBack()),
    "uniform noise": parts(Reverse(steps=4), Uniform()),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_traced_run_draws_the_same_and_its_events_lead_there(key, name):
    keys, (tokens, is_fixed) = by_row(key, jnp.arange(ROWS)), prompts()
    expected = jax.jit(partial(generate, **SAMPLERS[name]))(keys, tokens, is_fixed)
    samples, window = tracer(**SAMPLERS[name])(keys, tokens, is_fixed)
    assert (samples.tokens == expected.tokens).all() and samples.nfe == expected.nfe
    starts = list(np.where(is_fixed, tokens, VOCAB.mask_id))
    begins = np.zeros((1, ROWS), np.int32)
    nfe, rows = rows_of([window], begins, 0, starts)
    for row, end, fixed in zip(rows, np.asarray(expected.tokens), is_fixed, strict=True):
        assert (row.after(window.steps) == end).all()
        assert not fixed[row.position].any()
        assert (np.diff(row.step) >= 0).all() and (row.step <= window.steps).all()
        # Every event is a change.
        tokens = row.start.copy()
        for place, token in zip(row.position, row.token, strict=True):
            assert tokens[place] != token
            tokens[place] = token
    assert len(rows[-1].step) == 0
    assert nfe[0] == 0 and nfe[-1] == expected.nfe and (np.diff(nfe) >= 0).all()
    has_prior = name == "uniform noise"
    assert (window.step == 0).any() == has_prior


def test_steps_places_and_what_is_taken_back_are_told(key):
    tokens = np.zeros((1, LENGTH), np.int32)
    is_fixed = (np.arange(LENGTH) == 3)[None]
    _, window = tracer(**SAMPLERS["takes back"])(by_row(key, jnp.arange(1)), tokens, is_fixed)
    found = list(zip(window.step.tolist(), window.column.tolist(), strict=True))
    is_mask = window.token == VOCAB.mask_id
    # Two a step, place 3 being fixed; place 1 goes in step 3 and is written again in step 4.
    assert found[:7] == [(1, 0), (1, 1), (2, 2), (2, 4), (3, 1), (3, 5), (3, 6)]
    assert found[7:9] == [(4, 1), (4, 7)]
    assert is_mask.tolist()[:9] == [i == 4 for i in range(9)]
    # `finish` asked the network: a step of its own, whether or not it drew another token.
    assert window.nfe.tolist() == [0, 1, 2, 3, 4, 5]
    assert found[9:] in ([], [(5, 7)])


def test_confidence_is_the_distribution_s_probability_of_the_token(key):
    keys, (tokens, is_fixed) = by_row(key, jnp.arange(ROWS)), prompts()
    _, window = tracer(**parts(Ancestral(steps=4, temperature=0.5)))(keys, tokens, is_fixed)
    state = np.where(is_fixed, tokens, VOCAB.mask_id)
    assert len(window.step) == (~is_fixed).sum()
    for step in range(1, window.steps + 1):
        now = window.step == step
        row, column, token = window.row[now], window.column[now], window.token[now]
        logits = np.array(denoise(NetInput(tokens=jnp.asarray(state))).array, np.float64)
        logits[..., VOCAB.mask_id] = -np.inf
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(window.confidence[now], p[row, column, token], rtol=1e-4)
        state[row, column] = token
    _, window = tracer(**SAMPLERS["takes back"])(keys, tokens, is_fixed)
    is_back = window.token == VOCAB.mask_id
    assert is_back.any() and (window.confidence[is_back] == 0).all()
    assert (window.confidence[~is_back] > 0).all()


@pytest.mark.parametrize("frame", [(None, None), (VOCAB.bos_id, VOCAB.eos_id)])
def test_places_are_those_of_the_text_and_steps_count_on_from_window_to_window(key, frame):
    keys, window = by_row(key, jnp.arange(ROWS)), Windows(length=LENGTH, stride=3, frame=frame)
    known, total = [[], [1], [2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4], [1, 2, 3]], 17
    given = dict(window=window, vocab=VOCAB, stop_at=(1,))
    trace, windows = tracer(**SAMPLERS["ancestral"]), []

    def run(keys, tokens, is_fixed):
        samples, record = trace(keys, tokens, is_fixed)
        windows.append(record)
        return samples

    plain = jax.jit(partial(generate, **SAMPLERS["ancestral"]))
    expected = generate_long(keys, known, total, run=plain, **given)
    out = generate_long(keys, known, total, run=run, **given)
    assert (out.tokens == expected.tokens).all() and out.windows == len(windows) > 2
    texts = [text[:n] for text, n in zip(out.tokens, out.lengths, strict=True)]
    assert min(map(len, texts)) < total  # a row that stopped, whose later places were dropped
    starts = [
        np.where(np.arange(len(text)) < len(prompt), text, VOCAB.mask_id)
        for text, prompt in zip(texts, known, strict=True)
    ]
    nfe, rows = rows_of(windows, out.begins, window.text.start, starts)
    assert len(nfe) == 1 + sum(record.steps for record in windows) and nfe[-1] == out.nfe
    edges = np.cumsum([record.steps for record in windows])
    for row, text, start, begins in zip(rows, texts, starts, out.begins.T, strict=True):
        assert (row.after(len(nfe) - 1) == text).all()
        # Each open place is written once, in the window that first shows it.
        assert sorted(row.position) == np.flatnonzero(start == VOCAB.mask_id).tolist()
        first_seen = [np.flatnonzero(p < begins + window.room)[0] for p in row.position]
        assert (np.searchsorted(edges, row.step) == first_seen).all()


def test_nothing_to_do_is_a_trace_without_steps():
    nfe, rows = rows_of([], np.zeros((0, 1), np.int32), 0, [np.arange(3)])
    assert nfe.tolist() == [0] and rows[0].after(0).tolist() == [0, 1, 2]
