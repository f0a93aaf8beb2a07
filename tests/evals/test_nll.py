"""The evaluator's arithmetic: every token once, standard errors that are right, baselines."""

import math

import numpy as np
import pytest
from held import Held

from mdlm.data.loader import evaluation_batches
from mdlm.data.rows.base import Rows
from mdlm.evals.ngrams import Baselines
from mdlm.evals.nll import Metric, summarise, table
from mdlm.evals.scorer import passes


def rows(n: int, l: int = 4) -> Rows:
    mask = np.arange(l)[None] < (1 + np.arange(n) % l)[:, None]
    return Rows(
        tokens=np.tile(np.arange(n, dtype=np.int32)[:, None], (1, l)),
        loss_mask=mask,
        is_valid=np.ones_like(mask),
    )


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_every_token_is_scored_once_whatever_the_batch(batch_size):
    part = rows(7)
    seen = []

    def score(number, batch):
        seen.append(batch["row"])
        count = batch["loss_mask"].sum(-1)
        text = np.stack([2 * count, count], axis=-1)
        bound = batch["tokens"][:, 0] * count * (number + 1.0)
        levels = bound[:, None, None] * np.arange(8).reshape(2, 4)
        return bound, count, text, levels, batch["tokens"][:, :2] + 0.5 * number

    told = []
    bound, count, text, levels, answers = passes(
        score,
        lambda: evaluation_batches(Held(part), batch_size),
        count=2,
        rows=7,
        seed=0,
        report=lambda done, total: told.append((done, total)),
        levels=2,
    )
    assert told[-1] == (14, 14)
    expected = np.arange(7) * part.loss_mask.sum(-1)
    np.testing.assert_array_equal(count, np.tile(part.loss_mask.sum(-1), (2, 1)))
    np.testing.assert_allclose(bound, [expected, 2 * expected])
    np.testing.assert_allclose(levels, bound[..., None, None] * np.arange(8).reshape(2, 4))
    np.testing.assert_array_equal(answers, part.tokens[:, :2] + 0.5)  # of the last pass
    np.testing.assert_array_equal(text, part.loss_mask.sum() * np.array([2, 1]))


def test_strata_are_dealt_at_random_and_each_once():
    dealt: dict[int, list] = {0: [], 1: []}

    def score(number, batch):
        used = batch["loss_mask"].any(-1)
        dealt[number].extend(batch["row"][used].tolist())
        b = len(used)
        levels, answers = np.zeros((b, 0, 4)), np.zeros((b, 0))
        return np.zeros(b), batch["loss_mask"].sum(-1), np.zeros((b, 2)), levels, answers

    part = rows(64)
    passes(score, lambda: evaluation_batches(Held(part), 16), count=2, rows=64, seed=0)
    assert sorted(dealt[0]) == sorted(dealt[1]) == list(range(64))
    assert dealt[0] != dealt[1] and dealt[0] != list(range(64))


def test_summary_in_all_units():
    count = np.full((4, 10), 5.0)
    bound = np.full((4, 10), 10.0) + np.array([[0.1], [-0.1], [0.3], [-0.3]])
    found = {m.name: m for m in summarise(bound, count, protocol="p", units={"byte": 25})}
    assert found["nats per token"].value == pytest.approx(2.0)
    assert found["bits per byte"].value == pytest.approx(100 / (25 * math.log(2)))
    assert found["perplexity"].value == pytest.approx(math.exp(2.0))
    passes = bound.sum(1)
    noise = passes.std(ddof=1) / 2 / 50
    assert found["nats per token"].stderr == pytest.approx(noise)
    assert found["perplexity"].stderr == pytest.approx(math.exp(2.0) * noise)
    assert found["nats per token"].stderr_rows == pytest.approx(0, abs=1e-12)
    assert found["nats per token"].n == 50 and found["nats per token"].protocol == "p"


def test_standard_errors_cover_the_truth():
    """Repeats of a made-up evaluation: the errors claimed are the errors made."""
    rng = np.random.default_rng(0)
    values, noise, spread = [], [], []
    for _ in range(400):
        count = rng.integers(1, 9, 50).astype(float)
        own = count * (2 + 0.5 * rng.normal(size=50))
        bound = own + rng.normal(size=(6, 50))
        metric = summarise(bound, np.tile(count, (6, 1)), protocol="")[0]
        values.append(metric.value)
        noise.append(metric.stderr)
        spread.append(metric.stderr_rows)
    # Over sequences contains both kinds of error here, since noise is independent by row too.
    assert np.std(values) == pytest.approx(np.mean(spread), rel=0.1)
    assert np.mean(noise) == pytest.approx(math.sqrt(50 / 6) / (50 * 4.5), rel=0.1)


def test_exact_scores_have_no_noise():
    metric = summarise(np.ones((1, 5)), np.ones((1, 5)), protocol="", is_exact=True)[0]
    assert metric.stderr is None and metric.stderr_rows is not None
    with pytest.raises(ValueError, match="no token"):
        summarise(np.zeros((1, 5)), np.zeros((1, 5)), protocol="")


def test_ngrams_against_a_direct_count():
    rng = np.random.default_rng(0)
    chain = np.array([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8], [0.7, 0.0, 0.3]])
    tokens = np.zeros(6000, np.int32)
    for i in range(1, len(tokens)):
        tokens[i] = rng.choice(3, p=chain[tokens[i - 1]])
    part = tokens.reshape(-1, 20)
    train, valid = part[:250], part[250:]
    mask = np.ones_like(valid, bool)
    mask[0, 10:] = False
    tables = Baselines(train, np.ones_like(train, bool), 3)
    found = tables.nats(valid, mask)
    parts = [tables.nats(valid[at], mask[at]) for at in (slice(7), slice(7, None))]
    for name in found:
        assert found[name] == pytest.approx(sum(part[name] for part in parts))
    p = (np.bincount(train.ravel(), minlength=3) + 1) / (train.size + 3)
    assert found["unigram"] == pytest.approx(-np.log(p[valid])[mask].sum())
    assert found["bigram"] < 0.75 * found["unigram"]
    # Every p(. | y) sums to one: nothing scores better than the truth on plenty of data.
    stationary = np.linalg.matrix_power(chain, 50)[0]
    entropy = -(stationary[:, None] * chain * np.log(np.maximum(chain, 1e-12))).sum()
    assert found["bigram"] / mask.sum() > 0.9 * entropy


def test_a_table_has_each_protocol_once_and_fits_a_terminal():
    protocol = "valid, wrapped rows of 1024, " + "NELBO without the reconstruction term, " * 3
    found = [
        Metric("nats per token", 4.1624, 0.0173, 0.0478, 100, protocol),
        Metric("perplexity", 123456.7891, None, 3.0677, 100, protocol),
        Metric("unigram nats per token", 5.9147, None, None, 100, "valid, counts"),
    ]
    text = table(found)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and text.count("wrapped rows") == 1
    assert lines[-5:] == [
        "                                          +- noise   +- sequences",
        "  nats per token                 4.1624     0.0173         0.0478",
        "  perplexity                123456.7891                    3.0677",
        "valid, counts:",
        "  unigram nats per token         5.9147",
    ]
    assert str(found[2]) == "\n".join(lines[-2:])
