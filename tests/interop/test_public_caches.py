"""Our caches against the cached decoders of the public code, call after call."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from canvases import agree

from mdlm.models.network import denoiser
from mdlm.samplers import (
    Dual,
    Factor,
    FixedCount,
    FreeCache,
    Parallel,
    Prefix,
    Share,
    Threshold,
)
from mdlm.types import NetInput, Reading

pytestmark = pytest.mark.golden
CLOSE = dict(rtol=1e-5, atol=1e-4)
RULES = {"quota": Share(steps=4), "threshold": Threshold(tau=0.45), "factor": Factor(factor=0.9)}


@pytest.mark.parametrize(
    "case",
    [
        "mha_prefix_quota",
        "mha_prefix_threshold",
        "mha_dual_quota",
        "mha_dual_factor",
        "gqa_prefix_threshold",
        "gqa_dual_threshold",
    ],
)
def test_fast_dllm(request, golden, case):
    """Public code makes a call for each block that is finished by its full call: it writes none."""
    heads, mode, rule = case.split("_")
    network = request.getfixturevalue("llada_gqa" if heads == "gqa" else "llada")
    values = golden("interop_fastdllm.npz")
    states, calls = values[f"{case}__states"][:, None], int(values[f"{case}__useful"].sum())
    cache = {"prefix": Prefix(), "dual": Dual()}[mode]
    sampler = Parallel(rule=RULES[rule], block_size=8, temperature=0.0, cache=cache)
    is_fixed = np.arange(states.shape[2])[None] < 6
    found, nfe = network.decoded(sampler, states[0], is_fixed, calls)
    agree(found, states)
    assert nfe == calls


@pytest.mark.parametrize(
    ("case", "cache"),
    [
        ("none", None),
        ("prompt", FreeCache(until="prompt")),
        ("aggressive", FreeCache()),
        ("block4", FreeCache(multiple=4)),
        ("window4", FreeCache(window=5)),  # public code counts from the last token written
    ],
)
def test_free_cache(llada, golden, case, cache):
    states = golden("interop_flashdlm.npz")[f"freecache_llada_{case}__states"]
    states = states.reshape(len(states), 1, -1)
    is_fixed = np.arange(states.shape[2])[None] < 6
    sampler = Parallel(order="left", rule=FixedCount(per_call=2), temperature=0.0, cache=cache)
    found, _ = llada.decoded(sampler, states[0], is_fixed, len(states) - 1)
    np.testing.assert_array_equal(found, states)


class Replay:
    """Calls of a network that read some positions each, one after another."""

    def __init__(self, checkpoint, length):
        run = checkpoint.run
        network = dataclasses.replace(run.experiment.network, dtype="float32")
        self.params, self.stored, self.length = checkpoint.params, None, length

        def ask(params, tokens, reading):
            told = denoiser(network, run.model.columns, params)(
                NetInput(tokens=tokens, reading=reading)
            )
            return told.logits(jnp.arange(length)), told.cache

        self._ask = jax.jit(ask)

    def __call__(self, tokens, positions, *, keeps=True):
        """Logits about all tokens, of which those about tokens that are not read mean nothing."""
        at = np.full((1, self.length), self.length)
        at[0, : len(positions)] = positions
        reading = Reading(stored=self.stored, at=jnp.asarray(at, jnp.int32))
        logits, cache = self._ask(self.params, jnp.asarray(tokens).reshape(1, -1), reading)
        if keeps:
            self.stored = cache
        return np.asarray(logits)


@pytest.mark.parametrize("case", ["prefix_threshold", "dual_threshold", "dual_entropy"])
def test_fast_dllm_on_dream(dream, golden, case):
    """Public logits are those at a position, ours those about a token, from the position before."""
    values = golden("interop_dream_fastdllm.npz")
    states, due = values[f"{case}__states"], values[f"{case}__logits"]
    replay = Replay(dream, states.shape[-1])
    starts, lengths = values[f"{case}__start"], values[f"{case}__length"]
    for call, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        found = replay(states[call], range(start, start + length))
        some = slice(start + 1, start + length)
        np.testing.assert_allclose(found[some], due[call, start : start + length - 1], **CLOSE)


def test_free_cache_on_dream(dream, golden):
    values = golden("interop_flashdlm.npz")
    states, due = values["freecache_dream__states"], values["freecache_dream__logits"]
    replay = Replay(dream, states.shape[-1])
    for call, start in enumerate(values["freecache_dream__start"]):
        found = replay(states[call], range(start, states.shape[-1]))
        np.testing.assert_allclose(found[start + 1 :], due[call, start:-1], **CLOSE)


def test_recap(llada, golden):
    """Full calls, then calls that read some positions, with what the full call stored."""
    values = golden("interop_flashdlm.npz")
    states, due = values["recap__states"], values["recap__local_logits"]
    replay = Replay(llada, states.shape[-1])
    groups = [[2], [2, 2], [2, 2, 1], [2, 2, 1]]  # tokens written after each call
    for group, counts in enumerate(groups):
        row = states[group].copy()
        logits = replay(row, range(len(row)))
        np.testing.assert_allclose(logits, values["recap__full_logits"][group], **CLOSE)
        positions = values["recap__local_positions"][group][: sum(counts)]
        done = 0
        for call, count in enumerate(counts):
            if call > 0:
                logits = replay(row, positions)
                found = logits[positions]
                np.testing.assert_allclose(found, due[group, call - 1][: len(found)], **CLOSE)
            written = positions[done : done + count]
            row[written] = logits[written].argmax(-1)
            done += count
        np.testing.assert_array_equal(row, states[group + 1])
