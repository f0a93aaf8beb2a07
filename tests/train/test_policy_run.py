"""Runs that learn from rewards of their own texts."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
from made_run import made
from test_preference_run import lines
from test_tuned_runs import arrays, train

from mdlm.data import PairData, Pairs, Responses, Wrap
from mdlm.errors import InputError
from mdlm.experiment import Training
from mdlm.models import DiT
from mdlm.objectives import GRPO, Rollouts, WeightedPolicy
from mdlm.optim import AdamW
from mdlm.run import load
from mdlm.samplers import Ancestral

TRAIN = Training(steps=4, batch_size=8, ema_decay=0.9, checkpoint_every=2, log_every=2, keep=5)
CALLS: list[tuple[list[str], list[str]]] = []


def low(prompts, texts):
    """More for letters that come early in the alphabet."""
    CALLS.append((list(prompts), list(texts)))
    return [-sum(map(ord, text)) / 128 for text in texts]


def sometimes(prompts, texts):
    CALLS.append((list(prompts), list(texts)))
    return list(range(len(texts))) if len(CALLS) % 3 else [float("nan")] * len(texts)


ASKED = Rollouts(reward="test_policy_run:low", group=4)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    text = tiny.write_text(tmp_path_factory.mktemp("text") / "text.txt", words=600)
    made = tiny.experiment(text, train=TRAIN, sampler=Ancestral(steps=2))
    return replace(
        made,
        data=replace(made.data, packing=Wrap(length=8, row_specials=False)),
        network=DiT(width=16, depth=1, heads=2, cond_dim=8, dropout=0.1),
        optimizer=AdamW(learning_rate=1e-2, warmup_steps=0),
    )


@pytest.fixture(scope="module")
def base(plain, tmp_path_factory):
    return made(tmp_path_factory.mktemp("base") / "run", plain)


def logged(folder):
    found = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in found if line["kind"] == "train"]


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(plain, base, tmp_path):
    """With two updates from the same texts, and a reference."""
    CALLS.clear()
    chosen = replace(plain, objective=GRPO(rollouts=replace(ASKED, updates=2), kl=0.1))
    train(chosen, tmp_path / "run", init_from=str(base.folder.path))
    assert len(CALLS) == 2 and CALLS[0] != CALLS[1]
    prompts, texts = CALLS[0]
    assert prompts == [""] * 8 and len(set(texts)) > 1 and all(map(len, texts))
    first, last = logged(tmp_path / "run")
    assert last["kl"] > 0 and first["reward"] == pytest.approx(np.mean(low(*CALLS[0])), rel=1e-5)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "4")
    train(chosen, tmp_path / "again")
    assert logged(tmp_path / "again")[-1]["loss"] == last["loss"]
    for name, value in arrays(load(tmp_path / "run")).items():
        np.testing.assert_array_equal(arrays(load(tmp_path / "again"))[name], value)
    assert load(tmp_path / "run").generate(num=1).texts


@pytest.mark.slow
def test_prompts_are_those_of_the_data(plain, tmp_path):
    """Prompts come in groups; responses end with EOS, and are rewarded without it."""
    source = Pairs(train=lines(tmp_path / "pairs.jsonl"), valid_fraction=0.25)
    packing = Responses(length=6, bos=False)
    data = PairData(source=source, tokenizer=plain.data.tokenizer, packing=packing)
    chosen = replace(plain, data=data, objective=WeightedPolicy(rollouts=ASKED))
    CALLS.clear()
    train(chosen, tmp_path / "run")
    assert len(CALLS) == 4
    for prompts, texts in CALLS:
        assert prompts[:4] == [prompts[0]] * 4 and prompts[4:] == [prompts[4]] * 4
        assert set(prompts) <= {"a", "b"} and all(len(text) <= 5 for text in texts)
    assert 2 <= logged(tmp_path / "run")[0]["tokens"] <= 8 * 5


@pytest.mark.slow
def test_steps_whose_reward_fails_are_skipped_and_counted(plain, tmp_path, caplog):
    CALLS.clear()
    asked = replace(ASKED, reward="test_policy_run:sometimes")
    chosen = replace(plain, objective=GRPO(rollouts=asked, kl=0.0))
    with caplog.at_level(logging.WARNING):
        train(chosen, tmp_path / "run")
    said = [r.getMessage() for r in caplog.records if "reward sometimes gave nan" in r.getMessage()]
    assert logged(tmp_path / "run")[-1]["skipped"] == len(said) > 0
    assert "the step is skipped" in said[0] and said[0].startswith("step ")


def test_what_is_refused_leaves_nothing(plain, tmp_path):
    for objective, message in (
        (GRPO(rollouts=ASKED), "compares with parameters of another run; give --init-from"),
        (
            WeightedPolicy(rollouts=replace(ASKED, reward="test_policy_run:high")),
            "test_policy_run:high: no such function in the module",
        ),
        (WeightedPolicy(rollouts=replace(ASKED, group=3)), "a multiple of the 3 texts"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            train(replace(plain, objective=objective), tmp_path / "run")
        assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()
