"""Texts longer than the network: what each window shows, and how the pieces join."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.generation.windows import Windows, generate_long
from mdlm.keys import by_row
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.loop import generate
from mdlm.samplers.state import Samples
from mdlm.types import DenseLogits, Vocab

VOCAB = Vocab(size=60, mask_id=59, bos_id=57, eos_id=58)
COUNT = 50
"""The counting sampler's texts go 0, 1, ..., 49, 0, ..."""


class Counting:
    """A `run` that continues each row by counting on from the last token of its text."""

    def __init__(self, text=slice(None)):
        self.text, self.seen = text, []

    def __call__(self, keys, tokens, is_fixed):
        self.seen.append((np.asarray(jax.random.key_data(keys)), tokens.copy(), is_fixed.copy()))
        tokens = tokens.copy()
        for row, fixed in zip(tokens[:, self.text], is_fixed[:, self.text], strict=True):
            for i in np.flatnonzero(~fixed):
                row[i] = (row[i - 1] + 1) % COUNT if i else 0
        return Samples(tokens=jnp.asarray(tokens), nfe=jnp.asarray(3))


def keys_of(key, rows):
    return by_row(key, jnp.arange(rows))


@pytest.mark.parametrize("stride", [None, 1, 3, 5])
@pytest.mark.parametrize("frame", [(None, None), (57, 58), (57, None), (None, 58)])
@pytest.mark.parametrize("total", [4, 8, 29])
def test_pieces_join_whatever_the_sizes(key, stride, frame, total):
    length = 8
    window = Windows(length=length, stride=stride, frame=frame)
    prompts = [[], [7], list(range(4)), list(range(20, 40))[:total], list(range(total))]
    run, reports = Counting(window.text), []
    result = generate_long(
        keys_of(key, len(prompts)),
        prompts,
        total,
        window=window,
        run=run,
        vocab=VOCAB,
        report=reports.append,
    )
    for prompt, row in zip(prompts, result.tokens, strict=True):
        first = prompt[0] if prompt else 0
        assert (row == (first + np.arange(total)) % COUNT).all()
    assert (result.lengths == total).all()
    assert result.windows == len(run.seen) == len(reports)
    assert result.nfe == 3 * len(run.seen)
    assert [r.window for r in reports] == [1 + i for i in range(reports[0].windows)]
    assert reports[-1].open_rows == 0 and reports[-1].nfe == result.nfe
    for _, tokens, is_fixed in run.seen:
        assert tokens.shape == is_fixed.shape == (len(prompts), length)
        for column, token in zip((0, -1), frame, strict=True):
            if token is not None:
                assert (tokens[:, column] == token).all() and is_fixed[:, column].all()
        assert is_fixed[-1].all()  # the last prompt is already the whole text


def test_each_window_keeps_the_end_of_the_last(key):
    run = Counting()
    window = Windows(length=8, stride=3)
    result = generate_long(keys_of(key, 1), [[]], 16, window=window, run=run, vocab=VOCAB)
    shown = [tokens[0][is_fixed[0]].tolist() for _, tokens, is_fixed in run.seen]
    # 8, then 3 and 3 more; the last window has 2 to add and shows 6.
    assert shown == [[], [3, 4, 5, 6, 7], [6, 7, 8, 9, 10], [8, 9, 10, 11, 12, 13]]
    assert result.windows == window.count(0, 16) == 4


def test_a_prompt_is_shown_whole_where_it_fits_else_its_end(key):
    run = Counting(slice(1, 7))
    window = Windows(length=8, stride=2, frame=(57, 58))
    prompts = [list(range(5)), list(range(6)), list(range(9))]
    generate_long(keys_of(key, 3), prompts, 40, window=window, run=run, vocab=VOCAB)
    _, tokens, is_fixed = run.seen[0]
    shown = [row[fixed].tolist() for row, fixed in zip(tokens, is_fixed, strict=True)]
    assert shown == [[57, *range(5), 58], [57, *range(2, 6), 58], [57, *range(5, 9), 58]]


def test_each_window_draws_with_keys_of_its_own(key):
    run = Counting()
    generate_long(keys_of(key, 3), [[]] * 3, 30, window=Windows(length=8), run=run, vocab=VOCAB)
    used = np.concatenate([keys for keys, _, _ in run.seen])
    assert len(np.unique(used, axis=0)) == len(used) == 3 * len(run.seen)


def test_rows_end_at_the_stop_token(key):
    run, reports = Counting(), []
    stop = 12
    prompts = [[], [40], [11, 12, 13], [30]]
    result = generate_long(
        keys_of(key, 4),
        prompts,
        40,
        window=Windows(length=8),
        run=run,
        vocab=VOCAB,
        stop_at=(stop,),
        report=reports.append,
    )
    # The stop token in a prompt does not end the row; row 1 counts 40 .. 49, 0 .. 12.
    assert result.lengths.tolist() == [13, 23, 40, 33]
    for prompt, row, length in zip(prompts, result.tokens, result.lengths, strict=True):
        first = prompt[0] if prompt else 0
        assert (row[:length] == (first + np.arange(length)) % COUNT).all()
        assert (row[length:] == stop).all()
    assert [r.open_rows for r in reports][-1] == 0
    alone = generate_long(
        keys_of(key, 1), [[]], 40, window=Windows(length=8), run=run, vocab=VOCAB, stop_at=(stop,)
    )
    assert alone.windows == 3 < reports[0].windows  # no window after the last row has ended


def test_one_compilation_and_rows_that_do_not_depend_on_each_other(key):
    traces = []
    table = jax.random.normal(jax.random.key(3), (60, 60)) * 3

    def denoise(inputs, *, key=None):
        return DenseLogits(table[jnp.roll(inputs.tokens, 1, axis=1)])

    @jax.jit
    def run(keys, tokens, is_fixed):
        traces.append(1)
        return generate(
            keys,
            tokens,
            is_fixed,
            sampler=Ancestral(steps=4),
            diffusion=Diffusion(
                process=Masked().with_vocab(VOCAB),
                parameterization=Subs().with_vocab(VOCAB),
                denoise=denoise,
            ),
        )

    window, prompts = Windows(length=8, stride=3), [[1, 2], [], list(range(20))]
    settings = dict(window=window, run=run, vocab=VOCAB, stop_at=(5,))
    keys = keys_of(key, 3)
    together = generate_long(keys, prompts, 40, **settings)
    assert together.windows > 2 and len(traces) == 1
    assert (together.tokens < VOCAB.mask_id).all()
    for row in range(3):
        alone = generate_long(keys[row : row + 1], prompts[row : row + 1], 40, **settings)
        assert (alone.tokens[0] == together.tokens[row]).all()
        assert alone.lengths[0] == together.lengths[row]
    assert (together.tokens[2, :20] == np.arange(20)).all()


@pytest.mark.parametrize(
    "prompt, message",
    [
        ([1, 59], "token 59 at position 1 of prompt 1 is the mask"),
        ([60], "token 60 at position 0 of prompt 1 is outside"),
        ([0] * 11, "prompt 1 has 11 tokens, more than the 10"),
    ],
)
def test_bad_prompts(key, prompt, message):
    settings = dict(window=Windows(length=8), run=Counting(), vocab=VOCAB)
    with pytest.raises(InputError, match=message):
        generate_long(keys_of(key, 2), [[1], prompt], 10, **settings)


def test_windows_out_of_range():
    assert Windows(length=8).advance == 4
    assert Windows(length=8, frame=(57, 58)).advance == 3
    for setting in (
        dict(length=8, stride=0),
        dict(length=8, stride=9),
        dict(length=8, stride=7, frame=(57, 58)),
        dict(length=2, frame=(57, 58)),
        dict(length=0),
    ):
        with pytest.raises(ValueError, match="length|stride"):
            Windows(**setting)
