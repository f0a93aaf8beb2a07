"""The numbers of a set of texts together, with their errors."""

import math

import numpy as np
import pytest

from mdlm.errors import InputError
from mdlm.evals.generated.judge import Judged
from mdlm.evals.generated.measures import measures

NAMES = [
    "nats per token",
    "perplexity",
    "bits per byte",
    "entropy",
    "distinct-1",
    "distinct-2",
    "distinct-3",
    "repetition-4",
    "self-BLEU",
    "MAUVE",
]


def found(nats, tokens, texts=None, **more):
    n = len(nats)
    values = dict(
        texts=texts or [[f"the text {i}"] for i in range(n)],
        nats=np.array(nats, float),
        tokens=np.array(tokens, float),
        bytes=2 * np.array(tokens, float),
        entropy=np.arange(n) / n,
        read=[np.arange(4) + i for i in range(n)],
        features=None,
        unknown=0.0,
    )
    return Judged(**{**values, **more})


def test_values():
    one = measures(found([2, 6, 1, 3], [1, 2, 1, 2]))
    assert list(one) == NAMES
    assert one["nats per token"].value == pytest.approx(12 / 6)
    assert one["perplexity"].value == pytest.approx(math.exp(2))
    assert one["bits per byte"].value == pytest.approx(12 / 12 / math.log(2))
    assert one["entropy"].value == pytest.approx(1.5 / 4)
    assert one["distinct-1"].value == pytest.approx(6 / 12)
    assert one["distinct-3"].value == 1 and one["repetition-4"].value == 0
    assert one["MAUVE"].value is None
    assert all(one[name].stderr > 0 for name in NAMES[:4])
    assert one["distinct-1"].stderr < 1e-9  # each half has the same number of new words


def test_tokens_or_words():
    """As words there are `the` and `text` in all; as the judge's tokens, four that shift."""
    one = found([1.0] * 4, [1] * 4)
    assert measures(one, units="tokens")["distinct-1"].value == pytest.approx(7 / 16)


def test_the_error_of_perplexity_is_that_of_the_texts():
    """Its true spread, over many sets of texts, is what one set says on average."""
    draw = np.random.default_rng(0)
    sets = draw.gamma(4.0, size=(300, 40))
    perplexities = np.exp(sets.mean(axis=1))
    errors = [measures(found(nats, np.ones(40)))["perplexity"].stderr for nats in sets[:5]]
    assert np.mean(errors) == pytest.approx(perplexities.std(), rel=0.25)


def test_mauve_compares_features_of_one_judge():
    draw = np.random.default_rng(0)
    ours, real = (
        found(np.ones(40), np.ones(40), features=draw.normal(size=(40, 3)) + shift)
        for shift in (np.array([5, 0, 0]), np.array([0, 5, 0]))
    )
    assert measures(ours, real)["MAUVE"].value < 0.1
    assert measures(ours, ours)["MAUVE"].value == pytest.approx(1)
    assert measures(ours, found(np.ones(40), np.ones(40)))["MAUVE"].value is None


def test_what_has_no_value():
    """Empty texts: no token to divide by; two texts: halves of one have no self-BLEU."""
    empty = measures(found([0, 0], [0, 0], texts=[[""], [""]]))
    assert empty["nats per token"].value is None and empty["distinct-1"].value is None
    assert empty["self-BLEU"].value == 0 and empty["self-BLEU"].stderr is None
    with pytest.raises(InputError, match=r"1 text\(s\): at least 2 are needed"):
        measures(found([1], [1]))


def test_progress():
    seen = []
    measures(found([1, 2, 3], [1, 1, 1]), report=lambda done, of: seen.append((done, of)))
    assert seen == [(i, 10) for i in range(11)]
