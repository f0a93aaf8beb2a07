"""The rotary position code."""

import jax
import jax.numpy as jnp
import numpy as np

from mdlm.models.rotary import Rotary, rotary_table, rotate, rotate_pairs

D = 4


def test_scores_depend_on_the_distance_only(key):
    q, k = (jax.random.normal(i, (1, 1, 1, D)) for i in jax.random.split(key))

    def score(at_q, at_k):
        turn = lambda x, at: rotate(x, rotary_table(jnp.array([[at]]), Rotary(D)))
        return float((turn(q, at_q) * turn(k, at_k)).sum())

    np.testing.assert_allclose(score(7, 3), score(107, 103), rtol=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_turns_pairs_by_the_angle(key):
    x = jax.random.normal(key, (2, 5, 3, D))
    positions = jnp.array([[0, 1, 2, 3, 4], [7, 0, 0, 100, 5]])
    turned = np.asarray(rotate(x, rotary_table(positions, Rotary(D))))
    pairs = np.asarray(x)[..., :2] + 1j * np.asarray(x)[..., 2:]
    angles = np.asarray(positions)[:, :, None, None] / 10000.0 ** (np.arange(2) / 2)
    pairs = pairs * np.exp(1j * angles)
    np.testing.assert_allclose(turned[..., :2], pairs.real, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(turned[..., 2:], pairs.imag, rtol=1e-4, atol=1e-5)


def test_neighbours_as_pairs_are_the_halves_in_another_order(key):
    x = jax.random.normal(key, (2, 5, 3, 8))
    table = rotary_table(jnp.arange(5)[None], Rotary(8))
    order = np.arange(8).reshape(4, 2).T.ravel()  # 0 2 4 6 1 3 5 7
    turned = rotate_pairs(x, table)
    np.testing.assert_array_equal(turned[..., order], rotate(x[..., order], table))
    assert jnp.abs(turned - rotate(x, table)).max() > 0.1
