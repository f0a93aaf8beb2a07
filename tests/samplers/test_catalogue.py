"""Samplers written as text."""

import dataclasses
from pathlib import Path

import pytest

import mdlm.samplers
from mdlm.errors import InputError
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.base import Sampler
from mdlm.samplers.blocks import BlockByBlock
from mdlm.samplers.catalogue import PARTS, SAMPLERS, described, from_text, to_text


def test_a_text_is_the_sampler_it_says():
    assert from_text("Ancestral") == Ancestral()
    assert from_text(" Ancestral(steps=7, top_p=0.9, last='argmax') ") == Ancestral(
        steps=7, top_p=0.9, last="argmax"
    )
    assert from_text("Parallel(rule=Threshold)") == from_text("Parallel(rule=Threshold())")
    assert from_text("Ancestral(temperature=1)").temperature == 1
    assert from_text("BlockByBlock(block_size=4)") == BlockByBlock(block_size=4)


@pytest.mark.parametrize("kind", SAMPLERS, ids=lambda kind: kind.__name__)
def test_what_a_sampler_prints_as_can_be_read_again(kind):
    needed = {
        field.name: 4
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    made = kind(**needed, top_p=0.5)
    assert from_text(repr(made)) == made
    assert from_text(to_text(made)) == made
    assert "top_p=0.5" in to_text(made) and "top_k" not in to_text(made)


def test_parts_are_written_out_too():
    made = from_text("Parallel(rule=Threshold(tau=0.5), temperature=Annealed(first=1, last=0))")
    assert from_text(to_text(made)) == made
    assert to_text(made) == (
        "Parallel(temperature=Annealed(first=1, last=0), rule=Threshold(tau=0.5))"
    )


def test_every_sampler_is_in_the_catalogue():
    """Each class of the package that can be used is named, and described."""
    found = set()
    for path in Path(mdlm.samplers.__file__).parent.glob("*.py"):
        module = __import__(f"mdlm.samplers.{path.stem}", fromlist=["x"])
        for value in vars(module).values():
            is_own = getattr(value, "__module__", "") == module.__name__
            if is_own and isinstance(value, type) and issubclass(value, Sampler):
                found.add(value)
    usable = {kind for kind in found if not getattr(kind, "__abstractmethods__", None)}
    assert usable == set(SAMPLERS)
    for kind in (*SAMPLERS, *PARTS):
        assert f"{kind.__name__}(" in described()
    assert "steps=128" in described()


def test_defaults_of_its_own_are_told():
    lines = described().splitlines()
    (editing,) = [line for line in lines if line.startswith("Editing(")]
    (ancestral,) = [line for line in lines if line.startswith("Ancestral(")]
    assert "temperature=0.0" in editing and "temperature" not in ancestral
    assert "temperature=1.0" in lines[-1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Ancestrl(steps=3)", "there is no Ancestrl; did you mean Ancestral?"),
        ("Ancestral(step=3)", "Ancestral has no step; did you mean steps?"),
        ("Ancestral(3)", "takes its values by name"),
        ("Ancestral(steps=0)", "steps=0 is below 1"),
        ("Ancestral(steps=open('x'))", "there is no open"),
        ("Ancestral(steps=1 + 1)", "neither a value nor"),
        ("Ancestral(**{})", "Ancestral has no None"),
        ("Ancestral(", "not of the form"),
        ("BlockByBlock()", "block_size"),
        ("7", "not a sampler"),
        ("Ancestrl", "neither a value nor"),
        ("Ancestral(steps=2.5)", "steps=2.5: expected a whole number"),
        ("Ancestral(steps={[]: 1})", "neither a value nor"),
        ("Ancestral(steps=True)", "expected a whole number"),
        ("Ancestral(top_p='much')", "top_p='much': expected a number"),
        ("Ancestral(top_k=1.5)", "top_k=1.5: expected a whole number"),
        ("Ancestral(banned=(1.5,))", "expected (a whole number, ...)"),
        ("Ancestral(banned=3)", "expected (a whole number, ...)"),
        ("Ancestral(grid='linear')", "expected 'uniform' or 'cosine'"),
        ("Ancestral(hook=3)", "hook=3: expected"),
        ("Ancestral(guidance=3)", "expected ClassifierFree(...) or None"),
        ("Parallel(rule='Threshold')", "expected FixedCount(...) or Share(...)"),
        ("Parallel(rule=Ancestral())", "expected FixedCount(...)"),
        ("Parallel(rule=Share(steps=3.5))", "steps=3.5: expected a whole number"),
        ("SelfCorrection(first=3)", "first=3: expected Ancestral(...) or"),
    ],
)
def test_texts_that_say_none_are_refused(text, reason):
    with pytest.raises(InputError) as caught:
        from_text(text)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
