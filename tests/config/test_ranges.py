"""Every number of an experiment is in the range of its type."""

from dataclasses import dataclass, field

import pytest

from mdlm.config.ranges import check_ranges
from mdlm.optim import AdamW, Muon


@dataclass(frozen=True, kw_only=True)
class Inner:
    rates: tuple[float, ...] = ()
    most: float = field(default=1.0, metadata={"infinite": True})
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int = 1
    name: str = "a"
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Outer(steps=2**31), "steps=2147483648: must be at most 2147483647"),
        (Outer(steps=-(10**5000)), r"steps=about 2\*\*16610: must be at most"),
        (Outer(inner=Inner(seed=2**63)), "inner.seed="),
        (Outer(inner=Inner(rates=(1.0, float("inf")))), r"inner.rates\[1\]=inf"),
        (Outer(inner=Inner(most=float("nan"))), "inner.most=nan: must be a finite number"),
        (Outer(name="\ud800"), "name=.*surrogate"),
    ],
)
def test_a_value_out_of_range_is_named(value, said):
    with pytest.raises(ValueError, match=said):
        check_ranges(value)


def test_values_in_range():
    check_ranges(Outer(steps=2**31 - 1, name="\udcff", inner=Inner(most=float("inf"), seed=2**62)))


@pytest.mark.parametrize("wrong", [{"eps": 0.0}, {"eps": -1.0}, {"b1": 1.0}, {"b2": -0.1}])
def test_optimizers_refuse_what_divides_by_zero(wrong):
    for kind in (AdamW, Muon):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            kind(**wrong)
    with pytest.raises(ValueError, match="momentum"):
        Muon(momentum=1.0)
