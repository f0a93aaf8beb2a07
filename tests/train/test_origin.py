"""Runs that begin from another run: its tokenizer, its state, and what may change on resume."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from mdlm.data import BPE, Bytes
from mdlm.errors import InputError
from mdlm.experiment import Training
from mdlm.optim import AdamW, Muon
from mdlm.run import load
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.folder import RunFolder
from mdlm.train.session import Session

TRAIN = Training(steps=4, batch_size=8, ema_decay=0.9, checkpoint_every=2, eval_rows=8, keep=5)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


def with_bpe(experiment, size=270):
    return replace(experiment, data=replace(experiment.data, tokenizer=BPE(vocab_size=size)))


@pytest.fixture
def experiment(tmp_path):
    made = tiny.experiment(tiny.write_text(tmp_path / "text.txt"), train=TRAIN)
    return replace(made, network=replace(made.network, width=16, depth=1))


@pytest.fixture
def other_text(experiment, tmp_path):
    """The same experiment on a text with other words, from which other byte pairs are learnt."""
    path = tmp_path / "other.txt"
    path.write_text("und ein Zug fuhr durch das Land, als der Tag begann\n" * 300)
    source = replace(experiment.data.source, train=str(path))
    return replace(experiment, data=replace(experiment.data, source=source))


def train(experiment, out, **how):
    session = Session(experiment, out, source="", overrides=[], **how)
    list(session.train())
    return session


def embedding(folder, step=None):
    return np.asarray(load(folder, step=step).params["network"]["embed"]["table"])


def test_a_new_run_takes_over_the_tokenizer_of_the_run_it_starts_from(
    experiment, other_text, tmp_path
):
    train(with_bpe(experiment), tmp_path / "a")
    theirs = RunFolder(tmp_path / "a").data
    own = with_bpe(other_text).data.load()
    next_run = train(with_bpe(other_text), tmp_path / "b", init_from=str(tmp_path / "a"))
    taken = next_run.dataset.tokenizer.fingerprint
    assert taken == load(tmp_path / "a").dataset.tokenizer.fingerprint
    assert taken != own.tokenizer.fingerprint
    assert (theirs / "tokenizer.json").read_text() == (
        tmp_path / "b" / "data" / "tokenizer.json"
    ).read_text()


def test_another_tokenizer_is_refused_or_shares_what_both_have(experiment, other_text, tmp_path):
    train(with_bpe(experiment, 270), tmp_path / "a")
    for option in ("init_from", "fork"):
        with pytest.raises(InputError, match=r'other tokens. Give --data.tokenizer "BPE\(vocab'):
            train(with_bpe(other_text, 272), tmp_path / "b", **{option: str(tmp_path / "a")})
    assert not (tmp_path / "b").exists()
    still = replace(with_bpe(other_text, 272), train=replace(TRAIN, steps=1))
    session = train(still, tmp_path / "b", init_from=str(tmp_path / "a"), new_tokenizer=True)
    there, here = load(tmp_path / "a").dataset.tokenizer, session.dataset.tokenizer
    # The first step has learning rate 0: what was carried over is still there.
    old, new = embedding(tmp_path / "a"), embedding(tmp_path / "b")
    assert len(new) == 272 and len(old) == 270
    names = here.backend.get_vocab(with_added_tokens=True)
    shared = {
        n: i for n, i in there.backend.get_vocab(with_added_tokens=True).items() if n in names
    }
    assert 260 <= len(shared) < 270
    for name, i in shared.items():
        np.testing.assert_array_equal(new[names[name]], old[i])
    np.testing.assert_array_equal(new[here.vocab.mask_id], old[there.vocab.mask_id])
    fresh = set(names) - set(shared)
    assert fresh and all(np.abs(new[names[name]]).max() > 0 for name in fresh)


def test_options_that_contradict_each_other(experiment, tmp_path):
    with pytest.raises(InputError, match="give one of them"):
        train(experiment, tmp_path / "a", init_from="x", fork="y")
    for how in ({}, {"fork": "x"}):
        with pytest.raises(InputError, match=r"x|--new-tokenizer: goes with"):
            train(experiment, tmp_path / "a", new_tokenizer=True, **how)
    with pytest.raises(InputError, match="expected RUN or RUN@STEP"):
        train(experiment, tmp_path / "a", fork="x@last")
    assert not (tmp_path / "a").exists()


def test_a_fork_goes_on_from_the_whole_state_with_other_settings(experiment, tmp_path):
    first = train(experiment, tmp_path / "a")
    same = train(experiment, tmp_path / "same", fork=f"{tmp_path / 'a'}@2")
    assert same.step == 4
    for x, y in zip(
        jax.tree.leaves(load(tmp_path / "a").params),
        jax.tree.leaves(load(tmp_path / "same").params),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
    lines = RunFolder(tmp_path / "same").log.metrics()
    assert min(line["step"] for line in lines) > 2
    changed = replace(experiment, seed=7, optimizer=AdamW(learning_rate=1e-5), time_condition="t")
    forked = train(changed, tmp_path / "b", fork=str(tmp_path / "a"))
    assert forked.step == 4  # of 4: nothing was left to do, and nothing was changed
    np.testing.assert_array_equal(embedding(tmp_path / "b"), embedding(tmp_path / "a"))
    with Checkpoints(tmp_path / "b" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps == [4]
    again = train(changed, tmp_path / "b")  # it resumes without the option
    assert again.step == 4 and first.step == 4
    wider = replace(experiment, network=replace(experiment.network, width=32))
    with pytest.raises(InputError, match="shape"):
        train(wider, tmp_path / "c", fork=str(tmp_path / "a"))
    with pytest.raises(InputError, match="no checkpoint of step 3"):
        train(experiment, tmp_path / "c", fork=f"{tmp_path / 'a'}@3")
    assert not (tmp_path / "c").exists()


def test_rates_steps_and_batch_may_change_on_resume_and_the_change_is_kept(experiment, tmp_path):
    train(experiment, tmp_path / "a")
    other = replace(
        experiment,
        optimizer=replace(experiment.optimizer, learning_rate=1e-5, b2=0.99),
        train=replace(TRAIN, steps=6, batch_size=16, ema_decay=0.99),
    )
    session = train(other, tmp_path / "a")
    assert session.step == 6
    assert session.changed == [
        "optimizer.learning_rate: 0.003 -> 1e-05",
        "optimizer.b2: 0.999 -> 0.99",
        "train.steps: 4 -> 6",
        "train.batch_size: 8 -> 16",
        "train.ema_decay: 0.9 -> 0.99",
    ]
    starts = json.loads((tmp_path / "a" / "env.json").read_text())
    assert "changed" not in starts[0]
    assert (starts[1]["step"], starts[1]["changed"]) == (4, session.changed)
    # Samples are counted, not batches: the data go on where they stood.
    with Checkpoints(tmp_path / "a" / "checkpoints", read_only=True) as checkpoints:
        data = json.loads((checkpoints.folder / "6" / "data" / "metadata").read_text())
    assert data["position"] == 4 * 8 + 2 * 16
    for optimizer in (Muon(), AdamW(momentum_dtype="bfloat16"), AdamW(weight_decay=0.1)):
        with pytest.raises(InputError, match=r"another configuration.*--fork "):
            train(replace(other, optimizer=optimizer), tmp_path / "a")
        with pytest.raises(InputError, match=r"its state is of another optimizer; optimizer"):
            train(replace(other, optimizer=optimizer), tmp_path / "b", fork=str(tmp_path / "a"))


def test_bytes_need_no_comparison(experiment, other_text, tmp_path):
    assert isinstance(experiment.data.tokenizer, Bytes)
    train(experiment, tmp_path / "a")
    train(other_text, tmp_path / "b", init_from=str(tmp_path / "a"))
