"""Which split a run is evaluated on while it trains, and by which its best checkpoint is kept."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from mdlm.data import TextFiles
from mdlm.evals.scorer import Scorer
from mdlm.experiment import Perplexity, Training
from mdlm.runs.checkpoints import NAMES, Checkpoints
from mdlm.train.events import Evaluated
from mdlm.train.session import Session

EVERY, STEPS = 5, 20


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


def trained(tmp_path, **files):
    """A run with `evaluation.split="test"`, and its evaluations. Validation and test text have
    bytes that the training text lacks, so that both get worse with every step."""
    text = tiny.write_text(tmp_path / "text.txt")
    (tmp_path / "valid.txt").write_text("0123456789" * 40)
    (tmp_path / "test.txt").write_text("ABCDEFGHIJKLM" * 40)
    e = tiny.experiment(
        text,
        train=Training(
            steps=STEPS,
            batch_size=16,
            ema_decay=0.0,
            log_every=EVERY,
            eval_every=EVERY,
            checkpoint_every=EVERY,
            keep=1,
        ),
        evaluation=Perplexity(split="test", passes=2),
    )
    source = TextFiles(train=str(text), test=str(tmp_path / "test.txt"), **files)
    e = replace(e, data=replace(e.data, source=source))
    session = Session(e, tmp_path / "run", source=tiny.FILE.format(text=str(text)), overrides=[])
    seen = [event for event in session.train() if isinstance(event, Evaluated)]
    return session, seen


def lines(session, kind) -> dict[int, float]:
    return {
        e["step"]: e["nats per token"] for e in session.folder.log.metrics() if e["kind"] == kind
    }


def test_the_validation_split_is_evaluated_and_selects_whatever_eval_scores(tmp_path):
    session, seen = trained(tmp_path, valid=str(tmp_path / "valid.txt"))
    valid = lines(session, "valid")
    assert [event.split for event in seen] == ["valid"] * 4 and not lines(session, "test")
    with Checkpoints(session.folder.checkpoints, read_only=True) as checkpoints:
        kept = checkpoints.steps
        recorded = {
            step: checkpoints.manager.metrics(step)[NAMES["nats per token"]] for step in kept
        }
    best = min(valid, key=valid.__getitem__)
    assert best < STEPS and kept == [best, STEPS]
    assert recorded == {step: valid[step] for step in kept}
    # The numbers are those of the validation rows, not of the test's.
    model, dataset = session.model, session.dataset
    with Checkpoints(session.folder.checkpoints, read_only=True) as checkpoints:
        shapes = {"ema": jax.eval_shape(model.init, jax.random.key(0))}
        params = checkpoints.restore_part(shapes, STEPS)["ema"]
    scorer = Scorer(model, session.experiment.mesh.build(), dataset)
    rows = session.experiment.train.eval_rows
    again = {
        split: scorer.run(params, Perplexity(passes=1, split=split), rows)[0]
        for split in ("valid", "test")
    }
    np.testing.assert_allclose(again["valid"].value, valid[STEPS], rtol=1e-6)
    assert abs(again["test"].value - valid[STEPS]) > 1e-3
    assert seen[-1].metrics[0].protocol.startswith("valid, ")


def test_without_a_validation_split_the_test_split_is_named_and_selects_nothing(tmp_path):
    session, seen = trained(tmp_path, valid_fraction=0.0)
    assert session.dataset.splits == ("train", "test")
    assert [event.split for event in seen] == ["test"] * 4
    test = lines(session, "test")
    assert not lines(session, "valid") and list(test) == [5, 10, 15, 20]
    assert min(test, key=test.__getitem__) < STEPS  # there is a better one, which is not kept
    with Checkpoints(session.folder.checkpoints, read_only=True) as checkpoints:
        assert checkpoints.steps == [STEPS]
        assert not checkpoints.manager.metrics(STEPS)
    assert seen[-1].metrics[0].protocol.startswith("test, ")
