"""A schedule that is trained with the network: in the step, over micro-batches, in a run folder."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from mdlm.experiment import Model, Training
from mdlm.models import DiT
from mdlm.objectives import GeneralizedNelbo, Nelbo
from mdlm.optim import AdamW, decayed, hidden
from mdlm.parallel.mesh import MeshShape, put_on_mesh
from mdlm.processes import Masked
from mdlm.run import load
from mdlm.runs.checkpoints import Checkpoints
from mdlm.samplers import Ancestral, Reverse
from mdlm.schedules import LearnedPolynomial
from mdlm.times import balanced_order
from mdlm.train.batches import in_training
from mdlm.train.session import Session
from mdlm.train.step import compile_step, create_state
from mdlm.types import Batch, Vocab

VOCAB = Vocab(size=61, mask_id=60)
GENMD4 = {
    "network": DiT(width=32, depth=1, heads=2, cond_dim=16),
    "process": Masked(schedule=LearnedPolynomial()),
    "objective": GeneralizedNelbo(),
    "sampler": Reverse(steps=4),
    "optimizer": AdamW(learning_rate=3e-3, warmup_steps=0, weight_decay=0.1),
}


def steps_of(experiment, shape: MeshShape, devices: int, steps: int = 3):
    """State and metrics after some steps on rows of unequal length."""
    model = Model(experiment, VOCAB)
    mesh = shape.build(jax.devices()[:devices])
    tx = experiment.optimizer.build(experiment.train.steps)
    state = create_state(model, tx, mesh, jax.random.key(0))
    step = compile_step(model, tx, mesh)
    size = experiment.train.batch_size
    metrics = []
    for i in range(steps):
        rng = np.random.default_rng(i)
        inside = np.arange(32)[None] < rng.integers(4, 33, size)[:, None]
        rows = {
            "tokens": rng.integers(0, 30, (size, 32)).astype(np.int32),
            "loss_mask": inside,
            "is_valid": inside,
            "row": np.arange(size, dtype=np.int32),
        }
        batch = Batch(**put_on_mesh(mesh, in_training(rows, balanced_order(size))))
        state, values = step(state, batch)
        metrics.append(jax.device_get(values))
    assert step._cache_size() == 1
    return jax.device_get(state), metrics


@pytest.fixture(scope="module")
def whole():
    return steps_of(tiny.experiment(Path("text.txt"), **GENMD4), MeshShape(data=1), 1)


def test_powers_are_trained(whole):
    state, metrics = whole
    w, average = (np.asarray(state[name]["process"]["w"]) for name in ("params", "ema"))
    start = np.log(np.expm1(1.0))
    assert (np.abs(w - start)[:30] > 1e-3).mean() > 0.5
    assert (np.abs(average - start)[:30] > 1e-4).mean() > 0.5 and (average != w).any()
    # Never a clean token, and not decayed either.
    assert np.abs(w[VOCAB.mask_id] - start) < 1e-6
    assert metrics[0]["power_mean"] == pytest.approx(1.0, abs=1e-6)
    assert metrics[-1]["power_min"] < 1 < metrics[-1]["power_max"]
    for values in metrics:
        assert values["loss"] == pytest.approx(values["nelbo"], rel=1e-5) and values["loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "accumulate"), [(MeshShape(data=1), 4), (MeshShape(data=4, fsdp=2), 1)]
)
def test_cuts_of_the_batch_are_the_whole(whole, shape, accumulate):
    experiment = tiny.experiment(Path("text.txt"), **GENMD4)
    experiment = replace(experiment, train=replace(experiment.train, accumulate=accumulate))
    devices = 1 if shape.data == 1 else 8
    state, metrics = steps_of(experiment, shape, devices)
    for here, there in zip(metrics, whole[1], strict=True):
        for name in ("loss", "nelbo", "tokens", "scored", "grad_norm", "power_mean"):
            assert here[name] == pytest.approx(there[name], rel=2e-5), name
    for a, b in zip(jax.tree.leaves(state["ema"]), jax.tree.leaves(whole[0]["ema"]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_powers_are_no_matrices():
    """Muon leaves them to Adam, and nothing decays them."""
    experiment = tiny.experiment(Path("text.txt"), **GENMD4)
    params = jax.eval_shape(Model(experiment, VOCAB).init, jax.random.key(0))
    assert hidden(params)["process"]["w"] == "adam"
    assert not decayed(params)["process"]["w"]


@pytest.mark.slow
def test_run_folder_keeps_the_powers(tmp_path, monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    text = tiny.write_text(tmp_path / "text.txt", words=600)
    train = Training(steps=3, batch_size=8, ema_decay=0.5, log_every=1, eval_rows=8)
    experiment = tiny.experiment(text, train=train, **GENMD4)
    source = "\n".join(
        [
            tiny.FILE.format(text=str(text)),
            "from dataclasses import replace",
            "from mdlm.objectives.generalized import GeneralizedNelbo",
            "from mdlm.schedules.per_token import LearnedPolynomial",
            "from mdlm.processes.masked import Masked",
            "from mdlm.samplers.reverse import Reverse",
            "experiment = replace(",
            "    experiment,",
            "    network=DiT(width=32, depth=1, heads=2, cond_dim=16),",
            "    process=Masked(schedule=LearnedPolynomial()),",
            "    objective=GeneralizedNelbo(),",
            "    sampler=Reverse(steps=4),",
            "    optimizer=AdamW(learning_rate=3e-3, warmup_steps=0, weight_decay=0.1),",
            f"    train={train!r},",
            ")",
        ]
    )
    session = Session(experiment, tmp_path / "run", source=source, overrides=[])
    list(session.train())
    valid = next(e for e in session.folder.log.metrics() if e["kind"] == "valid")
    assert np.isfinite(valid["nats per token"])
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        size = session.model.vocab.size
        shape = {"process": {"w": jax.ShapeDtypeStruct((size,), np.float32)}}
        kept = checkpoints.restore_part({"params": shape, "ema": shape})
    assert (np.asarray(kept["params"]["process"]["w"]) != np.log(np.expm1(1.0))).any()

    run = load(tmp_path / "run")
    average = np.asarray(kept["ema"]["process"]["w"])
    np.testing.assert_array_equal(run.params["process"]["w"], average)
    powers = run.model.bound_process(run.params).schedule.powers
    np.testing.assert_allclose(powers, np.log1p(np.exp(average)), rtol=1e-5)
    assert run.perplexity(replace(run.experiment.evaluation, passes=1))[0].value > 0
    sample = run.generate("the ", length=12)
    assert sample.nfe >= 4 and run.model.vocab.mask_id not in sample.texts[0].tokens


@pytest.mark.slow
def test_begins_from_a_network_alone(tmp_path, monkeypatch):
    """A run that learns no schedule lends its network; the powers start afresh."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    text = tiny.write_text(tmp_path / "text.txt", words=600)
    train = Training(steps=1, batch_size=8, ema_decay=0.5, log_every=1, eval_rows=8)
    changes = {**GENMD4, "process": Masked(), "objective": Nelbo(), "sampler": Ancestral()}
    first = tiny.experiment(text, train=train, **changes)
    list(Session(first, tmp_path / "first", source=tiny.FILE, overrides=[]).train())
    second = Session(
        tiny.experiment(text, train=train, seed=1, **GENMD4),
        tmp_path / "second",
        source=tiny.FILE,
        overrides=[],
        init_from=str(tmp_path / "first"),
    )
    assert second.initial is not None and list(second.initial) == ["network"]
    with Checkpoints(tmp_path / "first" / "checkpoints") as checkpoints:
        kept = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), second.initial)
        expected = checkpoints.restore_part({"ema": kept})["ema"]
    jax.tree.map(np.testing.assert_array_equal, second.initial, expected)
    list(second.train())
    with Checkpoints(tmp_path / "second" / "checkpoints") as checkpoints:
        assert checkpoints.has("ema", "process")
