"""Calls that read some positions of each row and have the others stored, against plain calls."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.models import Bert, BlockDiT, CausalTransformer, Decoder, DiT
from mdlm.models.decoding.kv_cache import rollout
from mdlm.models.network import denoiser, init, shapes
from mdlm.types import NetInput, Reading

B, L, V, SIZE = 3, 12, 17, 4
DECODER = dict(width=32, depth=3, heads=4, kv_heads=2, head_width=12, dtype="float32")
WHOLE = {
    "decoder": Decoder(**DECODER),
    "shift": Decoder(**DECODER, shift=True, qk_norm="separate"),
    "dit": DiT(width=32, depth=3, heads=4, cond_dim=16, dtype="float32"),
}
CAUSAL = {
    "causal decoder": Decoder(**DECODER, attends="causal", norm="layer_bias"),
    "causal": CausalTransformer(width=32, depth=3, heads=2, qk_norm=True, dtype="float32"),
}
BLOCKS = {
    "blocks": Decoder(**DECODER, attends="blocks", block_size=SIZE),
    "blocks, shift": Decoder(**DECODER, attends="blocks", block_size=SIZE, shift=True),
    "block dit": BlockDiT(width=32, depth=3, heads=4, cond_dim=16, block_size=SIZE),
}


def shaken(network):
    """Parameters of which none is 0."""
    params = jax.jit(lambda key: init(network, key, V))(jax.random.key(0))
    shake = lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    return jax.jit(lambda params: jax.tree.map(shake, params))(params)


class Asked:
    """A network, called in one compiled program for each kind of inputs."""

    def __init__(self, network):
        self.params, self.network = shaken(network), network
        timed = isinstance(network, DiT)

        def ask(params, inputs, at):
            condition = (lambda t: t) if timed else None
            told = denoiser(network, V, params, condition=condition)(inputs)
            return told.logits(at), told.cache

        self._ask = jax.jit(ask)

    def __call__(self, at=None, **inputs):
        at = None if at is None else jnp.asarray(at)
        logits, cache = self._ask(self.params, NetInput(**inputs), at)
        return np.asarray(logits), cache


def rows(times=1, **more):
    """Tokens, two rows of which have padding, positions and segments of their own."""
    rng = np.random.default_rng(0)
    known = dict(
        tokens=jnp.asarray(rng.integers(0, V, (B, L))),
        t=jnp.asarray(rng.random((B, times)), jnp.float32),
        is_valid=jnp.arange(L)[None] < jnp.array([[L], [L - 2], [L]]),
        positions=jnp.asarray(rng.integers(0, 40, (B, L))),
        segment_ids=(jnp.arange(L)[None] >= jnp.array([[L], [L], [5]])).astype(jnp.int32),
    )
    return known | more


def places(*by_row, none=99, **options):
    """A reading of these positions, of each row its own."""
    most = max(map(len, by_row))
    at = [[*row, *[none] * (most - len(row))] for row in by_row]
    return Reading(stored=None, at=jnp.asarray(at, jnp.int32), **options)


CLOSE = dict(rtol=1e-5, atol=1e-4)  # of logits up to 25
EVERY = [range(L)] * B
SOME = [[3, 4, 9], [0], [7, 2]]


def flat(by_row):
    return np.array([row * L + i for row, own in enumerate(by_row) for i in own])


def is_seen(known, at):
    return np.asarray(known["is_valid"]).reshape(-1)[at]


@pytest.mark.parametrize(("name", "chunk"), [("decoder", 128), ("shift", 5), ("dit", 5)])
def test_what_is_read_says_what_the_whole_row_says(name, chunk):
    known = rows(times=L if name == "dit" else 1)
    ask = Asked(WHOLE[name])
    due, _ = ask(**known)
    at = flat(EVERY)
    at = at[is_seen(known, at)]
    found, stored = ask(at, **known, reading=places(*EVERY, chunk=chunk))
    np.testing.assert_allclose(found, due.reshape(-1, V)[at], **CLOSE)
    # Some positions again: what they attend to is stored, unchanged. A shifted network computes
    # the logits about a token where it reads the one before.
    read = [
        [i - (name == "shift") for i in own] if row != 1 else own for row, own in enumerate(SOME)
    ]
    again = replace(places(*read, chunk=min(chunk, 2)), stored=stored)
    at = flat(SOME)
    found, after = ask(at, **known, reading=again)
    np.testing.assert_allclose(found, due.reshape(-1, V)[at], **CLOSE)
    np.testing.assert_allclose(after.keys, stored.keys, **CLOSE)


def test_the_others_stay_as_they_were_stored():
    """A token that changed and is not read has its old keys and values, which is the point."""
    known, ask = rows(), Asked(WHOLE["decoder"])
    _, stored = ask(flat(EVERY)[:1], **known, reading=places(*EVERY))
    changed = known | dict(tokens=known["tokens"].at[:, 6].add(1) % V)
    at = flat(SOME)
    old, _ = ask(at, **changed, reading=replace(places(*SOME), stored=stored))
    due, _ = ask(**known)
    np.testing.assert_allclose(old, due.reshape(-1, V)[at], **CLOSE)
    renewed, _ = ask(**changed)
    assert np.abs(old[0] - renewed.reshape(-1, V)[at][0]).max() > 0.01


def test_only_the_positions_asked_for_pass_the_last_block():
    """The first position is in the first part, the last in another that the last block skips."""
    known, ask = rows(), Asked(WHOLE["decoder"])
    due, _ = ask(**known)
    few = places(*EVERY, chunk=4, asked=jnp.array(3))
    found, _ = ask(np.array([2, 11]), **known, reading=few)
    np.testing.assert_allclose(found[0], due[0, 2], **CLOSE)
    assert np.abs(found[1] - due[0, 11]).max() > 0.01


def test_rollout_is_the_product_of_the_blocks_maps():
    """Two blocks; the first row reads two positions and has a number that is none, the second
    nothing."""
    rng = np.random.default_rng(1)
    at, m = np.array([[4, 1, 99], [99, 99, 99]]), 6
    maps = rng.random((2, 2, 3, m))
    due = np.ones((2, m))
    for layer in (1, 0):
        step = np.tile(np.eye(m), (2, 1, 1))
        step[0, [4, 1]] = (step[0, [4, 1]] + maps[layer, 0, :2]) / 2
        due = np.einsum("bq,bqm->bm", due, step)
    stacks = [jnp.asarray(maps[:1], jnp.float32), jnp.asarray(maps[1:], jnp.float32)]
    np.testing.assert_allclose(rollout(stacks, jnp.asarray(at), m), due, rtol=1e-5)


def test_the_rollout_of_even_attention_is_known():
    """Queries of 0 attend evenly to all that they may: here, to earlier tokens and their own."""
    network = replace(CAUSAL["causal decoder"], depth=2)
    ask = Asked(network)
    ask.params["blocks"]["qkv"] = jax.tree.map(lambda q: q * 0, ask.params["blocks"]["qkv"])
    known = dict(tokens=rows()["tokens"])
    _, stored = ask(flat(EVERY)[:1], **known, reading=places(*EVERY, rollout=True, chunk=5))
    step = (np.tril(np.ones((L, L))) / np.arange(1, L + 1)[:, None] + np.eye(L)) / 2
    np.testing.assert_allclose(stored.rollout, np.tile((step @ step).sum(0), (B, 1)), rtol=1e-5)
    # Some positions again: the others' outputs are as they were stored. A row of which nothing is
    # read keeps what it has.
    again = replace(places([3, 4], [], [7], rollout=True), stored=stored)
    _, after = ask(flat(EVERY)[:1], **known, reading=again)
    some = np.eye(L)
    some[[3, 4]] = step[[3, 4]]
    np.testing.assert_allclose(after.rollout[0], (some @ some).sum(0), rtol=1e-5)
    np.testing.assert_allclose(after.rollout[1], stored.rollout[1])


@pytest.mark.parametrize("name", list(CAUSAL))
def test_a_causal_network_reads_token_after_token(name):
    known, ask = rows(), Asked(CAUSAL[name])
    due, _ = ask(**known)
    begin = np.array([4, 3, 1])
    _, stored = ask(flat(EVERY)[:1], **known, reading=places(*map(range, begin), chunk=3))
    for step in range(5):
        at = begin + step
        reading = replace(places(*at[:, None]), stored=stored)
        # Later tokens are not known yet.
        tokens = jnp.where(jnp.arange(L)[None] <= at[:, None], known["tokens"], 0)
        found, stored = ask(
            np.arange(B) * L + at + 1, **known | dict(tokens=tokens), reading=reading
        )
        np.testing.assert_allclose(found, due[np.arange(B), at + 1], **CLOSE)


@pytest.mark.parametrize(
    ("name", "chunk"), [("blocks", 128), ("blocks, shift", 3), ("block dit", 3)]
)
def test_blocks_are_read_one_after_another(name, chunk):
    """Each block is read noised, and in the same call the block before it clean."""
    known, ask = rows(segment_ids=None), Asked(BLOCKS[name])
    clean = known["tokens"]
    noised = jnp.where(jnp.asarray(np.random.default_rng(1).random((B, L)) < 0.5), 0, clean)
    due, _ = ask(**known | dict(tokens=noised, clean=clean))
    at = flat([range(0)] + [range(SIZE)] * 2)
    stored = ask(at, **known, clean=clean, reading=places([], range(4), range(4), none=24))[1]
    for block in range(3):
        own = [i + block * SIZE for i in range(SIZE)]
        before = [L + i - SIZE for i in own] if block else []
        reading = replace(places(*[own + before] * B, chunk=chunk, none=24), stored=stored)
        at = flat([own] * B)
        at = at[is_seen(known, at)]
        inputs = known | dict(tokens=noised, clean=clean)
        if block == 2:  # what is not known yet is not read
            inputs["clean"] = clean.at[:, 8:].set(0)
        found, stored = ask(at, **inputs, reading=reading)
        np.testing.assert_allclose(found, due.reshape(-1, V)[at], **CLOSE)


def test_a_prompt_is_read_in_one_call_and_each_row_is_at_its_own_block():
    network = BLOCKS["blocks"]
    known, ask = rows(segment_ids=None, positions=None, is_valid=None), Asked(network)
    tokens = known["tokens"]
    due, _ = ask(**known, clean=tokens)
    clean = [range(L, L + 8), [], range(L, L + 4)]
    own = [range(8, 12), range(4), range(4, 8)]
    both = [[*a, *b] for a, b in zip(own, clean, strict=True)]
    found, stored = ask(flat(own), **known, clean=tokens, reading=places(*both, none=24, chunk=5))
    np.testing.assert_allclose(found, due.reshape(-1, V)[flat(own)], **CLOSE)
    assert stored.keys.shape == (3, B, L + SIZE, 2, 12)


def test_networks_without_a_cache_say_so():
    network = Bert(width=32, depth=1, heads=2)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes(network, V))
    inputs = NetInput(tokens=jnp.zeros((B, L), jnp.int32), reading=places(*EVERY))
    with pytest.raises(ValueError, match="reading: Bert has no cache"):
        denoiser(network, V, params)(inputs)
    assert not DiT(self_conditioning=True).caches


def test_all_logits_at_once_are_refused():
    ask = Asked(WHOLE["decoder"])
    with pytest.raises(ValueError, match="positions read only"):
        ask(None, **rows(), reading=places(*EVERY))
