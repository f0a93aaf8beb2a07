"""A schedule that is none is found when it is composed."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mdlm.errors import InputError
from mdlm.evals.nll import summarise
from mdlm.experiment.model import Model
from mdlm.processes import Hybrid, Masked
from mdlm.processes.hybrid import HybridSchedule
from mdlm.schedules import LearnedPolynomial, LogLinear, Schedule, Spindle
from mdlm.schedules.check import fault_of
from mdlm.types import Vocab


@dataclass(frozen=True, kw_only=True)
class Wrong(Schedule):
    """1 - t, but for one fault."""

    fault: str

    def alpha(self, t, x_0=None):
        return {
            "rises": t,
            "begins low": 0.8 * (1 - t),
            "ends high": 1 - 0.7 * t,
            "turns": jnp.where(t < 0.5, 1 - t, 1 - t + 0.3 * jnp.sin(jnp.pi * (2 * t - 1))),
            "leaves": 1 - t - 0.2 * jnp.sin(2 * jnp.pi * t) * (t < 0.5) * 4,
            "is not finite": jnp.where(t > 0.9, jnp.nan, 1 - t),
        }.get(self.fault, 1 - t)

    def one_minus_alpha(self, t, x_0=None):
        return t / 2 if self.fault == "does not add up" else 1 - self.alpha(t, x_0)

    def weight(self, t, x_0=None):
        infinite = self.fault == "weighs infinitely"
        return jnp.where(t > 0.5, jnp.inf if infinite else 1 / t, 1 / t)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("rises", "alpha(0) = 0: must be about 1"),
        ("begins low", "alpha(0) = 0.8: must be about 1"),
        ("ends high", "alpha(1) = 0.3: must be about 0"),
        ("turns", "must fall in t"),
        ("leaves", "must be in [0, 1]"),
        ("is not finite", "must be finite"),
        ("does not add up", "must add up to 1"),
        ("weighs infinitely", "= inf: must be finite and at least 0"),
    ],
)
def test_a_schedule_that_is_none_is_refused_when_composed(tmp_path, fault, words):
    assert words in str(fault_of(Wrong(fault=fault)))
    experiment = tiny.experiment(
        tiny.write_text(tmp_path / "text.txt"), process=Masked(schedule=Wrong(fault=fault))
    )
    with pytest.raises(InputError, match=r"process.schedule=Wrong\(\): "):
        Model(experiment, Vocab(size=260, mask_id=259))


def test_schedules_of_the_package_are_schedules():
    from distribution import SCHEDULES

    vocab = Vocab(size=10, mask_id=9)
    counts = np.arange(10)
    found = [*SCHEDULES.values(), HybridSchedule(p_uniform=0.2), LearnedPolynomial()]
    found += [Spindle(), Hybrid().schedule, Wrong(fault="none"), LogLinear()]
    for schedule in found:
        ready = schedule.with_vocab(vocab)
        ready = ready.with_counts(counts) if ready.needs_counts else ready
        assert fault_of(ready) is None


def test_a_negative_bound_is_no_result():
    with pytest.raises(InputError, match=r"-0.5 nats per token.*at least 0"):
        summarise(np.full((2, 3), -1.0), np.full((2, 3), 2.0), protocol="")
    assert summarise(np.full((2, 3), -1e-6), np.full((2, 3), 2.0), protocol="")[0].value < 0
