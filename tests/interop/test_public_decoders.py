"""Our samplers against the decoders of the public code, call after call, with the same networks.

A decoder is compared by the canvases of each row, every change of it counted once: public code
makes calls that write nothing, and waits for the slowest row of a batch.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from canvases import agree, changes

from mdlm.samplers import (
    Ancestral,
    ClassifierFree,
    Expected,
    Factor,
    FixedCount,
    Parallel,
    ParallelBlocks,
    Share,
    Threshold,
    ancestral,
)
from mdlm.samplers.unmasking_rules import Turn

pytestmark = pytest.mark.golden
MASK = 63


def test_imported_checkpoints_sample_as_their_authors_do(llada, dream, sdar):
    in_blocks = Parallel(rule=Share(steps=32), block_size=32, temperature=0.0)
    by_entropy = Parallel(
        order="entropy", rule=Expected(steps=512, eps=0.001), temperature=0.0, priority="processed"
    )
    dynamic = ParallelBlocks(rule=Threshold(tau=0.9), block_size=4, temperature=0.0)
    for network, sampler in ((llada, in_blocks), (dream, by_entropy), (sdar, dynamic)):
        assert network.run.experiment.sampler == sampler


def moved(states, mask=MASK):
    """The largest number of calls that write something in one row."""
    return max(len(changes(states[:, row])) - 1 for row in range(states.shape[1]))


def fed(sampler, **methods):
    """The sampler with some methods replaced, e.g. by draws that are given."""
    kind = type(type(sampler).__name__, (type(sampler),), methods)
    return kind(**{f.name: getattr(sampler, f.name) for f in dataclasses.fields(sampler)})


@pytest.mark.parametrize(
    ("case", "sampler"),
    [
        ("lowconf", Parallel(rule=Share(steps=16))),
        ("lowconf_block8", Parallel(rule=Share(steps=4), block_size=8)),
        ("lowconf_rem", Parallel(rule=Share(steps=3), block_size=8)),
        ("padded", Parallel(rule=Share(steps=4), block_size=8)),
        (
            "cfg",  # the public scale is our weight minus 1
            Parallel(
                rule=Share(steps=4),
                block_size=8,
                guidance=ClassifierFree(weight=2.5, without="prompt"),
            ),
        ),
        (
            "eos_inf",  # the confidence is renormalised
            Parallel(rule=Share(steps=4), block_size=8, banned=(61,), priority="processed"),
        ),
        ("conf_eos_inf", Parallel(rule=Share(steps=4), block_size=8, deferred=(61, 62))),
    ],
)
def test_llada(llada, golden, case, sampler):
    values = golden("interop_llada_decode.npz")
    states, prompt = values[f"{case}__states"], values["prompt"]
    known = dict(is_valid=np.ones(states[0].shape, bool))
    if case == "padded":
        known["is_valid"][:, : prompt.shape[1]] = values["prompt_mask"]
    sampler = dataclasses.replace(sampler, temperature=0.0)
    is_fixed = np.broadcast_to(np.arange(states.shape[2]) < prompt.shape[1], states[0].shape)
    calls = len(states) - 1
    found, nfe = llada.decoded(sampler, states[0], is_fixed, calls, **known)
    np.testing.assert_array_equal(found, states)
    assert nfe == calls * (1 + (case == "cfg"))


def test_llada_by_random_priorities(llada, golden):
    values = golden("interop_llada_decode.npz")
    states, given = values["random__states"], jnp.asarray(values["random__conf"])
    sampler = Parallel(order="random", rule=Share(steps=4), block_size=8, temperature=0.0)
    sampler = fed(sampler, blind=lambda self, state: given[state.step])
    is_fixed = np.broadcast_to(np.arange(states.shape[2]) < 6, states[0].shape)
    found, _ = llada.decoded(sampler, states[0], is_fixed, len(states) - 1)
    np.testing.assert_array_equal(found, states)


def test_llada_with_gumbel_noise(llada, golden):
    """argmax exp(l) / (-log u)^T is that of l / T - log(-log u); confidences have no noise."""
    values = golden("interop_llada_decode.npz")
    states = values["gumbel__states"]
    u = values["gumbel__uniform"]
    noise = jnp.asarray(-np.log(-np.log(u)), jnp.float32).reshape(len(u), -1, u.shape[-1])

    def choose(self, keys, log_p, at, state):
        return jnp.argmax(log_p + noise[state.step][at], axis=-1)

    sampler = fed(Parallel(rule=Share(steps=4), block_size=8, temperature=0.7), choose=choose)
    is_fixed = np.broadcast_to(np.arange(states.shape[2]) < 6, states[0].shape)
    found, _ = llada.decoded(sampler, states[0], is_fixed, len(states) - 1)
    np.testing.assert_array_equal(found, states)


def test_llada_counts(golden):
    values = golden("interop_llada_decode.npz")
    table, due = values["transfer_table__masks_steps"], values["transfer_table__counts"]
    for steps in np.unique(table[:, 1]):
        is_here = table[:, 1] == steps
        found = counted(Share(steps=int(steps)), table[is_here, 0])
        # Public code makes calls that write nothing too.
        assert found == [[n for n in row if n > 0] for row in due[is_here]]


def counted(rule, totals):
    """How many of each number of positions a rule writes with each call, until none is left."""
    rows = len(totals)
    total = jnp.asarray(totals, jnp.int32)[:, None]
    keys = jax.random.split(jax.random.key(0), rows)

    @jax.jit
    def counts(total):
        def call(is_open, step):
            turn = Turn(total=total, step=jnp.broadcast_to(step, total.shape), keys=keys)
            chosen = rule.select(jnp.zeros(is_open.shape), is_open, turn)
            return is_open & ~chosen, chosen.sum(-1)

        longest = max(totals)
        is_open = jnp.arange(longest)[None] < total
        is_left, counts = jax.lax.scan(call, is_open, jnp.arange(longest))
        return is_left, counts.T

    is_left, found = counts(total)
    assert not is_left.any()
    return [[int(n) for n in row if n > 0] for row in found]


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        ("mha_none_quota", Share(steps=4)),
        ("mha_none_threshold", Threshold(tau=0.45)),
        ("mha_none_factor", Factor(factor=0.9)),
        ("gqa_none_threshold", Threshold(tau=0.45)),
    ],
)
def test_fast_dllm(request, golden, case, rule):
    network = request.getfixturevalue("llada_gqa" if case.startswith("gqa") else "llada")
    states = golden("interop_fastdllm.npz")[f"{case}__states"][:, None]
    is_fixed = np.arange(states.shape[2])[None] < 6
    sampler = Parallel(rule=rule, block_size=8, temperature=0.0)
    found, nfe = network.decoded(sampler, states[0], is_fixed, len(states) - 1)
    np.testing.assert_array_equal(found, states)
    assert nfe == len(states) - 1


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("threshold0.9", Threshold(tau=0.9)),
        ("threshold0.5", Threshold(tau=0.5)),
        ("factor0.5", Factor(factor=0.5)),
        ("factor1.0", Factor(factor=1.0)),
        ("factor2.0", Factor(factor=2.0)),
    ],
)
def test_rules_of_fast_dllm(golden, name, rule):
    """The public factor rule writes one too many where it stops at the last position."""
    values = golden("interop_fastdllm.npz")
    conf, is_open = jnp.asarray(values["rules__conf"]), jnp.asarray(values["rules__mask"])
    each = jnp.zeros((len(conf), 1), jnp.int32)
    turn = Turn(total=each + 6, step=each, keys=jax.random.split(jax.random.key(0), len(conf)))
    found = np.asarray(rule.select(conf, is_open, turn))
    np.testing.assert_array_equal(found, values[f"rules__{name}"])
    if isinstance(rule, Factor):
        public = values[f"rules__{name}_upstream_bug"]
        wrong = (found != public).any(-1)
        assert wrong.any()
        assert (public.sum(-1)[wrong] == found.sum(-1)[wrong] + 1).all()


DREAM = Expected(steps=8, eps=1e-3)


@pytest.mark.parametrize(
    ("case", "sampler"),
    [
        ("maskgit_plus", Parallel(rule=DREAM)),
        ("maskgit_batch2", Parallel(rule=DREAM)),
        ("topk_margin", Parallel(order="margin", rule=DREAM)),
        ("entropy", Parallel(order="entropy", rule=DREAM)),
        ("entropy_algtemp0", Parallel(order="entropy", rule=DREAM)),
        ("entropy_padded", Parallel(order="entropy", rule=DREAM)),
        ("entropy_oneper", Parallel(order="entropy", rule=Expected(steps=12, eps=1e-3))),
        ("maskgit_topk", Parallel(rule=DREAM, top_k=3, priority="processed")),
        ("maskgit_topp", Parallel(rule=DREAM, top_p=0.7, priority="processed")),
    ],
)
def test_dream(dream, golden, case, sampler):
    values = golden("interop_dream_decode.npz")
    states = values[f"{case}__states"]
    known = {}
    if case == "entropy_padded":
        known["is_valid"] = np.ones(states[0].shape, bool)
        known["is_valid"][:, :6] = values["prompt2_mask"]
    sampler = dataclasses.replace(sampler, temperature=0.0)
    is_fixed = np.broadcast_to(np.arange(states.shape[2]) < 6, states[0].shape)
    calls = moved(states)
    found, nfe = dream.decoded(sampler, states[0], is_fixed, calls, **known)
    agree(found, states)
    # With as many steps as masks, the first public call writes nothing.
    assert nfe == calls == len(states) - 1 - (case == "entropy_oneper")


def test_dream_at_random(dream, golden, monkeypatch):
    """`origin` is the reverse chain: a mask is revealed at the first u below 1 - s / t, or last."""
    values = golden("interop_dream_decode.npz")
    states, u = values["origin__states"], values["origin__uniform"]
    t = np.linspace(1, 1e-3, len(u) + 1, dtype=np.float32)
    is_due = u < (1 - t[1:] / t[:-1])[:, None, None]
    is_due[-1] = True
    due = jnp.asarray(is_due.argmax(0), jnp.int32)
    monkeypatch.setattr(ancestral, "due_steps", lambda *_: due)
    is_fixed = np.broadcast_to(np.arange(states.shape[2]) < 6, states[0].shape)
    sampler = Ancestral(steps=len(u), temperature=0.0)
    found, nfe = dream.decoded(sampler, states[0], is_fixed, moved(states))
    agree(found, states)
    assert nfe == moved(states) < len(u)  # calls that reveal nothing are not made


def test_dream_counts_are_those_of_each_row():
    """Public code takes the masks of a row from the mean of the batch: with 12 and 2 of them it
    would move 7 / 8 of a token from the first and overwrite given tokens of the second."""
    # Of two masks int(2 / 2.008) = 0 are written in the step before the last.
    assert counted(DREAM, [12, 2]) == [[1, 1, 1, 1, 1, 2, 2, 3], [2]]
    assert counted(Expected(steps=12, eps=1e-3), [12]) == [[1] * 10 + [2]]


SDAR = dict(block_size=4, temperature=0.0)


@pytest.mark.parametrize(
    ("case", "sampler"),
    [
        ("static4", ParallelBlocks(rule=FixedCount(), **SDAR)),
        ("static4_partial", ParallelBlocks(rule=FixedCount(), **SDAR)),
        ("static2", ParallelBlocks(rule=FixedCount(per_call=2), **SDAR)),
        ("sequential2", ParallelBlocks(order="left", rule=FixedCount(per_call=2), **SDAR)),
        ("dynamic", ParallelBlocks(rule=Threshold(tau=0.4), **SDAR)),
        ("dynamic_partial", ParallelBlocks(rule=Threshold(tau=0.4), **SDAR)),
    ],
)
def test_sdar(sdar, golden, case, sampler):
    values = golden("interop_sdar_decode.npz")
    prompt = values["prompt6" if case.endswith("partial") else "prompt8"]
    states = in_canvas(values, case, prompt, MASK, 20)
    is_fixed = np.arange(20)[None] < prompt.shape[1]
    # Blocks of the network are finished without the calls that store their keys and values.
    calls = int((~values[f"{case}__is_commit"]).sum())
    found, nfe = sdar.decoded(sampler, states[0], is_fixed, calls)
    agree(found, states)
    assert nfe == calls + 1  # the prompt
    np.testing.assert_array_equal(found[-1, 0], values[f"{case}__final"])


def in_canvas(values, case, prompt, mask, length):
    """The states of block decoding, `[n, 1, l]`, each block put into the whole row."""
    row = np.full(length, mask)
    row[: prompt.shape[1]] = prompt[0]
    states = [row]
    starts, tokens = values[f"{case}__start"], values[f"{case}__block_tokens"]
    for start, block in zip(starts, tokens, strict=True):
        if start + len(block) <= length:
            states.append(states[-1].copy())
            states[-1][start : start + len(block)] = block
    return np.stack(states)[:, None]


def test_sdar_keeps_the_prompt(sdar, golden):
    """One position of the prompt's last block is open and two are due: public code then writes a
    token of the prompt too."""
    values = golden("interop_sdar_decode.npz")
    prompt, public = values["defect__prompt7"][0], values["defect__final_upstream"]
    assert (public[:7] != prompt).any()
    tokens = np.append(prompt, [MASK] * 5)[None]
    sampler = ParallelBlocks(rule=FixedCount(per_call=2), **SDAR)
    found, nfe = sdar.decoded(sampler, tokens, np.arange(12)[None] < 7, 3)
    np.testing.assert_array_equal(found[-1, 0, :7], prompt)
    assert nfe == 1 + 3


def test_bd3lm(bd3lm, golden):
    """One token with each call, at random places, from the given uniform numbers."""
    values = golden("interop_bd3lm_hf.npz")
    length, prompt = 16, np.array([[1]])
    states = in_canvas(values, "decode", prompt, 47, length)
    where = jnp.asarray(values["decode__uniform_position"], jnp.float32)
    u = values["decode__uniform"]
    noise = jnp.asarray(-np.log(1e-10 - np.log(u + 1e-10)), jnp.float32)

    def progress(state):
        is_open = (state.tokens == 47) & ~state.is_fixed
        return is_open, jnp.argmax(is_open[0]) // 4

    def blind(self, state):
        is_open, block = progress(state)
        here = is_open & (jnp.arange(length)[None] // 4 == block)
        index = jnp.floor(where[block, state.calls[0]] * here.sum()).astype(jnp.int32)
        return (here & (jnp.cumsum(here, axis=1) == index + 1)).astype(jnp.float32)

    def choose(self, keys, log_p, at, state):
        _, block = progress(state)
        return jnp.argmax(log_p + noise[block, state.calls[0], at % 4], axis=-1)

    sampler = fed(ParallelBlocks(order="random", block_size=4), blind=blind, choose=choose)
    found, nfe = bd3lm.decoded(sampler, states[0], np.arange(length)[None] < 1, 15)
    agree(found, states)
    assert nfe == 15


@pytest.mark.parametrize(
    ("case", "weight", "shift"),
    [("plain", 1, False), ("shift", 1, True), ("cfg", 2, False), ("shift_cfg", 1.5, True)],
)
def test_a2d_in_blocks(a2d, golden, case, weight, shift):
    """Public code writes the mask where it is the likeliest, and leaves it; ours never does, so
    rows are compared until then."""
    states = golden("interop_a2d_blocks.npz")[f"{case}__states"]
    is_valid = np.arange(20)[None] >= np.array([3, 1])[:, None]
    positions = np.maximum(np.cumsum(is_valid, axis=1) - 1, 0)
    is_fixed = np.broadcast_to(np.arange(20) < 8, is_valid.shape)
    guidance = None if weight == 1 else ClassifierFree(weight=weight, without="prompt")
    sampler = ParallelBlocks(rule=Expected(steps=3), guidance=guidance, **SDAR)
    network = dict(attends="blocks", block_size=4, shift=shift)
    known = dict(is_valid=is_valid, positions=positions)
    found, _ = a2d.decoded(sampler, states[0], is_fixed, 9, network, **known)
    writes = (states[1:] != states[:-1]).sum(-1) == np.array([1, 1, 2] * 3)[:, None]
    agreed = np.cumprod(writes, axis=0).sum(0)  # calls of each row that write no mask
    assert agreed.max() == (2 if case == "cfg" else 9)
    for row, calls in enumerate(agreed):
        np.testing.assert_array_equal(found[: calls + 1, row], states[: calls + 1, row])
