"""The bound by noise level: its parts add up, its errors are right, the table is readable."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from made_run import made

from mdlm.errors import InputError
from mdlm.evals.levels import by_level, levels_of, metrics_of, ratio, table_of
from mdlm.models import BlockDiT, CausalTransformer
from mdlm.objectives import Autoregressive, BlockNelbo, DiscreteNelbo, Nelbo, UniformNelbo
from mdlm.parameterizations import Mean
from mdlm.processes import Uniform
from mdlm.samplers import BlockByBlock, LeftToRight, Reverse
from mdlm.types import LossTerms

SIZES = dict(width=16, depth=1, heads=2)
UNIFORM = dict(
    process=Uniform(), parameterization=Mean(), objective=UniformNelbo(), sampler=Reverse(steps=4)
)
BLOCKS = dict(
    network=BlockDiT(**SIZES, cond_dim=16, block_size=8),
    objective=BlockNelbo(block_size=8),
    sampler=BlockByBlock(block_size=8),
)


def terms(t, bound, weight=None):
    b, l = bound.shape
    scored = jnp.ones((b, l)) if weight is None else (weight != 0).astype(jnp.float32)
    return LossTerms(
        total=bound.sum(),
        values=bound,
        bound=bound,
        count=jnp.ones((b, l)),
        scored=scored,
        scalars={},
        t=t,
        weight=weight,
    )


def test_rows_are_counted_at_their_time():
    """Levels are open below and closed above: the step to t = k / n, and t_min, are in the k-th."""
    t = jnp.array([[1e-9], [0.25], [0.2500001], [0.5], [0.51], [1.0]], jnp.float32)
    bound = jnp.arange(1.0, 13.0).reshape(6, 2)
    weight = jnp.tile(jnp.array([[2.0, 0.0]]), (6, 1))
    found = np.asarray(by_level(terms(t, bound * (weight != 0), weight), 4))
    assert found.shape == (6, 4, 4)
    np.testing.assert_array_equal(found[..., 3].argmax(axis=1), [0, 0, 0, 1, 2, 3])
    np.testing.assert_allclose(found.sum(axis=1)[:, 0], bound[:, 0])
    np.testing.assert_allclose(found.sum(axis=1)[:, 1], bound[:, 0] / 2)
    np.testing.assert_allclose(found.sum(axis=1)[:, 2:], [[1, 2]] * 6)
    by_token = by_level(terms(jnp.array([[0.1, 0.9]]), jnp.array([[3.0, 5.0]])), 2)
    np.testing.assert_allclose(by_token[0, :, 0], [3.0, 5.0])
    assert np.isnan(by_token[0, :, 1]).all()
    for steps in (3, 7, 10, 1000):  # float32's k / T, in as many levels
        k = jnp.arange(1, steps + 1)[:, None]
        at = by_level(terms((k / steps).astype(jnp.float32), jnp.ones((steps, 1))), steps)
        np.testing.assert_array_equal(at[..., 3].argmax(axis=1), np.arange(steps))


def evaluated(folder, **changes):
    text = tiny.write_text(folder / "text.txt", words=1200)
    settings = {"network": tiny.DiT(**SIZES, cond_dim=16), **changes}
    run = made(folder / "run", tiny.experiment(text, **settings))
    metrics, levels = run.by_level(run.experiment.evaluation, levels=5)
    return run, metrics, levels


@pytest.mark.parametrize(
    ("changes", "has_entropy"),
    [
        ({"objective": Nelbo(t_min=0.05)}, True),
        ({"objective": DiscreteNelbo(steps=5)}, True),
        (BLOCKS, True),
        (UNIFORM, False),
    ],
    ids=["nelbo", "discrete", "blocks", "uniform"],
)
def test_parts_add_up_to_the_bound(tmp_path, changes, has_entropy):
    run, metrics, levels = evaluated(tmp_path, **changes)
    per_token = metrics[0]
    assert per_token.name == "nats per token"
    assert sum(one.nats.value for one in levels) == pytest.approx(per_token.value, rel=1e-6)
    assert run.perplexity(run.experiment.evaluation)[0].value == pytest.approx(per_token.value)
    assert [one.low for one in levels] == [0, 0.2, 0.4, 0.6, 0.8]
    for one in levels:
        assert (one.cross_entropy is not None) == has_entropy
        assert one.nats.stderr > 0 and one.nats.stderr_rows > 0
        if has_entropy:
            # A random network knows nothing: about log(256) nats at every level.
            assert 4 < one.cross_entropy.value < 8
            at = one.high if "DiscreteNelbo" in str(changes) else (one.low + one.high) / 2
            assert one.masked == pytest.approx(at, abs=0.05)
    assert max(map(len, table_of(levels).splitlines())) <= 80


def test_exact_likelihoods_have_no_levels(tmp_path):
    with pytest.raises(InputError, match="a likelihood without noise"):
        evaluated(
            tmp_path,
            network=CausalTransformer(**SIZES),
            objective=Autoregressive(),
            sampler=LeftToRight(),
        )


def test_errors_of_ratios_are_the_errors_made():
    """Repeats with a made-up spread of rows and of passes: claimed errors against the real ones."""
    random = np.random.default_rng(1)
    passes, rows, found, again = 6, 80, [], []
    hard = random.gamma(4, 1, rows)
    for _ in range(400):
        masked = random.integers(5, 20, (passes, rows)).astype(float)
        nats = masked * (hard + random.normal(0, 0.5, (passes, rows)))
        one = ratio(nats, masked)
        found.append((one.value, one.stderr))
        other = random.gamma(4, 1, rows)
        anew = ratio(np.repeat((masked[:1] * other), passes, axis=0), masked[:1].repeat(passes, 0))
        again.append((anew.value, anew.stderr_rows))
    for kept in (np.array(found), np.array(again)):
        real = kept[:, 0].std(ddof=1)
        assert np.sqrt(np.square(kept[:, 1]).mean()) == pytest.approx(real, rel=0.15)
    assert ratio(np.ones((1, 1)), np.ones((1, 1))).stderr is None


def test_a_level_without_tokens():
    sums = np.zeros((2, 3, 2, 4))
    sums[:, :, 0] = [[3.0, 1.5, 2.0, 4.0]]
    first, second = levels_of(sums)
    assert (first.nats.value, first.cross_entropy.value, first.masked) == (0.75, 0.75, 0.5)
    assert (second.nats.value, second.cross_entropy, second.masked) == (0.0, None, 0.0)
    assert table_of([first, second]).splitlines()[-1].split() == ["all", "0.7500"]


def test_levels_are_kept_as_metrics():
    """Two passes, two rows, two levels: one with masked tokens, one without."""
    sums = np.zeros((2, 2, 2, 4))
    sums[:, :, 1] = [[[6.0, 3.0, 2.0, 4.0], [10.0, 5.0, 2.0, 4.0]]] * 2
    added, *rest = metrics_of(levels_of(sums), "valid")
    assert [m.name for m in (added, *rest)] == [
        "times (0, 0.5]: nats per token added",
        "times (0.5, 1]: nats per token added",
        "times (0.5, 1]: nats per masked token",
    ]
    assert [(m.value, m.n) for m in (added, *rest)] == [(0.0, 8.0), (2.0, 8.0), (2.0, 4.0)]
    assert rest[0].stderr == 0 and rest[0].stderr_rows == pytest.approx(0.5)
    assert {m.protocol for m in rest} == {"valid"}
