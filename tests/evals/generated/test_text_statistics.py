"""Statistics of texts, against values computed by hand and by NLTK."""

import math

import numpy as np
import pytest

from mdlm.errors import InputError
from mdlm.evals.generated.halves import error, halves
from mdlm.evals.generated.statistics import Distinct, SelfBleu, entropy, repetition, words

TEXTS = ["a b c d e", "a b c d", "x y", "a b a b a b a b", ""]


def everything(texts):
    return np.ones(len(texts), bool)


def test_words_are_the_same_number_in_all_texts():
    first, second = words(["It's so.", "so"])
    assert first.tolist() == [0, 1, 2, 3, 4] and second.tolist() == [3]


def test_entropy():
    assert entropy(np.array([3, 3, 5, 5])) == pytest.approx(math.log(2))
    assert entropy(np.array([3, 3, 3, 5])) == pytest.approx(
        -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    )
    assert entropy(np.array([7])) == entropy(np.array([], int)) == 0


def test_repetition():
    """abababab has five 4-grams, abab and baba."""
    own = words(TEXTS)
    assert [repetition(text) for text in own] == [0, 0, 0, 1 - 2 / 5, 0]
    assert repetition(own[3], 1) == 1 - 2 / 8


@pytest.mark.parametrize(("n", "expected"), [(1, 7 / 19), (2, (4 + 1 + 1) / (4 + 3 + 1 + 7))])
def test_distinct(n, expected):
    assert Distinct(words(TEXTS), n)(everything(TEXTS)) == pytest.approx(expected)


def test_n_grams_do_not_cross_texts():
    assert math.isnan(Distinct(words(["a", "b", "c"]), 2)(np.ones(3, bool)))
    assert Distinct(words(["a b", "c"]), 2)(np.ones(2, bool)) == 1


def test_distinct_of_some_texts_is_that_of_these_alone():
    chosen = np.array([True, False, True, True, False])
    own = [text for text, use in zip(TEXTS, chosen, strict=True) if use]
    for n in (1, 2, 3):
        assert Distinct(words(TEXTS), n)(chosen) == Distinct(words(own), n)(everything(own))


def test_self_bleu_by_hand():
    """abcd in abcde: all n-grams found, brevity exp(1 - 5/4); abcde in abcd: 4/5, 3/4, 2/3, 1/2."""
    found = SelfBleu(words(["a b c d e", "a b c d"])).each(np.ones(2, bool))
    assert found == pytest.approx([0.2**0.25, math.exp(-0.25)])


def test_counts_are_clipped_by_one_reference():
    """a a a has the unigram a three times; its references have it twice and once."""
    found = SelfBleu(words(["a a a", "a a b", "a c d"])).each(np.ones(3, bool))
    one, two = 2 / 3, 1 / 2
    assert found[0] == pytest.approx((one * two * 0.1 / 1 * 0.1 / 1) ** 0.25)


def test_self_bleu_is_that_of_nltk():
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, 5, n).tolist() for n in (9, 7, 12, 3, 8, 1, 20)]
    chosen = np.array([True, True, True, True, False, True, True])
    own = [text for text, use in zip(texts, chosen, strict=True) if use]
    expected = [
        bleu.sentence_bleu(
            own[:i] + own[i + 1 :],
            text,
            smoothing_function=bleu.SmoothingFunction().method1,
        )
        for i, text in enumerate(own)
    ]
    found = SelfBleu([np.array(text) for text in texts])
    assert found.each(chosen) == pytest.approx(expected, rel=1e-12)
    assert found(chosen) == pytest.approx(np.mean(expected))


def test_equal_texts_have_self_bleu_one_and_one_text_has_none():
    assert SelfBleu(words(["a b c d e"] * 3))(np.ones(3, bool)) == pytest.approx(1)
    assert math.isnan(SelfBleu(words(["a b c d e"] * 3))(np.array([True, False, False])))


@pytest.mark.parametrize("n", [20, 21])
def test_the_error_of_a_mean(n):
    """In expectation over halves it is s^2 / n; 4000 halves give it to about 2 %."""
    values = np.random.default_rng(1).exponential(size=n)
    of_halves = np.array([values[half].mean() for half in halves(n, count=4000)])
    m = n // 2
    found = of_halves.std() * math.sqrt(m / (n - m))
    assert found == pytest.approx(values.std(ddof=1) / math.sqrt(n), rel=0.04)
    assert error(lambda chosen: values[chosen].mean(), n) == pytest.approx(found, rel=0.2)


def test_halves_do_not_repeat_a_text():
    found = halves(7)
    assert found.shape == (200, 7) and (found.sum(1) == 3).all()
    assert np.array_equal(found, halves(7)) and len(np.unique(found, axis=0)) > 30


def test_what_has_no_error():
    with pytest.raises(InputError, match=r"1 text\(s\): at least 2 are needed"):
        halves(1)
    assert error(SelfBleu(words(["a b", "b c"])), 2) is None  # a half has no other text
