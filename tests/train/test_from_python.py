"""Training from Python: what trains can be opened."""

from dataclasses import dataclass, replace

import pytest
import tiny

import mdlm
from mdlm.errors import InputError
from mdlm.experiment.experiment import refuse_others
from mdlm.models import DiT
from mdlm.samplers import Ancestral


@pytest.fixture
def experiment(tmp_path):
    return tiny.experiment(tiny.write_text(tmp_path / "text.txt"))


def test_a_run_trained_from_python_is_opened_and_sampled(experiment, tmp_path):
    events = []
    path = mdlm.train(
        experiment, tmp_path / "run", settings={"train.steps": 3}, on_event=events.append
    )
    assert path == tmp_path / "run" and events[-1].step == 3
    run = mdlm.load(path)
    assert run.step == 3 and run.experiment.train.steps == 3
    assert len(run.generate(length=8, steps=2).texts[0].tokens) == 8
    assert mdlm.train(experiment, path, settings={"train.steps": 5}) == path  # goes on
    assert mdlm.load(path).step == 5


@pytest.mark.slow
def test_a_file_is_trained_with_its_own_components(experiment, tmp_path):
    text = tiny.FILE.format(text=str(tmp_path / "text.txt")).replace("DiT(width", "Mine(width")
    own = "import dataclasses\n@dataclasses.dataclass(frozen=True, kw_only=True)\n"
    own += "class Mine(DiT):\n    pass\n"
    (tmp_path / "mine.py").write_text(text.replace("experiment = ", own + "experiment = ", 1))
    path = mdlm.train(tmp_path / "mine.py", tmp_path / "run", settings={"train.steps": "2"})
    assert mdlm.load(path, trust=True).step == 2


@dataclass(frozen=True, kw_only=True)
class Own(DiT):
    """A network that no package declares."""


@dataclass(frozen=True, kw_only=True)
class Holder(Ancestral):
    anything: object = None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network": Own(width=32, depth=1, heads=2)},
            "there is no .*Own.*, so a run of it could not be opened: train from an experiment file",
        ),
        (
            {"sampler": Holder(anything={"a": 1})},
            "sampler: anything: .*as text.*frozen",
        ),
        ({"sampler": Ancestral(hook=print)}, "the function print cannot be written as text"),
    ],
)
def test_what_could_not_be_opened_is_not_trained(experiment, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        mdlm.train(replace(experiment, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_arrays_and_classes_that_are_not_frozen_are_told(experiment, tmp_path):
    import numpy as np

    with pytest.raises(InputError, match="cannot be written as text.*; a component is a frozen"):
        mdlm.train(replace(experiment, sampler=Holder(anything=np.ones(3))), tmp_path / "run")

    @dataclass
    class Loose:
        width: int = 3

    with pytest.raises(InputError, match="Loose.* is not frozen, so no run can record it"):
        mdlm.train(replace(experiment, sampler=Holder(anything=Loose())), tmp_path / "run")
    object.__setattr__(experiment, "network", Loose())  # as where nobody checks the annotations
    with pytest.raises(InputError, match="network=.*: expected"):
        refuse_others(experiment)
