"""Runs that end before their last step: no better validation for long, or their time is over."""

import time
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from mdlm.cluster import compiling
from mdlm.data import TextFiles
from mdlm.errors import InputError
from mdlm.evals.scorer import Scorer
from mdlm.experiment import Perplexity, Training
from mdlm.models import DiT
from mdlm.run import load
from mdlm.runs import curves
from mdlm.runs.checkpoints import Checkpoints
from mdlm.train import stopping
from mdlm.train.events import Began, Ended, Evaluated, Stopped
from mdlm.train.loop import Trainer
from mdlm.train.session import Session
from mdlm.train.stopping import Stopping

SETTINGS = Training(
    steps=40, batch_size=16, ema_decay=0.0, log_every=5, eval_every=5, keep=1, sample_length=8
)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(curves, "draw", lambda *_: None)


NETWORK = DiT(width=16, depth=1, heads=1, cond_dim=8)


@pytest.fixture
def worse(tmp_path, monkeypatch):
    """Starts a run whose validation text has bytes that the training text lacks, so that it gets
    worse with every step; `changes` are of its training."""
    monkeypatch.setattr(Session, "_sample", lambda *_: None)
    text = tiny.write_text(tmp_path / "text.txt")
    (tmp_path / "valid.txt").write_text("0123456789" * 40)

    def session(name, **changes):
        e = tiny.experiment(text, train=replace(SETTINGS, **changes), network=NETWORK)
        source = TextFiles(train=str(text), valid=str(tmp_path / "valid.txt"))
        e = replace(e, data=replace(e.data, source=source))
        return Session(e, tmp_path / name, source=tiny.FILE.format(text=str(text)))

    return session


def kept(session) -> list[int]:
    with Checkpoints(session.folder.checkpoints, read_only=True) as checkpoints:
        return checkpoints.steps


def lines(session, *kinds) -> list[dict]:
    """The log, without what depends on the clock."""
    return [
        {k: v for k, v in e.items() if k not in ("time", "data_wait", "mfu") and "_per_" not in k}
        for e in session.folder.log.metrics()
    ]


def same(a, b) -> bool:
    """Whether two runs have the same parameters, bit by bit."""
    trees = [jax.tree.leaves(jax.device_get(load(s.folder.path).params)) for s in (a, b)]
    return all(np.array_equal(x, y) for x, y in zip(*trees, strict=True))


def killed(session, step: int) -> None:
    """Trains to the evaluation of `step`, or the event after it, and no further."""
    events = session.train()
    for event in events:
        if event.step >= step and not isinstance(event, Evaluated):
            break
    events.close()
    # Here the thread that writes the newest checkpoint lives on: the next start must not meet it.
    until = time.monotonic() + 60
    while any("orbax" in path.name for path in session.folder.checkpoints.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_patience_ends_the_run_and_keeps_the_best(worse):
    run = worse("run", patience=2)
    events = list(run.train())
    values = {e.step: e.metrics[0].value for e in events if isinstance(e, Evaluated)}
    assert list(values) == [5, 10, 15] and min(values, key=values.__getitem__) == 5
    ended = events[-1]
    assert isinstance(ended, Ended) and (ended.step, ended.best) == (15, 5)
    assert not any(isinstance(event, Stopped) for event in events)
    assert run.finished and kept(run) == [5, 15]
    said, path = run.closing_words(), run.folder.path
    reason = f"2 validations in a row were no better than step 5 (nats per token {values[5]:.4f})"
    assert f"{path}: step 15 of 40, ended early: {reason}" in said
    assert f"mdlm eval {path} --step 5" in said and f"mdlm sample {path} --step 5" in said


@pytest.mark.slow
def test_an_ended_run_is_left_alone_until_its_patience_is_raised(worse):
    first = worse("run", patience=2)
    list(first.train())
    before = first.folder.log.metrics()
    again = worse("run", patience=2, steps=60)
    events = list(again.train())
    assert [type(event) for event in events] == [Began, Ended] and again.finished
    assert again.folder.log.metrics() == before and kept(again) == [5, 15]
    heading = again.closing_words().splitlines()[0]
    assert "step 15 of 60, ended early: 2 validations" in heading
    assert heading.endswith("to go on: a larger --train.patience")
    further = worse("run", patience=3)
    assert list(further.train())[-1].step == 20 and kept(further) == [5, 20]
    straight = worse("straight", patience=3)
    list(straight.train())
    assert same(further, straight)
    without = worse("run", patience=0, steps=25)
    assert list(without.train())[-1].step == 25
    assert not without.closing_words().startswith(f"{without.folder.path}: step 25 of")


@pytest.mark.slow
@pytest.mark.parametrize("every", [0, 5])
def test_a_killed_run_ends_at_the_same_step(worse, every):
    straight = worse("straight", patience=2, checkpoint_every=every)
    list(straight.train())
    first = worse("run", patience=2, checkpoint_every=every)
    killed(first, 11)
    begins_at = max(kept(first))
    assert begins_at == (10 if every else 5)
    again = worse("run", patience=2, checkpoint_every=every)
    events = list(again.train())
    assert events[0].step == begins_at and isinstance(events[-1], Ended) and events[-1].step == 15
    assert lines(again) == lines(straight) and same(again, straight)
    assert kept(again) == kept(straight) == [5, 15]


@pytest.mark.slow
def test_a_fork_counts_afresh(worse):
    first = worse("run", patience=2)
    list(first.train())
    text = first.folder.path / "experiment.py"
    fork = Session(
        replace(first.experiment, name="fork"),
        first.folder.path.with_name("fork"),
        source=text.read_text(encoding="utf-8"),
        fork=str(first.folder.path),
    )
    ended = list(fork.train())[-1]
    assert isinstance(ended, Ended) and (ended.step, ended.best) == (30, 20)


@pytest.mark.slow
def test_what_is_saved_decides_not_the_log(worse):
    first = worse("run", patience=2, checkpoint_every=5)
    killed(first, 11)
    first.folder.log.metrics_file.unlink()
    again = worse("run", patience=2, checkpoint_every=5)
    assert list(again.train())[-1].step == 15


def test_patience_needs_validations(worse, tmp_path):
    with pytest.raises(ValueError, match=r"train.patience=2: needs train.eval_every"):
        Training(patience=2)
    run = worse("run", patience=2)
    data = run.experiment.data
    source = replace(data.source, valid=None, valid_fraction=0.0, test=str(tmp_path / "valid.txt"))
    scored = Perplexity(split="test")
    e = replace(run.experiment, data=replace(data, source=source), evaluation=scored)
    with pytest.raises(InputError, match="train.patience=2: the data have no validation split"):
        Session(e, tmp_path / "none", source="")
    assert not (tmp_path / "none").exists()


def test_validations_that_are_not_finite_are_no_better():
    one = Stopping(Training(patience=2, eval_every=1), {})
    for step, value in enumerate([float("nan"), 3.0, float("nan"), 3.0]):
        assert one.why == ""
        one.validated(step, {"nats per token": value})
    assert one.best == (1, 3.0) and "no better than step 1" in one.why
    none = Stopping(Training(patience=1, eval_every=1), {})
    none.validated(7, {"nats per token": float("inf")})
    assert none.best is None and "1 validation in a row was not finite" in none.why


def test_another_metric_is_counted_afresh():
    one = Stopping(Training(patience=1, eval_every=1), {})
    one.validated(1, {"nats per token": 1.0})
    one.validated(2, {"nats per token": 2.0})
    memory = one.memory
    assert Stopping(Training(patience=1, eval_every=1), memory).why == one.why != ""
    other = Stopping(Training(patience=1, eval_every=1, best="perplexity"), memory)
    assert other.why == "" and other.best is None


def test_unknown_metrics_are_refused_before_anything_is_written(worse, tmp_path):
    with pytest.raises(InputError, match=r"train.best='perplexit': .* did you mean perplexity\?"):
        worse("run", best="perplexit")
    with pytest.raises(InputError, match=r"'bits per byte': .* whole .* --train.eval_rows 0"):
        worse("run", best="bits per byte", eval_rows=2)
    assert not (tmp_path / "run").exists()
    run = worse("run", best="bits per byte", eval_rows=0, patience=1)
    assert list(run.train())[-1].step == 10
    assert "no better than step 5 (bits per byte " in run.closing_words()


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(stopping, "now", lambda: self.now)
        self.patch = monkeypatch

    def costs(self, owner, name: str, seconds: float) -> None:
        """Makes each call of a function take so long."""
        call = getattr(owner, name)

        def slow(*values, **named):
            out = call(*values, **named)
            self.now += seconds
            return out

        self.patch.setattr(owner, name, slow)


@pytest.fixture
def minute(monkeypatch):
    """A clock by which a step takes a minute, and what is not training an hour each."""
    clock = Clock(monkeypatch)
    clock.costs(Trainer, "step", 60)
    clock.costs(compiling, "compile_together", 3600)
    clock.costs(Scorer, "run", 3600)
    clock.costs(Session, "_sample", 3600)
    clock.costs(Session, "_draw", 3600)
    clock.costs(Checkpoints, "save", 3600)
    return clock


OFTEN = {"sample_every": 5, "checkpoint_every": 5}


@pytest.mark.slow
def test_minutes_are_those_of_training_steps(worse, minute):
    run = worse("run", minutes=10, **OFTEN)
    # The clock starts after the compilation, which is a part of the first call of `step` here.
    events = list(run.train())
    assert isinstance(events[-1], Ended) and events[-1].step == 10 and run.finished
    evaluated = [event.step for event in events if isinstance(event, Evaluated)]
    assert evaluated == [5, 10] and max(kept(run)) == 10
    said = run.closing_words().splitlines()[0]
    assert said.endswith(
        "step 10 of 40, ended early: 10 minutes of training are over; to go on: a larger"
        " --train.minutes"
    )
    again = worse("run", minutes=10)
    assert [type(event) for event in again.train()] == [Began, Ended]
    more = worse("run", minutes=20, **OFTEN)
    assert list(more.train())[-1].step == 20
    straight = worse("straight", minutes=20, **OFTEN)
    assert list(straight.train())[-1].step == 20
    assert same(more, straight)


@pytest.mark.slow
def test_minutes_count_earlier_starts(worse, minute):
    """Also of a start that was killed, up to its newest checkpoint."""
    run = worse("run", minutes=10, **OFTEN)
    stop = [False]
    for event in run.train(lambda: stop[0]):
        stop[0] |= isinstance(event, Evaluated)
    assert isinstance(event, Stopped) and event.step == 5
    killed(worse("run", minutes=10, checkpoint_every=3, log_every=1), 7)
    again = worse("run", minutes=10, **OFTEN)
    events = list(again.train())
    assert events[0].step == 6 and isinstance(events[-1], Ended) and events[-1].step == 10


@pytest.mark.slow
def test_a_run_without_minutes_is_timed_too(worse, minute):
    list(worse("run", steps=10).train())
    assert list(worse("run", minutes=15).train())[-1].step == 15


@pytest.mark.slow
def test_time_is_over_only_after_the_last_evaluation(worse, minute):
    """A run that was stopped by a signal when its time was up is finished by the next start."""
    run = worse("run", minutes=1, log_every=20, eval_every=20)
    asked = iter([False] * 4 + [True])
    stopped = list(run.train(lambda: next(asked)))[-1]
    assert isinstance(stopped, Stopped) and stopped.step == 4
    again = list(worse("run", minutes=1, log_every=2, eval_every=20).train())
    assert [e.step for e in again if isinstance(e, Evaluated)] == [6]
    assert isinstance(again[-1], Ended) and again[-1].step == 6


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_minutes_are_a_number(value):
    with pytest.raises(ValueError, match="train.minutes"):
        Training(minutes=value)
