"""What was recorded of a component before it had a field, or before records were text."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny

import mdlm.data
import mdlm.models
import mdlm.schedules
from mdlm.config.component_text import from_text, to_text
from mdlm.config.components import UnknownComponent, classes_in, find
from mdlm.config.records import describe, differences, is_same, read, record
from mdlm.data import Bytes, Mixture, Source, TextData, TokenizerConfig, WikiText, Wrap
from mdlm.errors import InputError
from mdlm.experiment import Experiment, load_file
from mdlm.experiment.identity import fingerprint, identity, identity_of, recorded
from mdlm.processes import Masked
from mdlm.schedules import LogLinear, Schedule

FILES = sorted((Path(__file__).parents[2] / "experiments").rglob("*.py"))
EXPERIMENTS = [
    path for path in FILES if "\ndef experiment(" not in path.read_text(encoding="utf-8")
]


def grown(kind, name, default):
    """The class as a later version has it: with one more field, which has a default."""
    later = dataclasses.make_dataclass(
        kind.__name__,
        [(name, type(default), dataclasses.field(default=default))],
        bases=(kind,),
        frozen=True,
        kw_only=True,
    )
    later.__module__ = kind.__module__
    return later


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(TokenizerConfig):
    """A component that no face names."""

    path: str
    lowercase: bool = False

    def build(self, texts, report=None):
        raise NotImplementedError


def experiment(network):
    source = mdlm.data.TextFiles(train="a.txt")
    data = TextData(source=source, tokenizer=Bytes(), packing=Wrap(length=32))
    process = Masked(schedule=mdlm.schedules.LogLinear(eps=0.5))
    return Experiment(name="kept", data=data, network=network, process=process)


def test_a_component_with_one_field_more_equals_the_older_record(monkeypatch):
    older = experiment(mdlm.models.DiT(width=32, heads=2))
    sources = [to_text(older.data.source), repr(older.data.source)]
    records = [record(older), json.loads(json.dumps(describe(older)))]
    kept, name = recorded(older), fingerprint(older)

    for module, kind, field, default in (
        (mdlm.data, "TextFiles", "shuffle", 0),
        (mdlm.models, "DiT", "gain", 1.0),
        (mdlm.schedules, "LogLinear", "offset", ""),
    ):
        monkeypatch.setattr(module, kind, grown(getattr(module, kind), field, default))
    now = experiment(mdlm.models.DiT(width=32, heads=2))
    assert now.data.source.shuffle == 0 and now.network.gain == 1.0

    for text in sources:
        assert is_same(text, now.data.source, Source)
        assert not is_same(text, mdlm.data.TextFiles(train="a.txt", shuffle=1), Source)
        assert not is_same(text, mdlm.data.TextFiles(train="b.txt"), Source)
    assert recorded(now) == kept and fingerprint(now) == name
    changed = dataclasses.replace(now, network=dataclasses.replace(now.network, gain=2.0))
    for values in records:
        assert read(values, Experiment, "config.json").data == now.data
        there = identity_of(values, "config.json")
        assert not differences(there, identity(now))
        assert differences(there, identity(changed)) == ["network.gain: 1.0 there, 2.0 here"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_is_read_from_its_record_and_from_older_ones(path):
    experiment = load_file(path)
    for kept in (record(experiment), describe(experiment)):
        again = json.loads(json.dumps(kept))
        assert read(again, Experiment, "config.json") == experiment
        assert identity_of(again, "config.json") == identity(experiment)
    kept = json.loads(json.dumps(recorded(experiment)))
    assert identity_of(kept, "a checkpoint") == identity(experiment)


def test_the_checkpoint_of_an_old_run_is_known_to_be_of_it():
    old = Path(__file__).parents[1] / "old_runs" / "before_folders"
    whole = json.loads((old / "config.json").read_text())["experiment"]
    kept = json.loads((old / "checkpoints" / "30" / "data" / "metadata").read_text())["run"]
    assert whole["class"] == kept["class"] == "Experiment" and "sampler" not in kept
    experiment = read(whole, Experiment, "config.json")
    assert not differences(identity_of(kept, "a checkpoint"), identity(experiment))
    other = dataclasses.replace(experiment, seed=1)
    assert differences(identity_of(kept, "a checkpoint"), identity(other)) == [
        "seed: 0 there, 1 here"
    ]


def test_classes_of_an_experiment_at_hand_need_not_be_found():
    made = Files(path="a b")
    assert find("Files") is None
    for text in (to_text(made), repr(made), "Files(path='a b', lowercase=False)"):
        assert is_same(text, made, TokenizerConfig)
        assert not is_same(text, dataclasses.replace(made, lowercase=True), TokenizerConfig)
        with pytest.raises(UnknownComponent, match="there is no .*Files"):
            from_text(text, TokenizerConfig)
    assert not is_same(to_text(made), Bytes(), TokenizerConfig)
    assert not is_same("", Bytes(), TokenizerConfig)


def test_a_class_of_the_name_of_another_is_not_taken_for_it():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class LogLinear2(LogLinear):
        pass

    LogLinear2.__name__ = "LogLinear"
    own, theirs = LogLinear2(), LogLinear()
    assert to_text(own) == f"{__name__}.LogLinear()" and to_text(theirs) == "LogLinear()"
    assert from_text(to_text(theirs), Schedule, known=classes_in(own)) == theirs
    assert from_text(to_text(own), Schedule, known=classes_in(own)) == own
    assert not is_same(to_text(theirs), own, Schedule)
    with pytest.raises(UnknownComponent):
        from_text(to_text(own), Schedule)


def test_differences_are_named():
    a = tiny.experiment(Path("a.txt"))
    part = dataclasses.replace(a.data, source=dataclasses.replace(a.data.source, clean=WikiText()))
    b = dataclasses.replace(a, data=Mixture(parts=(a.data, part), weights=(1.0, 2.0)))
    c = dataclasses.replace(b, data=Mixture(parts=(a.data, a.data), weights=(1.0, 2.0)))
    assert differences(identity(b), identity(c)) == [
        "data.parts[1].source.clean: WikiText() there, None here"
    ]
    (whole,) = differences(identity(a), identity(b))
    assert whole.startswith("data: TextData(source=") and "there, Mixture(parts=(" in whole
    assert not differences(identity(a), identity(dataclasses.replace(a, name="other")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "'x'"}, "config.json: missing data, network"),
        ({"nam": "'x'"}, "config.json: Experiment has no nam"),
        ({"name": "x"}, "config.json: name=x: expected text"),
        ({"network": "DiT(widht=3)"}, "DiT has no widht; did you mean width?"),
        ({"name": 3}, "config.json: Experiment has no name"),
        ({"class": "Experiment", "network": {"class": "Dit"}}, "there is no Dit; did you mean DiT"),
    ],
)
def test_records_that_cannot_be_read_are_refused(values, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")) as caught:
        read(values, Experiment, "config.json")
    assert "\n" not in str(caught.value)


def test_data_are_compared_without_their_stores():
    data = TextData(
        source=tiny.experiment(Path("a")).data.source, tokenizer=Bytes(), packing=Wrap(length=8)
    )
    a = tiny.experiment(Path("a"), data=dataclasses.replace(data, store="here"))
    b = tiny.experiment(Path("a"), data=dataclasses.replace(data, store="there"))
    assert identity(a) == identity(b) and fingerprint(a) == fingerprint(b)
    parts = [dataclasses.replace(x, data=Mixture(parts=(x.data,), weights=(1.0,))) for x in (a, b)]
    assert fingerprint(parts[0]) == fingerprint(parts[1])
