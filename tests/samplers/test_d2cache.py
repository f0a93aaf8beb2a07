"""What `D2Cache` reads, by hand."""

import jax.numpy as jnp
import numpy as np

from mdlm.samplers import D2Cache
from mdlm.samplers.caches.d2cache import density, nucleus
from mdlm.samplers.caches.partial import View


def test_density_is_the_weighed_share_of_known_tokens():
    known = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 1]], bool)
    wide = np.concatenate([np.ones((2, 40)), known, np.repeat(known[:, -1:], 40, 1)], axis=1)
    apart = np.arange(85)[None] - np.arange(40, 45)[:, None]
    weights = np.exp(-(apart**2) / (2 * 1.5**2))
    due = wide @ (weights / weights.sum(1, keepdims=True)).T
    np.testing.assert_allclose(density(jnp.asarray(known), 1.5), due, atol=1e-4)


def test_nucleus_has_at_most_its_share_and_at_least_one():
    amount = jnp.asarray([[1.0, 5.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 3.0, 0.0], [0.0] * 5])
    chosen = lambda share: [np.flatnonzero(row).tolist() for row in nucleus(amount, share)]
    assert chosen(0.75) == [[1, 3], [3], []]
    assert chosen(0.1) == [[1], [3], []]
    assert chosen(1.0) == [[0, 1, 3, 4], [3], []]


def test_reads_certain_positions_of_the_block_then_others_then_what_is_attended_to():
    is_open = np.array([[0, 0, 1, 1, 1, 1, 1, 1]], bool)
    view = View(
        is_open=jnp.asarray(is_open),
        is_fixed=jnp.asarray([[1, 1, 0, 0, 0, 0, 0, 0]], bool),
        is_here=jnp.asarray([[0, 0, 1, 1, 0, 0, 0, 0]], bool),
        is_new=jnp.zeros((1, 1), bool),
        is_changed=jnp.asarray([[0, 1, 0, 0, 0, 0, 0, 0]], bool),
        calls=jnp.ones((1, 1), jnp.int32),
        priority=jnp.zeros((1, 8)),
        confidence=jnp.asarray([[1.0, 1.0, 0.1, 0.2, 0.3, 0.5, 0.9, 0.2]]),
        rollout=jnp.asarray([[2.0, 0.5, 0.5, 0.5, 1.0, 0.5, 0.5, 2.5]]),
    )
    policy = D2Cache(masks=3, sigma=1000.0, share=0.5)
    # Almost the same density everywhere: the block, then 0.9; of the rest (4 of 6) 7 has 2.5.
    assert np.flatnonzero(policy.candidates(view)[0]).tolist() == [2, 3, 6]
    assert np.flatnonzero(policy.reads(view)[0]).tolist() == [1, 2, 3, 6, 7]
    # Near the known tokens the density outweighs the confidence.
    policy = D2Cache(masks=3, sigma=1.0, share=0.0)
    assert np.flatnonzero(policy.candidates(view)[0]).tolist() == [2, 3, 4]
