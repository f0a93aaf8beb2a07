"""Stages of training: another objective, or the network in another form, on the way."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from mdlm.config import records
from mdlm.data import Wrap
from mdlm.errors import InputError
from mdlm.experiment import Experiment, Model, Stage, Training
from mdlm.experiment.stages import at
from mdlm.models import Decoder
from mdlm.objectives import (
    BlockNelbo,
    Classification,
    Nelbo,
    Preference,
    Rollouts,
    WeightedPolicy,
    Windowed,
)
from mdlm.run import load
from mdlm.runs.weights import named
from mdlm.samplers import Ancestral, BlockByBlock
from mdlm.train.events import Entered, Evaluated, Stepped
from mdlm.train.loop import Trainer
from mdlm.train.session import Session

NETWORK = Decoder(width=16, depth=1, heads=2, kv_heads=1, shift=True)
BLOCKS = replace(NETWORK, attends="blocks", block_size=2)
TRAIN = Training(
    steps=5, batch_size=8, ema_decay=0.9, log_every=1, checkpoint_every=3, eval_rows=8, keep=5
)
STAGES = (
    Stage(until=0.4, network=BLOCKS, objective=BlockNelbo(block_size=2)),
    Stage(until=0.8, objective=Windowed(ahead=2)),
)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    text = tiny.write_text(tmp_path_factory.mktemp("text") / "text.txt", words=600)
    made = tiny.experiment(text, train=TRAIN, sampler=Ancestral(steps=1), network=NETWORK)
    data = replace(made.data, packing=Wrap(length=8, row_specials=False))
    return replace(made, data=data)


def trained(experiment, out, stop_at=None):
    session = Session(experiment, out, source="", overrides=[])
    stop = lambda: stop_at is not None and session.step >= stop_at
    return list(session.train(stop))


def arrays(run):
    return {name: np.asarray(a) for name, a in named(run.params).items()}


def test_each_step_trains_its_stage(experiment, tmp_path):
    """As in runs that train one thing alone, from the parameters that the stage before left."""
    events = trained(replace(experiment, stages=STAGES), tmp_path / "run")
    entered = [(e.step, e.number) for e in events if isinstance(e, Entered)]
    assert entered == [(0, 0), (2, 1), (4, 2)]
    text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    losses = {e["step"]: e["loss"] for e in lines if e["kind"] == "train"}
    assert [(e["step"], e["number"]) for e in lines if e["kind"] == "stage"] == [
        (1, 0),
        (3, 1),
        (5, 2),
    ]

    parts = dict(network=BLOCKS, objective=STAGES[0].objective, sampler=BlockByBlock(block_size=2))
    alone = trained(replace(experiment, **parts, train=replace(TRAIN, steps=2)), tmp_path / "alone")
    due = {e.step: e.metrics["loss"] for e in alone if isinstance(e, Stepped)}
    np.testing.assert_allclose([losses[1], losses[2]], [due[1], due[2]], rtol=1e-5)
    run = load(tmp_path / "run")
    assert run.experiment.network == NETWORK and run.experiment.stages == STAGES
    found = [e for e in events if isinstance(e, Evaluated)][-1].metrics[0].protocol
    assert ", NELBO, continuous" in found and "ahead" not in found


@pytest.mark.slow
def test_a_resumed_run_goes_through_the_same_stages(experiment, tmp_path):
    staged = replace(experiment, stages=STAGES)
    trained(staged, tmp_path / "whole")
    trained(staged, tmp_path / "run", stop_at=3)
    events = trained(staged, tmp_path / "run")
    assert [(e.step, e.number) for e in events if isinstance(e, Entered)] == [(3, 1), (4, 2)]
    whole, resumed = (arrays(load(tmp_path / name)) for name in ("whole", "run"))
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value)


def test_a_rewind_at_the_end_of_a_stage_leads_back_into_it():
    """The loss of the last line of a stage is looked at before the next stage is entered."""
    trainer = object.__new__(Trainer)
    trainer.stages, trainer.settings = STAGES, TRAIN
    trainer.made, trainer.stage, trainer.train_step = 2, STAGES[0], lambda *_: None

    def log():
        trainer.made = 1
        return True
        yield

    trainer.log = log
    assert at(STAGES, 2, TRAIN.steps) == STAGES[1]
    assert list(trainer._enter()) == []
    assert trainer.stage == STAGES[0] and trainer.train_step is not None


def test_a_record_has_the_stages(experiment):
    staged = replace(experiment, stages=STAGES)
    assert records.read(records.record(staged), Experiment, "a record") == staged


@pytest.mark.parametrize(
    "stages, words",
    [
        ((Stage(until=0.6), Stage(until=0.6)), "each must end after the one before it"),
        ((Stage(until=0.6, objective=BlockNelbo(block_size=2)),), r"stages\[0\].objective"),
        ((Stage(until=0.6, network=BLOCKS, objective=BlockNelbo(block_size=4)),), "same size"),
        (
            (
                Stage(
                    until=0.6,
                    objective=Nelbo(),
                    network=replace(NETWORK, attends="causal", shift=False),
                ),
            ),
            "attends",
        ),
        (
            (Stage(until=0.6, objective=WeightedPolicy(rollouts=Rollouts(reward="any:reward"))),),
            r"stages\[0\].objective=WeightedPolicy.*own_texts",
        ),
        (
            (Stage(until=0.6, objective=Preference()),),
            r"stages\[0\].objective=Preference.*needs_reference",
        ),
        ((Stage(until=0.6, objective=Classification()),), "predicts classes"),
    ],
)
def test_stages_that_do_not_fit_are_refused(experiment, stages, words):
    with pytest.raises(InputError, match=words):
        replace(experiment, stages=stages)


def test_a_stage_has_the_same_parameters(experiment):
    staged = replace(experiment, stages=(Stage(until=0.6, network=replace(NETWORK, depth=2)),))
    with pytest.raises(InputError, match=r"stages\[0\].network: has other parameters"):
        Model.on(staged, staged.data.load(None))
