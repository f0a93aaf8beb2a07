"""Rows on several devices, rows that leave, batches of any size: the texts are the same."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mdlm.data import Bytes
from mdlm.experiment.model import Model
from mdlm.generation.batches import on_open_rows, split
from mdlm.generation.generator import Generator
from mdlm.generation.programs import within_reach
from mdlm.generation.windows import Windows
from mdlm.keys import by_row
from mdlm.samplers import Ancestral, FixedCount, Parallel, Remask
from mdlm.samplers.state import Samples

SAMPLERS = {
    "ancestral": Ancestral(steps=16),
    "parallel": Parallel(block_size=8),
    "remask": Remask(steps=16),
}


@pytest.fixture(scope="module")
def parts():
    """A network of random weights, its parameters and its tokenizer."""
    tokenizer = Bytes().build([])
    small = tiny.experiment(Path("none.txt"))
    model = Model(small, tokenizer.vocab, None)
    params = model.init(jax.random.key(0))
    # Away from the uniform distribution of a new network.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)
    ]
    return model, jax.tree.unflatten(tree, noisy), tokenizer


def generator(parts, sampler=SAMPLERS["ancestral"], devices=8) -> Generator:
    model, params, tokenizer = parts
    held = within_reach(params) if devices > 1 else jax.device_put(params, jax.devices()[0])
    found = Generator(model, held, tokenizer, Windows(length=32), sampler)
    assert len(found._programs.devices) == devices
    return found


def counted(generator: Generator) -> list[tuple[int, int]]:
    """Notes the rows and the devices of each window from now on."""
    programs, seen = generator._programs, []
    run = programs.generate

    def generate(keys, tokens, is_fixed, *, parts):
        seen.append((len(tokens), parts))
        return run(keys, tokens, is_fixed, parts=parts)

    programs.generate = generate
    return seen


@pytest.mark.optimized  # the same last digits for every size of a batch
@pytest.mark.parametrize("name", SAMPLERS)
def test_eight_devices_write_what_one_writes(parts, name):
    prompts = ["", "the ", "a", "quick brown", ""]
    one, eight = (generator(parts, SAMPLERS[name], devices) for devices in (1, 8))
    seen = counted(eight)
    texts = one.continue_from(prompts, 70, seed=3)
    split = eight.continue_from(prompts, 70, seed=3)
    assert split.texts == texts.texts and len(set(split.texts)) == 5
    assert split.new_tokens == texts.new_tokens and split.windows == texts.windows
    assert seen == [(8, 8)] * split.windows
    # A device calls its network for its own rows only.
    assert 0 < split.nfe <= texts.nfe
    filled = [each.infill("a [MASK:9] b [MASK:3]", num=3, seed=1) for each in (one, eight)]
    assert filled[0].texts == filled[1].texts and len(filled[0].texts) == 3
    assert filled[1].new_tokens == 36


def test_rows_that_are_done_leave(parts):
    """One row ends with each window; the texts are those of rows on their own."""
    alone, many = generator(parts, devices=1), generator(parts, devices=1)
    seen, lengths = counted(many), (100, 90, 75, 58, 40)
    prompts = [[97] * length for length in lengths]
    together = many.continue_tokens(prompts, 104, seed=5)
    rows = [rows for rows, _ in seen]
    assert rows == [5, 4, 2, 1] and len(rows) == together.windows, rows
    for number, prompt in enumerate(prompts):
        single = alone.continue_tokens([prompt], 104, seed=5, first=number)
        assert single.texts[0] == together.texts[number]
    assert together.new_tokens == sum(104 - length for length in lengths)


def test_rows_that_stop_early_leave(parts):
    whole = generator(parts, devices=1).continue_tokens([[]] * 6, 128, seed=2)
    found = [text.tokens for text in whole.texts]
    stop = max(
        range(256),
        key=lambda token: len({tokens.index(token) // 24 for tokens in found if token in tokens}),
    )
    for devices in (1, 8):
        many = generator(parts, devices=devices)
        seen = counted(many)
        ended = many.continue_tokens([[]] * 6, 128, seed=2, stop_at=(stop,))
        due = [tokens[: tokens.index(stop) + 1] if stop in tokens else tokens for tokens in found]
        assert [text.tokens for text in ended.texts] == due
        assert ended.new_tokens == sum(map(len, due))
        assert seen[-1] < seen[0] and [rows for rows, _ in seen] == sorted(
            (rows for rows, _ in seen), reverse=True
        )


def test_text_i_depends_on_the_seed_and_on_i_only(parts):
    one = generator(parts, devices=8)
    whole = one.continue_from(["ab"] * 7, 40, seed=9).texts
    for size in (1, 2, 3):
        found = []
        for first in range(0, 7, size):
            count = min(size, 7 - first)
            found += one.continue_from(["ab"] * count, 40, seed=9, first=first).texts
        assert tuple(found) == whole
    assert (
        one.infill("[MASK:5]", num=3, seed=4).texts[2]
        == one.infill("[MASK:5]", num=1, seed=4, first=2).texts[0]
    )


@pytest.mark.parametrize("devices", [1, 2, 6, 8])
def test_sizes_are_few_and_large_enough(devices):
    for rows in range(1, 70):
        sizes = {split(count, rows, devices) for count in range(1, rows + 1)}
        assert len(sizes) <= 3 + np.log2(rows)
        for count in range(1, rows + 1):
            used, each = split(count, rows, devices)
            assert count <= used * each and used <= devices
            assert used * each < max(2 * count, count + 2 * used) and (used == devices or each == 1)
    assert split(5, 5, 1) == (1, 5) and split(5, 12, 1) == (1, 8) and split(9, 12, 1) == (1, 12)
    assert split(3, 3, 8) == (4, 1) and split(17, 17, 8) == (8, 3) and split(9, 64, 8) == (8, 2)


def test_what_fills_a_batch_is_done_and_never_seen(key):
    seen = []

    def generate(keys, tokens, is_fixed, *, parts):
        seen.append((np.asarray(jax.random.key_data(keys)), tokens.copy(), is_fixed.copy(), parts))
        return Samples(tokens=np.where(is_fixed, tokens, 7), nfe=np.asarray(4))

    tokens = np.arange(40, dtype=np.int32).reshape(10, 4)
    is_fixed = np.ones((10, 4), bool)
    is_fixed[[1, 4, 8], 2:] = False
    keys = by_row(key, jnp.arange(10))
    out = on_open_rows(generate, keys, tokens, is_fixed, devices=2)
    [(used, given, fixed, parts)] = seen
    assert parts == 2 and given.shape == (4, 4) and fixed[3].all()
    assert (fixed[:3] == is_fixed[[1, 4, 8]]).all() and (given[:3] == tokens[[1, 4, 8]]).all()
    assert (used[:3] == np.asarray(jax.random.key_data(keys))[[1, 4, 8]]).all()
    assert (out.tokens == np.where(is_fixed, tokens, 7)).all() and out.nfe == 4
    nothing = on_open_rows(generate, keys, tokens, np.ones_like(is_fixed), devices=2)
    assert len(seen) == 1 and nothing.nfe == 0 and (nothing.tokens == tokens).all()


@pytest.mark.optimized
@pytest.mark.parametrize("devices", [1, 2])
def test_rows_that_are_done_leave_a_window(parts, devices):
    """Where calls are worth a compilation, half a batch goes on; the texts are the same."""
    sampler = Parallel(rule=FixedCount(), temperature=0.7)
    whole, fewer = generator(parts, sampler, devices=1), generator(parts, sampler)
    fewer._programs.devices = jax.devices()[:devices]
    whole._programs.worth, fewer._programs.worth = np.inf, 0.0
    prompts = [[97] * length for length in (30, 29, 28, 27, 26, 10, 20, 25)]
    due, found = whole.continue_tokens(prompts, 32), fewer.continue_tokens(prompts, 32)
    assert found.texts == due.texts and found.nfe == due.nfe == 22
    sizes = lambda made: sorted(
        key[1][0] for key in made._programs._compiled if key[0][0] == "until"
    )
    assert sizes(whole) == [8]
    assert sizes(fewer) == ([1, 2, 4, 8] if devices == 1 else [2, 4, 8])  # rows of all devices


@pytest.mark.parametrize(("template", "says"), [("a [MASK] b", True), ("a b [MASK]", False)])
def test_a_network_that_goes_from_left_to_right_says_so(template, says, parts, monkeypatch, caplog):
    """It is said if a text follows the blank, before anything is compiled."""

    def begins(*_):
        raise TimeoutError

    one = generator(parts, devices=1)
    monkeypatch.setattr(one, "_runner", begins)
    monkeypatch.setattr(type(one.model.experiment.network), "attends", "causal")
    with pytest.raises(TimeoutError):
        one.infill(template)
    assert ("fills a blank without looking at what follows" in caplog.text) == says
