"""Attention's masks and the rotary code, against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.models.attention import attention, rotary_angles, rotate

B, L, H, D = 2, 6, 3, 4


@pytest.fixture
def qkv(key):
    return tuple(jax.random.normal(k, (B, L, H, D)) for k in jax.random.split(key, 3))


def expected(q, k, v, may_see):
    """Query by query, in float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(B, L, H):
        seen = np.flatnonzero(may_see[b, i])
        if len(seen):
            scores = k[b, seen, h] @ q[b, i, h] / np.sqrt(D)
            weight = np.exp(scores - scores.max())
            out[b, i, h] = weight / weight.sum() @ v[b, seen, h]
    return out


IS_VALID = np.array([[0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
SEGMENTS = np.array([[0, 0, 1, 1, 1, 2], [3, 3, 3, 3, 0, 0]])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_masks(qkv, causal, padded, packed):
    may_see = np.ones((B, L, L), bool)
    if causal:
        may_see &= np.tri(L, dtype=bool)
    if padded:
        may_see &= IS_VALID[:, None, :]
    if packed:
        may_see &= SEGMENTS[:, :, None] == SEGMENTS[:, None, :]
    out = attention(
        *qkv,
        causal=causal,
        is_valid=jnp.asarray(IS_VALID) if padded else None,
        segment_ids=jnp.asarray(SEGMENTS) if packed else None,
    )
    np.testing.assert_allclose(out, expected(*qkv, may_see), rtol=1e-5, atol=1e-6)


def test_queries_that_see_nothing_have_finite_gradients(qkv):
    def total(q, k, v):
        return attention(q, k, v, is_valid=jnp.asarray(IS_VALID)).sum()

    for gradient in jax.grad(total, argnums=(0, 1, 2))(*qkv):
        assert jnp.isfinite(gradient).all()
        assert (gradient[1] == 0).all()


def test_rotary_scores_depend_on_the_distance_only(key):
    q, k = (jax.random.normal(i, (1, 1, 1, D)) for i in jax.random.split(key))

    def score(at_q, at_k):
        turn = lambda x, at: rotate(x, rotary_angles(jnp.array([[at]]), D))
        return float((turn(q, at_q) * turn(k, at_k)).sum())

    np.testing.assert_allclose(score(7, 3), score(107, 103), rtol=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3
