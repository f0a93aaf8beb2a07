"""Typed overrides by dotted name."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import tiny

from mdlm.config.overrides import apply, names
from mdlm.data import Wrap
from mdlm.errors import InputError
from mdlm.models import BlockDiT, DiT
from mdlm.objectives import BlockNelbo
from mdlm.optim import Muon
from mdlm.processes import Masked
from mdlm.schedules import Cosine
from mdlm.times import IID


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"
    files: str | tuple[str, ...] | None = None

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate={self.rate} is negative")


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int = 10
    on: bool = False
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "2_000", 2000),
        ("steps", "1e3", 1000),
        ("steps", "9007199254740993", 9007199254740993),  # 2^53 + 1, which no float is
        ("steps", "1.2e1", 12),
        ("steps", " 007 ", 7),
        ("steps", "-3", -3),
        ("inner.rate", "inf", float("inf")),
        ("inner.files", "('a,b.txt', 'c.txt')", ("a,b.txt", "c.txt")),
        ("on", "true", True),
        ("on", "no", False),
        ("inner.rate", "3e-4", 3e-4),
        ("inner.kind", "b", "b"),
        ("inner.files", "one.txt", "one.txt"),
        ("inner.files", "one.txt,two.txt", ("one.txt", "two.txt")),
        ("inner.files", "none", None),
    ],
)
def test_values_are_read_as_their_type(name, text, value):
    found = {n: v for n, _, v in names(apply(Outer(), [(name, text)]))}
    assert found[name] == value and type(found[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("stpes", "1", "did you mean --steps?"),
        ("inner.rat", "1", "did you mean --inner.rate?"),
        ("rate", "1", "did you mean --inner.rate?"),
        ("steps.more", "1", "no such setting"),
        ("inner.rate", "nan", "expected a number"),
        ("steps", "ten", "expected a whole number"),
        ("steps", "1.5", "expected a whole number"),
        ("on", "maybe", "expected true or false"),
        ("inner.kind", "c", "expected one of a, b"),
        ("inner.rate", "-1", "rate=-1.0 is negative"),
        ("inner", "1", r"--inner 1: expected .*Inner\(...\)"),
        ("steps", "1e-3", "expected a whole number"),
        ("steps", "1e999999999", "expected a whole number"),
        ("steps", "nan", "expected a whole number"),
    ],
)
def test_mistakes_are_named(name, text, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")) as caught:
        apply(Outer(), [(name, text)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lr", "optimizer.learning_rate"),
        ("wd", "optimizer.weight_decay"),
        ("batch-size", "train.batch_size"),
        ("lerning_rate", "optimizer.learning_rate"),
    ],
)
def test_what_others_call_a_setting_is_answered_with_ours(name, near):
    with pytest.raises(InputError, match=rf"did you mean --{near}\?"):
        apply(tiny.experiment(Path("text.txt")), [(name, "1")])


def test_dashes_are_underscores():
    experiment = tiny.experiment(Path("text.txt"))
    found = apply(experiment, [("train.batch-size", "4"), ("optimizer.learning-rate", "0.5")])
    assert found.train.batch_size == 4 and found.optimizer.learning_rate == 0.5


def test_later_overrides_win():
    assert apply(Outer(), [("steps", "1"), ("steps", "2")]).steps == 2


@dataclass(frozen=True, kw_only=True)
class Pair:
    low: int = 0
    high: int = 1
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self):
        if self.low >= self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}")


def test_values_are_checked_together_when_all_are_assigned():
    for order in ([("low", "5"), ("high", "9")], [("high", "9"), ("low", "5")]):
        assert apply(Pair(), order) == Pair(low=5, high=9)
    with pytest.raises(InputError, match="^--low 5 --high 4: low=5 is not below high=4$"):
        apply(Pair(), [("low", "5"), ("high", "4")])
    with pytest.raises(InputError, match="^--inner.rate -1: rate=-1.0 is negative$"):
        apply(Pair(), [("inner.rate", "-1"), ("low", "-1")])


def test_a_component_is_replaced_by_its_text_and_then_a_value_of_it():
    experiment = tiny.experiment(Path("text.txt"))
    changes = [
        ("network", "BlockDiT(width=64, depth=1, heads=2, block_size=8)"),
        ("objective", "BlockNelbo(block_size=4)"),
        ("sampler", "BlockByBlock(block_size=4)"),
        ("network.block_size", "4"),  # and only now do they fit each other
        ("data.packing", "Wrap(length=64)"),
        ("process", "Masked(schedule=Cosine)"),
        ("process.schedule.eps", "0"),
        ("evaluation.objective", "BlockNelbo(block_size=4, high=1)"),
        ("optimizer", "Muon"),
        ("objective.times", "IID"),
    ]
    found = apply(experiment, changes)
    assert found.network == BlockDiT(width=64, depth=1, heads=2, block_size=4)
    assert found.process == Masked(schedule=Cosine(eps=0.0)) and found.optimizer == Muon()
    assert found.data == replace(experiment.data, packing=Wrap(length=64))
    assert found.objective == BlockNelbo(block_size=4, times=IID())
    assert apply(experiment, [("network.width", "8"), ("network", "DiT")]).network == DiT()
    with pytest.raises(InputError, match="network=BlockDiT.* attends to a noised block"):
        apply(experiment, changes[:1])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("process", "Masked(schedule=Nelbo())", "schedule=Nelbo(): expected ChangeOfVariables("),
        ("process", "Nelbo()", "--process Nelbo(): expected Hybrid(...) or LogSNRHybrid(...) or"),
        ("process", "Maskd()", "there is no Maskd; did you mean Masked?"),
        ("process", "zzz", "there is no zzz; choose one of Hybrid, LogSNRHybrid, Masked, Uniform"),
        ("process", "Process()", "expected Hybrid(...)"),
        ("process", "Masked(", "expected Hybrid(...)"),
        ("data", "Wrap(length=3)", "TextData(...) or Mixture(...)"),
        ("data.packing", "Wrap()", "Wrap(length=...) must be given, it has no default"),
        ("data.packing", "Wrap(length=1)", "length=1: must be at least 3"),
        ("objective.time", "IID", "did you mean --objective.times?"),
        ("objective.times", "IID(rate=1)", "IID has no rate"),
        ("objective.times", "IID(1)", "IID takes no values"),
        ("sampler", "Ancestral(hook=print)", "hook=print: expected a function, which cannot be"),
        ("sampler.hook", "print", "expected a function, which cannot be written as text or none"),
    ],
)
def test_components_that_do_not_fit_are_refused_in_one_line(name, text, message):
    with pytest.raises(InputError) as caught:
        apply(tiny.experiment(Path("text.txt")), [(name, text)])
    said = str(caught.value)
    assert said.startswith(f"--{name}") and message in said and "\n" not in said
