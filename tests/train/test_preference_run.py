"""Runs that learn preferences: their folders, and how they are opened, resumed and begun from."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from made_run import made
from test_tuned_runs import arrays, train

from mdlm.data import Bytes, PairData, Pairs, Preferences, Responses
from mdlm.errors import InputError
from mdlm.experiment import Experiment, Training
from mdlm.models import CausalTransformer, DiT
from mdlm.objectives import Autoregressive, CausalPreference, Objective, Preference
from mdlm.optim import AdamW
from mdlm.run import load
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.folder import BASE
from mdlm.runs.weights import Weights
from mdlm.samplers import Ancestral, LeftToRight
from mdlm.tuning import Full, LoRA

TRAIN = Training(steps=4, batch_size=8, ema_decay=0.9, checkpoint_every=2, log_every=1, keep=5)


def lines(path, first=0):
    texts = [
        {"prompt": "ab"[i % 2], "chosen": "cc" + "de"[i % 2], "rejected": "d", "response": "cd"}
        for i in range(first, first + 16)
    ]
    path.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An experiment that learns responses."""
    name = lines(tmp_path_factory.mktemp("text") / "pairs.jsonl")
    return Experiment(
        name="tiny",
        data=PairData(
            source=Pairs(train=name, valid_fraction=0.25),
            tokenizer=Bytes(),
            packing=Responses(length=6, bos=False),
        ),
        network=DiT(width=16, depth=1, heads=2, cond_dim=8, dropout=0.1),
        optimizer=AdamW(learning_rate=1e-2, warmup_steps=0),
        sampler=Ancestral(steps=2),
        train=TRAIN,
    )


TWICE = Preference(samples=2)


def preferring(plain, objective: Objective = TWICE, **changes):
    source = Preferences(train=plain.data.source.train, valid_fraction=0.25)
    data = replace(plain.data, source=source)
    return replace(plain, data=data, objective=objective, **changes)


@pytest.fixture(scope="module")
def base(plain, tmp_path_factory):
    return made(tmp_path_factory.mktemp("base") / "run", plain)


@pytest.fixture(scope="module")
def preferred(plain, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("preferred") / "run"
    train(preferring(plain), folder, init_from=str(base.folder.path))
    return folder


def logged(folder):
    found = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in found if line["kind"] == "train"]


@pytest.mark.slow
def test_a_run_learns_and_keeps_what_it_began_from(preferred, base):
    first, *_, last = logged(preferred)
    assert first["loss"] == pytest.approx(np.log(2)) and first["margin"] == 0
    assert last["loss"] < first["loss"] and last["margin"] > 0.1 and last["preferred"] == 1
    assert last["margin"] == pytest.approx(last["chosen"] - last["rejected"], rel=1e-4)
    kept = Weights.of(preferred, name=BASE)
    assert kept is not None
    there = kept.restore(base.model.abstract_params(mesh_of(base)))
    for name, value in base.params["network"]["blocks"].items():
        jax.tree.map(np.testing.assert_array_equal, value, there["network"]["blocks"][name])
    with Checkpoints(preferred / "checkpoints", read_only=True) as checkpoints:
        assert not any(name.startswith("base") for name in checkpoints._stored(4))


def mesh_of(run):
    return jax.tree.leaves(run.params)[0].sharding.mesh


@pytest.mark.slow
def test_it_is_opened_without_the_reference(preferred, tmp_path):
    shutil.copytree(preferred, tmp_path / "run")
    (tmp_path / "run" / BASE).unlink()
    run = load(tmp_path / "run", verify=False)
    assert "NELBO" in run.perplexity()[0].protocol
    assert run.generate(num=1).texts


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(plain, preferred, tmp_path):
    shutil.copytree(preferred, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    session = train(preferring(plain), tmp_path / "run")
    assert session.step == 4
    assert logged(tmp_path / "run")[-1]["margin"] == logged(preferred)[-1]["margin"]
    for name, value in arrays(load(preferred)).items():
        np.testing.assert_array_equal(arrays(load(tmp_path / "run"))[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("tune", [LoRA(rank=2), Full(frozen=("embed",))])
def test_with_tuning_the_base_is_the_reference(plain, base, tune, tmp_path):
    """The base is stored once, and opening takes what it needs of it."""
    train(preferring(plain, tune=tune), tmp_path / "run", init_from=str(base.folder.path))
    first, *_, last = logged(tmp_path / "run")
    assert first["margin"] == 0 and last["margin"] > 0
    kept = Weights.of(tmp_path / "run", name=BASE)
    assert kept is not None and set(kept.shapes) == set(arrays(base))
    assert load(tmp_path / "run").generate(num=1).texts


@pytest.mark.slow
def test_forks_keep_the_reference_of_their_run(plain, base, preferred, tmp_path):
    longer = preferring(plain, train=replace(TRAIN, steps=3))
    train(longer, tmp_path / "run", fork=f"{preferred}@2")
    assert logged(tmp_path / "run")[-1]["margin"] == logged(preferred)[2]["margin"]
    train(plain, tmp_path / "plain", init_from=str(base.folder.path))
    with pytest.raises(InputError, match=r"keeps no network.*Preference.*compares.*--init-from"):
        train(longer, tmp_path / "other", fork=str(tmp_path / "plain"))
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_causal_network_learns_by_exact_likelihoods(plain, tmp_path):
    causal = replace(
        plain,
        network=CausalTransformer(width=16, depth=1, heads=2),
        objective=Autoregressive(),
        sampler=LeftToRight(),
    )
    begun = made(tmp_path / "base", causal)
    chosen = preferring(causal, CausalPreference())
    train(chosen, tmp_path / "run", init_from=str(begun.folder.path))
    first, *_, last = logged(tmp_path / "run")
    assert first["margin"] == 0 and last["margin"] > 0
    assert "exact NLL" in load(tmp_path / "run").perplexity()[0].protocol


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: preferring(e), r"Preference\(samples=2\): it compares with parameters of ano"),
        (lambda e: replace(e, objective=Preference()), "it compares responses, so it needs data="),
        (lambda e: replace(preferring(e), objective=e.objective), r"need objective=Preference\(\)"),
        (
            lambda e: preferring(e, train=replace(TRAIN, batch_size=7)),
            "a batch of 7 rows, 2 of each example, does not divide",
        ),
        (
            lambda e: preferring(e, evaluation=replace(e.evaluation, objective=Preference())),
            "compares with a network that only training has",
        ),
    ],
)
def test_what_is_refused_leaves_nothing(plain, change, message, tmp_path):
    with pytest.raises(InputError, match=message) as refused:
        train(change(plain), tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()
