"""MAUVE, against values of the authors' package and limits that are known."""

import numpy as np
import pytest

from mdlm.evals.generated.mauve import Mauve, area, k_means, projected

PUBLISHED = [
    # Values of mauve-text 0.4.0 for these histograms: 25 weights, scaling factor 5.
    ([1, 0], [0, 1], 0.0040720962619612555),
    ([0.75, 0.25], [0.25, 0.75], 0.5596114605911457),
    ([0.7, 0.2, 0.1, 0], [0.1, 0.2, 0.3, 0.4], 0.15469049959264397),
    ([0.4, 0.6, 0], [0.35, 0.6, 0.05], 0.9719053308493772),
]


@pytest.mark.parametrize(("p", "q", "expected"), PUBLISHED)
def test_the_area_is_that_of_the_package(p, q, expected):
    p, q = np.array(p, float), np.array(q, float)
    assert area(p, q) == pytest.approx(expected, rel=1e-12)
    assert area(q, p) == pytest.approx(expected, rel=1e-12)


def test_equal_histograms_have_area_one():
    p = np.array([0.2, 0.0, 0.8])
    assert area(p, p) == pytest.approx(1, abs=1e-12)


def test_components_hold_nine_tenths_of_the_variance():
    """Four directions of equal variance, and many of almost none: nine tenths need all four."""
    draw = np.random.default_rng(0)
    points = np.zeros((400, 9))
    points[np.arange(400), draw.integers(0, 4, 400)] = 3.0
    points += 1e-3 * draw.normal(size=points.shape)
    found = projected(points)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    assert found.shape == (400, 3)  # four points span three directions
    apart = np.linalg.norm(found[:, None] - found[None], axis=-1)
    assert apart == pytest.approx(np.linalg.norm(unit[:, None] - unit[None], axis=-1), abs=0.01)


def test_features_count_by_their_direction_only():
    features = np.random.default_rng(0).normal(size=(30, 5))
    scaled = features * np.linspace(0.1, 10, 30)[:, None]
    assert projected(scaled) == pytest.approx(projected(features), abs=1e-12)
    assert projected(np.ones((4, 3))).tolist() == [[0.0]] * 4


def test_k_means_finds_clusters_that_are_apart():
    draw = np.random.default_rng(0)
    own = draw.integers(0, 5, 200)
    points = 20 * np.eye(5)[own] + draw.normal(size=(200, 5))
    found = k_means(points, 5)
    assert len({(a, b) for a, b in zip(own, found, strict=True)}) == 5
    assert np.array_equal(found, k_means(points, 5))


def test_the_value_falls_with_the_distance_of_the_sets():
    draw = np.random.default_rng(0)
    real, same = draw.normal(size=(2, 200, 8)) + 2
    values, errors = [], []
    for shift in (0, 0.5, 1, 8):
        moved = same + shift * np.eye(8)[0]
        found = Mauve(moved, real)
        values.append(found.value)
        errors.append(found.stderr())
    assert values == sorted(values, reverse=True) and values[0] > 0.9 and values[-1] < 0.05
    assert all(0 <= error < 0.1 for error in errors) and errors[1] > 0


def test_clusters_are_a_tenth_of_the_smaller_set():
    draw = np.random.default_rng(0)
    assert Mauve(draw.normal(size=(80, 3)), draw.normal(size=(57, 3))).clusters == 6
    assert Mauve(draw.normal(size=(3, 3)), draw.normal(size=(2, 3))).clusters == 2
    assert Mauve(draw.normal(size=(1, 3)), draw.normal(size=(9, 3))).stderr() is None
