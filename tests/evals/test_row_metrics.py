"""Metrics of predicted classes and numbers, against scikit-learn and SciPy."""

import numpy as np
import pytest

from mdlm.evals.labels import RESAMPLES, confusion, metrics, pearson, ranks, spearman

RANDOM = np.random.default_rng(0)


def named(loss, answers, classes):
    found = metrics(loss, answers, classes=classes, loss_name="loss", protocol="p")
    assert all(m.n == len(loss) and m.protocol == "p" and m.stderr is None for m in found)
    return {m.name: m for m in found}


def drawn(classes, n=200, right=0.7):
    true = RANDOM.integers(0, classes, n)
    other = RANDOM.integers(0, classes, n)
    predicted = np.where(RANDOM.random(n) < right, true, other)
    return np.stack([predicted, true], -1).astype(np.float64)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("right", [0.0, 0.7, 1.0])
def test_metrics_of_classes(classes, right):
    sklearn = pytest.importorskip("sklearn.metrics")
    answers = drawn(classes, right=right)
    predicted, true = answers.T
    found = named(RANDOM.random(len(answers)), answers, classes)
    assert found["accuracy"].value == pytest.approx(sklearn.accuracy_score(true, predicted))
    due = sklearn.matthews_corrcoef(true, predicted)
    assert found["Matthews correlation"].value == pytest.approx(due, abs=1e-12)
    assert ("F1" in found) == (classes == 2)
    if classes == 2:
        assert found["F1"].value == pytest.approx(sklearn.f1_score(true, predicted))


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_metrics_of_numbers(scale):
    stats = pytest.importorskip("scipy.stats")
    true = RANDOM.integers(0, 26, 150) / 5  # with ties, as the numbers of STS-B have
    predicted = np.round(true + scale * RANDOM.normal(size=150), 1)
    found = named(np.square(predicted - true), np.stack([predicted, true], -1), 0)
    assert list(found) == ["loss", "Pearson correlation", "Spearman correlation"]
    for name, due in (("Pearson", stats.pearsonr), ("Spearman", stats.spearmanr)):
        value = found[f"{name} correlation"].value
        assert value == pytest.approx(due(predicted, true)[0], abs=1e-12)


def test_ranks_of_ties_are_their_mean():
    np.testing.assert_array_equal(ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])), [4, 1, 4, 2, 4])


def test_what_is_undefined_is_0():
    for one in ([[0, 0], [0, 0]], [[0, 1], [0, 1]]):
        found = named(np.ones(2), np.array(one, float), 2)
        assert found["F1"].value == found["Matthews correlation"].value == 0
    constant = np.full(7, 0.1)  # whose mean is not exactly 0.1
    assert pearson(constant, np.arange(7.0)) == spearman(np.arange(7.0), constant) == 0
    one = named(np.ones(1), np.array([[1.0, 1.0]]), 2)
    assert one["accuracy"].value == 1 and one["accuracy"].stderr_rows is None


def test_standard_errors():
    """Those of accuracy and of the loss are known in closed form; that of a Pearson correlation of
    normal numbers is about (1 - r^2) / sqrt(n)."""
    answers, loss = drawn(2, n=500), RANDOM.random(500)
    found = named(loss, answers, 2)
    p = found["accuracy"].value
    assert found["accuracy"].stderr_rows == pytest.approx(np.sqrt(p * (1 - p) / 500), rel=0.1)
    assert found["loss"].stderr_rows == pytest.approx(np.std(loss, ddof=1) / np.sqrt(500))
    a = RANDOM.normal(size=800)
    pairs = np.stack([a, a + RANDOM.normal(size=800)], -1)
    of_numbers = named(loss[:800], pairs[:500], 0)["Pearson correlation"]
    due = (1 - of_numbers.value**2) / np.sqrt(500)
    assert of_numbers.stderr_rows == pytest.approx(due, rel=0.15)
    assert RESAMPLES == 1000


def test_the_table_has_predictions_by_row():
    found = confusion(np.array([[0.0, 1.0], [2.0, 1.0], [2.0, 1.0]]), 3)
    np.testing.assert_array_equal(found, [[0, 1, 0], [0, 0, 0], [0, 2, 0]])
