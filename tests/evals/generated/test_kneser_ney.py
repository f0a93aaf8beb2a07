"""Kneser-Ney n-grams: sums to one, a case by hand, a plain second implementation."""

import math
from collections import Counter

import numpy as np
import pytest

from mdlm.errors import InputError
from mdlm.evals.generated.kneser_ney import KneserNey
from mdlm.types import Vocab

MASK = 2
VOCAB = Vocab(size=6, mask_id=MASK)
"""Tokens 0, 1, 3, 4, 5 and the mask."""


def drawn(rows, length, seed=0):
    """Rows in which a token tends to follow itself; token 5 does not occur."""
    rng = np.random.default_rng(seed)
    out = rng.choice([0, 1, 3, 4], (rows, length))
    for i in range(1, length):
        keep = rng.random(rows) < 0.6
        out[keep, i] = out[keep, i - 1]
    return list(out)


def distribution(model, history):
    """p of every token after a history."""
    return np.array([math.exp(-model(np.array([*history, w]))[-1]) for w in range(VOCAB.size)])


@pytest.fixture(scope="module")
def model():
    return KneserNey(drawn(20, 11), VOCAB)


@pytest.mark.parametrize("history", [[], [0], [5], [4, 4], [1, 3, 0, 0], [0] * 9, [5, 0, 0]])
def test_probabilities_sum_to_one(model, history):
    p = distribution(model, history)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert p[MASK] == 0 and (np.delete(p, MASK) > 0).all()


def test_bigrams_by_hand():
    """Of the one sequence 0 1 0 1 3, with its boundary |.

    Bigrams: |0, 01 (twice), 10, 13. Different tokens before 0: |, 1; before 1: 0; before 3: 1.
    Unigrams: a = 2, 1, 1, sum 4, D = 2 / (2 + 2 * 1) = 1/2, three types:
        p(0) = 1.5/4 + 0.5 * 3/4 / 5, p(1) = p(3) = 0.5/4 + 0.5 * 3/4 / 5, p(4) = 0.5 * 3/4 / 5.
    Bigrams: n_1 = 3 (|0, 10, 13), n_2 = 1 (01), D = 3/5.
    """
    model = KneserNey([np.array([0, 1, 0, 1, 3])], VOCAB, order=2)
    rest = 0.5 * 3 / 4 / 5
    unigram = {0: 1.5 / 4 + rest, 1: 0.5 / 4 + rest, 3: 0.5 / 4 + rest, 4: rest, 5: rest}
    after_0, after_1, after_4 = (distribution(model, [y]) for y in (0, 1, 4))
    for w, p in unigram.items():
        assert after_0[w] == pytest.approx((1.4 / 2 if w == 1 else 0) + 0.6 * 1 / 2 * p)
        assert after_1[w] == pytest.approx((0.4 / 2 if w in (0, 3) else 0) + 0.6 * 2 / 2 * p)
        assert after_4[w] == pytest.approx(p)  # never seen
    first = distribution(model, [])
    assert first[0] == pytest.approx(0.4 / 1 + 0.6 * 1 / 1 * unigram[0])
    assert first[3] == pytest.approx(0.6 * unigram[3])


def plain(sequences, order):
    """The same formulas with dictionaries; returns p(w | history)."""
    counts = [Counter() for _ in range(order)]
    for own in sequences:
        row = ["|", *own.tolist()]
        for n in range(1, order + 1):
            counts[n - 1].update(tuple(row[i - n : i]) for i in range(n, len(row) + 1))
    used = []
    for n in range(1, order + 1):
        a = dict(counts[n - 1])
        if n < order:
            longer = Counter(gram[1:] for gram in counts[n])
            a = {gram: (c if gram[0] == "|" else longer[gram]) for gram, c in a.items()}
        used.append({gram: c for gram, c in a.items() if gram[-1] != "|"})
    discounts = []
    for a in used:
        n1, n2 = (sum(c == k for c in a.values()) for k in (1, 2))
        discounts.append(n1 / (n1 + 2 * n2) if n1 else 0.5)

    def p(w, history):
        n = len(history) + 1
        lower = p(w, history[1:]) if history else 1 / (VOCAB.size - 1)
        after = {gram: c for gram, c in used[n - 1].items() if gram[:-1] == history}
        total, d = sum(after.values()), discounts[n - 1]
        if not total:
            return lower
        return max(after.get((*history, w), 0) - d, 0) / total + d * len(after) / total * lower

    return lambda w, history: p(w, (("|", *history))[-(order - 1) :] if order > 1 else ())


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_a_plain_implementation_agrees(order):
    sequences = [row[: 4 + i % 5] for i, row in enumerate(drawn(12, 9, seed=3))]
    model, expected = KneserNey(sequences, VOCAB, order=order), plain(sequences, order)
    for own in [*drawn(4, 9, seed=4), np.array([5, 5, 0, 1, 1, 1])]:
        found = np.exp(-model(own))
        for i, w in enumerate(own.tolist()):
            assert found[i] == pytest.approx(expected(w, tuple(own[:i].tolist())), rel=1e-12)


def test_a_longer_history_helps_where_it_tells_more():
    """Each token is decided by the two before it: trigrams know it, bigrams do not."""
    rng = np.random.default_rng(0)
    rows = rng.choice([0, 1], (200, 40))
    for i in range(2, 40):
        rows[:, i] = rows[:, i - 1] ^ rows[:, i - 2]
    train, test = list(rows[:150]), rows[150:]
    bigram, trigram = (
        np.mean([KneserNey(train, VOCAB, order=n)(row)[2:].mean() for row in test[:5]])
        for n in (2, 3)
    )
    assert bigram > 0.5 and trigram < 0.05


def test_counts_of_no_text_are_refused():
    with pytest.raises(InputError, match="no token to count n-grams of"):
        KneserNey([], VOCAB)
    with pytest.raises(InputError, match="order=0: must be at least 1"):
        KneserNey([np.array([0])], VOCAB, order=0)
    assert KneserNey([np.array([0, 1]), np.array([3])], VOCAB).tokens == 3


def test_progress_is_reported():
    seen = []
    KneserNey(drawn(2, 5), VOCAB, report=lambda done, of: seen.append((done, of)))
    assert seen == [(n, 5) for n in range(6)]
