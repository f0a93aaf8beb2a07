"""Masked LM: exact numbers, BERT's replacements and their shares, and what is scored."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.objectives.masked_lm import MaskedLM
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.types import Batch, DenseLogits, Vocab

VOCAB = Vocab(size=9, mask_id=4)
B, L = 48, 200


@partial(jax.jit, static_argnums=0)
def run(objective, key, loss_mask=None):
    batch = Batch(
        tokens=jnp.full((B, L), 6),
        loss_mask=jnp.ones((B, L), bool) if loss_mask is None else loss_mask,
        row=jnp.arange(B),
        rows=jnp.asarray(B),
    )
    seen = []

    def denoise(inputs, *, key=None):
        seen.append(inputs)
        return DenseLogits(jnp.zeros((B, L, VOCAB.size)))

    terms = objective.with_vocab(VOCAB)(
        key,
        batch,
        diffusion=Diffusion(
            process=Masked().with_vocab(VOCAB),
            parameterization=Subs().with_vocab(VOCAB),
            denoise=denoise,
        ),
    )
    return terms, seen[0].tokens


@pytest.mark.parametrize(("ratio", "number"), [(0.15, 30), (0.001, 1), (1.0, 200)])
def test_an_exact_number_and_at_least_one(key, ratio, number):
    terms, seen = run(MaskedLM(ratio=ratio), key)
    assert ((seen == VOCAB.mask_id).sum(-1) == number).all()
    np.testing.assert_array_equal(terms.scored, seen == VOCAB.mask_id)


def test_loss_is_the_mean_over_the_chosen(key):
    """Each row's mean, once for each of its scored tokens; a row without any gives nothing."""
    loss_mask = jnp.ones((B, L), bool).at[0, 7:].set(False).at[1].set(False)
    terms, seen = run(MaskedLM(), key, loss_mask=loss_mask)
    assert not (seen[~np.asarray(loss_mask)] == VOCAB.mask_id).any()
    assert (seen[0] == VOCAB.mask_id).sum() == 1 and not (seen[1] == VOCAB.mask_id).any()
    np.testing.assert_allclose(terms.total / terms.count.sum(), np.log(8), rtol=1e-5)
    np.testing.assert_allclose(terms.values.sum(-1), terms.count.sum(-1) * np.log(8), rtol=1e-5)


def test_berts_replacements(key):
    objective = MaskedLM(ratio=0.5, random=0.3, keep=0.2)
    terms, seen = run(objective, key)
    chosen = np.asarray(terms.scored) > 0
    assert (chosen.sum(-1) == 100).all()
    assert (seen[~chosen] == 6).all()
    # All tokens were 6: 0.2 stayed, and an eighth of the random ones came out the same.
    n = chosen.sum()
    counts = np.bincount(seen[chosen], minlength=VOCAB.size) / n
    expected = np.full(VOCAB.size, 0.3 / 8)
    expected[VOCAB.mask_id], expected[6] = 0.5, 0.2 + 0.3 / 8
    assert np.abs(counts - expected).max() < 5 * 0.5 / np.sqrt(n)
    assert (counts > 0).all()
    # Kept and random tokens are scored by the network's distribution, not carried over.
    np.testing.assert_allclose(np.asarray(terms.values)[chosen], 2 * np.log(8), rtol=1e-5)


def test_what_and_which_are_not_tied_together(key):
    """Random tokens have the same distribution at every place and in every row."""
    _, seen = run(MaskedLM(ratio=1.0, random=1.0), key)
    expected = B * L / 8
    counts = np.bincount(seen.reshape(-1), minlength=VOCAB.size)
    assert counts[VOCAB.mask_id] == 0
    assert np.abs(np.delete(counts, VOCAB.mask_id) - expected).max() < 5 * np.sqrt(expected)
    assert len(np.unique(seen, axis=0)) == B
    assert len(np.unique(seen[:, :40].T, axis=0)) == 40


def test_protocol_says_that_it_is_no_bound():
    assert "NO bound" in MaskedLM.protocol and not MaskedLM.is_exact


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (dict(ratio=0.0), "ratio=0.0"),
        (dict(ratio=1.5), "ratio=1.5"),
        (dict(keep=-0.1), "keep=-0.1"),
        (dict(random=0.6, keep=0.6), "random=0.6 and keep=0.6"),
    ],
)
def test_wrong_shares_are_refused(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        MaskedLM(**wrong)


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size=5"):
        MaskedLM(vocab_size=5).with_vocab(VOCAB)
