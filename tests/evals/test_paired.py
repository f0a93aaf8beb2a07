"""Differences of two runs: their value, and errors that are smaller where the rows are shared."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
from made_run import made

from mdlm.data import Bytes, NoText, Text8, TextData, TextFiles, Wrap
from mdlm.evals.paired import difference, incomparable
from mdlm.evals.scorer import Sums
from mdlm.experiment.evaluation import Perplexity


def sums(bound, count):
    bound, count = np.asarray(bound, float), np.asarray(count, float)
    return Sums(bound, count, np.zeros(2), np.zeros((*bound.shape, 0, 4)))


def test_the_difference_and_its_errors():
    random = np.random.default_rng(0)
    hard = random.gamma(4, 10, size=500)  # of a row, shared by both runs
    a, b = (hard + shift + random.normal(size=(2, 500)) for shift in (3, 0))
    found = difference(sums(a, np.full((2, 500), 10)), sums(b, np.full((2, 500), 10)))
    rows = (a.mean(0) - b.mean(0)) / 10
    assert found.value == pytest.approx(rows.mean())
    assert found.stderr_rows == pytest.approx(rows.std(ddof=1) / math.sqrt(500))
    apart = math.hypot(a.mean(0).std(ddof=1), b.mean(0).std(ddof=1)) / 10 / math.sqrt(500)
    assert found.unpaired == pytest.approx(apart) and found.stderr_rows < apart / 10
    passes = (a - b).sum(1) / 5000
    assert found.stderr == pytest.approx(passes.std(ddof=1) / math.sqrt(2))
    assert (found.rows, found.tokens) == (500, (5000, 5000))


def test_the_error_covers_the_truth():
    """Over many splits, the difference lies within two errors about as often as it should."""
    random, inside = np.random.default_rng(1), 0
    for _ in range(300):
        count = random.integers(5, 20, size=(1, 60))
        hard = random.gamma(4, 1, size=(1, 60))
        a, b = (count * (hard + s + random.normal(size=(1, 60)) / 5) for s in (0.5, 0.0))
        found = difference(sums(a, count), sums(b, count))
        inside += abs(found.value - 0.5) < 2 * found.stderr_rows
    assert 0.91 < inside / 300 < 0.99


def test_rows_may_count_other_tokens():
    """An autoregressive run does not score the first token of a row."""
    one = sums([[2.0, 4.0, 3.0]], [[2, 2, 1]])
    other = sums([[1.0, 3.0, 2.0]], [[2, 2, 2]])
    found = difference(one, other)
    assert found.value == pytest.approx(9 / 5 - 6 / 6) and found.tokens == (5, 6)
    residuals = (np.array([2, 4, 3]) - 1.8 * np.array([2, 2, 1])) / 5
    residuals -= (np.array([1, 3, 2]) - 2.0) / 6
    assert found.stderr_rows == pytest.approx(math.sqrt(1.5 * np.square(residuals).sum()))
    assert found.stderr is None and difference(one, one).stderr_rows == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paired")
    text = tiny.write_text(folder / "text.txt")
    first = tiny.experiment(text)
    longer = replace(first.data, packing=Wrap(length=16, row_specials=False))
    other = TextData(
        source=TextFiles(train=str(tiny.write_text(folder / "other.txt", seed=1))),
        tokenizer=Bytes(),
        packing=first.data.packing,
    )
    letters = replace(first.data, tokenizer=Text8())
    return {
        name: made(folder / name, experiment)
        for name, experiment in {
            "a": first,
            "b": replace(first, seed=9, network=replace(first.network, width=16)),
            "longer": replace(first, data=longer),
            "other": replace(first, data=other),
            "letters": replace(first, data=letters),
        }.items()
    }


def test_runs_get_the_same_rows_and_the_same_noise(runs):
    how = Perplexity(passes=2)
    a, protocol = runs["a"].by_row(how, rows=12, seed=4)
    again, _ = replace_batch(runs["a"], how)
    np.testing.assert_allclose(a.bound, again.bound, rtol=1e-5)
    b, _ = runs["b"].by_row(how, rows=12, seed=4)
    assert protocol.startswith("valid, first 12 rows, wrapped rows of 32, NELBO")
    assert incomparable(runs["a"].dataset, runs["b"].dataset, "valid") is None
    found = difference(a, b)
    # Random networks: what is lost on a row is the number of its masked tokens, which they share.
    assert found.stderr_rows < 0.3 * found.unpaired and found.rows == 12
    other, _ = runs["b"].by_row(how, rows=12, seed=5)
    assert difference(a, other).stderr_rows > 2 * found.stderr_rows


def replace_batch(run, how):
    """The same evaluation in other batches."""
    return run.by_row(replace(how, batch_size=8), rows=12, seed=4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("longer", "their rows differ: 33 of 32 tokens, and 65 of 16"),
        ("other", "their texts of the valid split differ"),
        ("letters", "their tokenizers differ"),
    ],
)
def test_other_rows_are_not_compared(runs, name, reason):
    found = incomparable(runs["a"].dataset, runs[name].dataset, "valid")
    assert found is not None and reason in found


def test_a_run_without_text_has_no_difference(runs):
    own = runs["a"].experiment.data
    imported = replace(own, source=NoText()).load(runs["a"].folder.data)
    for pair in ((runs["a"].dataset, imported), (imported, runs["a"].dataset)):
        assert "has no valid split" in (incomparable(*pair, "valid") or "")
