"""Components written as text, and text that is read."""

import dataclasses
import importlib
import pkgutil
from typing import Any, Literal

import numpy as np
import pytest
from shipped_files import FILES, loaded

import mdlm
from mdlm.config.catalogue import described, kind_called, kinds
from mdlm.config.component_text import from_text, to_text
from mdlm.config.components import FACES, find, fitting, name_of
from mdlm.errors import InputError
from mdlm.experiment import Experiment, Stage
from mdlm.objectives import Nelbo, Objective, Rollouts, Windowed
from mdlm.samplers import (
    Ancestral,
    Annealed,
    BlockByBlock,
    Classifier,
    Guidance,
    Parallel,
    Rule,
    Sampler,
)
from mdlm.schedules import ARDiffusion, Polynomial, Schedule

SAMPLERS, OBJECTIVES = fitting((Sampler,)), fitting((Objective,))


def sampler(text):
    return from_text(text, Sampler, f"--sampler {text}")


def bare(kind):
    """A component of that class with all fields at their default, and 4, or a part of the field's
    kind, where there is none."""
    parts: dict[str, Any] = {"rollouts": Rollouts(reward="any:reward"), "by": ARDiffusion()}
    needed = {
        field.name: parts.get(field.name, 4)
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return kind(**needed)


def test_a_text_is_the_sampler_it_says():
    assert sampler("Ancestral") == Ancestral()
    made = Ancestral(steps=7, top_p=0.9, last="argmax")
    assert sampler(" Ancestral(steps=7, top_p=0.9, last='argmax') ") == made
    assert sampler("Ancestral(steps=7,\n    top_p=9e-1, last=argmax)") == made
    assert sampler("Parallel(rule=Threshold)") == sampler("Parallel(rule=Threshold())")
    assert type(sampler("Ancestral(temperature=1)").temperature) is float
    assert sampler("Ancestral(banned=[3])").banned == (3,)
    assert sampler("BlockByBlock(block_size=4)") == BlockByBlock(block_size=4)


def test_several_components_need_no_parentheses():
    due = (Stage(until=0.25, objective=Windowed(ahead=1)), Stage(until=0.5))
    for text in (to_text(due), "Stage(until=0.25, objective=Windowed(ahead=1)), Stage(until=0.5)"):
        assert from_text(text, tuple[Stage, ...]) == due
    assert from_text("Stage(until=0.5)", tuple[Stage, ...]) == due[1:]
    assert from_text("()", tuple[Stage, ...]) == ()
    for text, words in (
        ("Stage(until=2.0)", "until=2.0: must be a share"),
        ("Stage(until=0.5), Nelbo()", "expected Stage"),
        ("Stage(until=0.5),,", "expected Stage"),
        ("", "expected Stage"),
    ):
        with pytest.raises(InputError, match=words):
            from_text(text, tuple[Stage, ...])


@pytest.mark.parametrize("kind", [*SAMPLERS, *OBJECTIVES], ids=lambda kind: kind.__name__)
def test_what_is_written_or_printed_can_be_read_again(kind):
    made, family = bare(kind), Sampler if issubclass(kind, Sampler) else Objective
    if family is Sampler:
        made = dataclasses.replace(made, top_p=0.5, banned=(1, 2))
        assert "top_p=0.5" in to_text(made) and "top_k" not in to_text(made)
    assert from_text(repr(made), family) == made
    assert from_text(to_text(made), family) == made
    assert to_text(from_text(to_text(made), family)) == to_text(made)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_can_be_read_again(path):
    experiment = loaded(path)
    text = to_text(experiment)
    assert from_text(text, Experiment) == experiment
    assert from_text(repr(experiment), Experiment) == experiment
    assert "mask_id" not in text and "\n" not in text


def test_parts_are_written_out_too():
    made = sampler("Parallel(rule=Threshold(tau=0.5), temperature=Annealed(first=1, last=0))")
    assert sampler(to_text(made)) == made
    assert to_text(made) == (
        "Parallel(temperature=Annealed(first=1.0, last=0.0), rule=Threshold(tau=0.5))"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values:
    word: str = ""
    maybe: str | None = None
    numbers: tuple[float, ...] = ()
    pairs: tuple[tuple[str, int], ...] = ()
    names: str | tuple[str, ...] = "x"
    kind: Literal["none", "a-b", "1"] = "none"
    size: int = 0
    schedules: tuple[Schedule, ...] = ()
    listed: list[int] = dataclasses.field(default_factory=list)
    inner: "Values | None" = None


@pytest.mark.parametrize(
    "value",
    [
        Values(),
        Values(word='it\'s "so"\n, none', maybe="none"),
        Values(word="None", maybe="", names=("a,b", "(c)"), kind="a-b"),
        Values(numbers=(float("inf"), -float("inf"), 1e-300, 0.1, -0.0)),
        Values(numbers=(0.5,), pairs=(("a", 1), ("b", -2)), names=(), kind="1"),
        Values(listed=[1, 2], size=2**80),
        Values(schedules=(Polynomial(power=2.0),)),
        Values(inner=Values(inner=Values(word="\u00e4 \U0001f600"))),
    ],
)
def test_values_of_every_type_can_be_read_again(value):
    known = {name_of(Values): Values}
    assert from_text(to_text(value), Values, known=known) == value
    assert from_text(repr(value), Values, known={"Values": Values}) == value


def test_numbers_of_numpy_are_written_as_numbers():
    assert to_text(Nelbo(t_min=np.float64(0.1))) == "Nelbo(t_min=0.1)"
    assert to_text((np.int32(3), np.float32(0.5), np.bool_(True))) == "(3, 0.5, True)"


def test_functions_are_refused_in_one_line():
    def warmer(log_p, step, tokens):
        return log_p

    hooked = Parallel(hook=warmer)
    with pytest.raises(InputError, match="^hook: the function warmer cannot be written as text"):
        to_text(hooked)
    assert "hook=<function" in to_text(hooked, lenient=True)
    with pytest.raises(InputError, match="log_p=f: expected a function, which cannot be written"):
        from_text("Classifier(log_p=f)", Guidance)
    with pytest.raises(InputError, match="^guidance: log_p: the function"):
        to_text(Ancestral(guidance=Classifier(log_p=lambda log_x, t: log_x.sum((-1, -2)))))


def test_nothing_is_executed(tmp_path):
    """Neither calls nor attributes, at any depth."""
    file = tmp_path / "made"
    for text in (
        f"Ancestral(steps=open({str(file)!r}, 'w'))",
        f"open({str(file)!r}, 'w')",
        f"Ancestral(grid=(lambda: open({str(file)!r}, 'w'))())",
        f"Ancestral(banned=(__import__('pathlib').Path({str(file)!r}).touch(),))",
        "Ancestral(steps=" * 500 + ")" * 500,
    ):
        with pytest.raises(InputError):
            sampler(text)
    assert not file.exists()


def components_of_the_package():
    """Every concrete class below the kinds, wherever its module is."""
    found = set()
    for module in pkgutil.walk_packages(mdlm.__path__, "mdlm."):
        if module.name.split(".")[1] in {face.split(".")[1] for face in FACES}:
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and value.__module__ == module.name:
                    if issubclass(value, tuple(kinds().values())):
                        found.add(value)
    usable = (kind for kind in found if not kind.__name__.startswith("_"))
    return {kind for kind in usable if not getattr(kind, "__abstractmethods__", None)}


def test_every_component_is_found_by_its_name():
    usable = components_of_the_package()
    assert len(usable) > 60
    missing = {kind.__name__ for kind in usable if find(kind.__name__) is not kind}
    assert not missing
    assert set(fitting(tuple(kinds().values()))) == usable
    names = [name for face in FACES for name in importlib.import_module(face).__all__]
    assert len(names) == len(set(names))  # no name says two things


def test_every_component_is_described():
    for kind in kinds().values():
        text = described(kind)
        for part in fitting((kind,)):
            assert f"\n{part.__name__}(" in f"\n{text}"
        for entry in text.split("\n\n"):  # whole sentences
            assert entry.startswith("every ") or entry.rstrip().endswith((".", ")")), entry
    assert "steps=128" in described(Sampler)
    assert kind_called("Samplers") is Sampler and kind_called("process") is kinds()["process"]
    with pytest.raises(InputError, match="smplers: no kind of component; did you mean sampler"):
        kind_called("smplers")


def test_defaults_of_its_own_are_told():
    lines = described(Sampler, Rule, Annealed, Guidance).splitlines()
    (editing,) = [line for line in lines if line.startswith("Editing(")]
    (ancestral,) = [line for line in lines if line.startswith("Ancestral(")]
    assert "temperature=0.0" in editing and "temperature" not in ancestral
    (shared,) = [line for line in lines if line.startswith("every sampler also has")]
    assert "temperature=1.0" in shared


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Ancestrl(steps=3)", "there is no Ancestrl; did you mean Ancestral?"),
        ("Ancestral(step=3)", "Ancestral has no step; did you mean steps?"),
        ("Ancestral(3)", "takes its values by name"),
        ("Ancestral(steps=0)", "steps=0: must be at least 1"),
        ("Ancestral(steps=open('x'))", "steps=open('x'): expected a whole number"),
        ("Ancestral(steps=1 + 1)", "steps=1 + 1: expected a whole number"),
        ("Ancestral(**{})", "Ancestral has no **"),
        ("Ancestral(", "expected Ancestral(...) or"),
        ("BlockByBlock()", "block_size"),
        ("7", "--sampler 7: expected Ancestral(...) or"),
        ("Ancestrl", "there is no Ancestrl; did you mean Ancestral?"),
        ("Ancestral(steps=2.5)", "steps=2.5: expected a whole number"),
        ("Ancestral(steps={[]: 1})", "expected a whole number"),
        ("Ancestral(steps=True)", "expected a whole number"),
        ("Ancestral(top_p='much')", "top_p='much': expected a number"),
        ("Ancestral(top_k=1.5)", "top_k=1.5: expected a whole number"),
        ("Ancestral(banned=(1.5,))", "a whole number, or several separated by commas"),
        ("Ancestral(banned=3)", "a whole number, or several separated by commas"),
        ("Ancestral(grid='linear')", "expected one of uniform, cosine"),
        ("Ancestral(hook=3)", "hook=3: expected"),
        ("Ancestral(guidance=3)", "expected Classifier(...) or ClassifierFree(...) or none"),
        ("Parallel(rule='Threshold')", "expected EntropyBound(...) or Expected(...)"),
        ("Parallel(rule=Ancestral())", "expected EntropyBound(...)"),
        ("Parallel(rule=Share(steps=3.5))", "steps=3.5: expected a whole number"),
        ("SelfCorrection(first=3)", "first=3: expected Ancestral(...) or"),
    ],
)
def test_texts_that_say_none_are_refused(text, reason):
    with pytest.raises(InputError) as caught:
        sampler(text)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
