"""What is kept is sound: no checkpoint of a streak of skipped steps, nothing with NaN."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import mdlm
from mdlm.cli import main as cli
from mdlm.errors import InputError
from mdlm.evals.nll import Metric
from mdlm.experiment import Training
from mdlm.interop.importing import import_weights
from mdlm.runs import weights
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.folder import RunFolder
from mdlm.train import loop
from mdlm.train.guard import Diverged
from mdlm.train.session import Session
from mdlm.train.step import compile_step, updated


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


@pytest.fixture
def experiment(tmp_path):
    train = Training(steps=6, batch_size=8, ema_decay=0.9, eval_rows=8, checkpoint_every=1, keep=9)
    made = tiny.experiment(tiny.write_text(tmp_path / "text.txt"), train=train)
    return replace(made, network=replace(made.network, width=16, depth=1))


def train(experiment, out, **how):
    session = Session(experiment, out, source="", **how)
    list(session.train())
    return session


def steps(out) -> list[int]:
    with Checkpoints(out / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.steps


def skipping(monkeypatch, bad: set[int], params=lambda tree: tree):
    """Lets the gradients of some steps, from 0, be NaN, and changes what they leave behind."""

    def compiled(model, tx, mesh):
        step = compile_step(model, tx, mesh)

        def run(state, batch):
            at = int(state["step"])
            state, metrics = step(state, batch)
            if at in bad:
                watch = {**state["watch"], "in_a_row": state["watch"]["in_a_row"] + 1}
                metrics = {**metrics, "skipped_in_a_row": watch["in_a_row"]}
                state = {**state, "watch": watch, "params": params(state["params"])}
            return state, metrics

        return run

    monkeypatch.setattr(loop, "compile_step", compiled)
    monkeypatch.setattr(loop.compiling, "compile_together", lambda *_, **__: None)


@pytest.mark.parametrize(("slope", "rate"), [(2.0, 3e38), (-2.0, 3e38), (1e25, 1e-3)])
def test_a_step_to_a_state_that_is_not_finite_is_skipped(slope, rate):
    tx = optax.adam(rate) if rate < 1 else optax.sgd(rate)
    params = {"w": jnp.ones(3), "v": jnp.zeros(2)}
    state = {"params": params, "opt_state": tx.init(params), "ema": params}

    def made(slope):
        gradient = {"w": jnp.asarray([0.0, slope, 0.0]), "v": jnp.zeros(2)}
        return updated(state, gradient, jnp.asarray(True), tx, 0.9, jnp.asarray(0))

    is_sound, _, new = made(slope)
    assert not is_sound
    jax.tree.map(np.testing.assert_array_equal, new, state)
    is_sound, _, new = made(1e-3)
    assert is_sound and new["params"]["w"][1] != 1 and new["ema"]["w"][1] != 1


def test_nothing_is_saved_inside_a_streak(experiment, tmp_path, monkeypatch):
    skipping(monkeypatch, {2, 3})
    train(experiment, tmp_path / "run")
    # 3 and 4 were skipped; a step that succeeds ends the streak, which the stub does not undo
    assert steps(tmp_path / "run")[:2] == [1, 2] and not {3, 4} & set(steps(tmp_path / "run"))


def test_a_last_step_that_was_skipped_is_saved_if_the_model_is_sound(
    experiment, tmp_path, monkeypatch
):
    skipping(monkeypatch, {5})
    train(experiment, tmp_path / "run")
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def test_an_unsound_end_names_the_newest_sound_checkpoint(experiment, tmp_path, monkeypatch):
    def broken(tree):
        return jax.tree.map(lambda a: a * jnp.nan, tree)

    skipping(monkeypatch, {4, 5}, broken)
    with pytest.raises(Diverged, match=r"with a finite loss is .*checkpoints/4$"):
        train(experiment, tmp_path / "run")
    assert steps(tmp_path / "run") == [1, 2, 3, 4]


@pytest.fixture
def broken(experiment, tmp_path):
    """A run whose newest checkpoint, of step 6, is full of NaN, as older versions saved."""
    train(experiment, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    with Checkpoints(folder.checkpoints, keep=9) as checkpoints:
        shapes = checkpoints._stored(6)
        assert shapes
        session = Session(experiment, tmp_path / "run", source="")
        assert session._lock is not None
        session._lock.close()
        state, data = checkpoints.restore(loop.abstract_state(*made(session)), 6)
        bad = jax.tree.map(
            lambda a: a * jnp.nan if jnp.issubdtype(a.dtype, jnp.floating) else a, state
        )
        checkpoints.save(7, {**bad, "step": jnp.asarray(7, jnp.int32)}, data)
        checkpoints.wait()
    return tmp_path / "run"


def made(session):
    experiment = session.experiment
    tx = experiment.optimizer.build(experiment.train.steps)
    return session.model, tx, session.mesh


def test_a_model_of_nan_is_refused_everywhere(experiment, broken, tmp_path, capsys):
    longer = replace(experiment, train=replace(experiment.train, steps=9))
    with pytest.raises(InputError, match="step 7: .* not finite; .*--step"):
        mdlm.load(broken)
    assert mdlm.load(broken, step=6).step == 6
    with pytest.raises(InputError, match="step 7: .*not finite"):
        train(longer, broken)
    for init_from, fork in ((str(broken), None), (None, str(broken))):
        with pytest.raises(InputError, match="not finite"):
            Session(longer, tmp_path / "new", source="", init_from=init_from, fork=fork)
        assert not (tmp_path / "new").exists()
    train(longer, tmp_path / "fork", fork=f"{broken}@6")
    for command in (["eval"], ["sample", "--json"]):
        assert cli.main([command[0], str(broken), *command[1:]]) == 2
        said = capsys.readouterr()
        assert "not finite" in said.err and not said.out and said.err.count("\n") == 1


def test_weights_of_nan_are_refused(experiment, tmp_path):
    train(experiment, tmp_path / "run")
    run = mdlm.load(tmp_path / "run")
    params = jax.tree.map(lambda a: np.full_like(a, np.inf), run.params)
    weights.write(tmp_path / "run", params, step=9)
    with pytest.raises(InputError, match="step 9: .*not finite"):
        mdlm.load(tmp_path / "run")


def test_a_file_of_nan_is_not_imported(experiment, tmp_path, monkeypatch):
    from mdlm.interop import importing

    train(experiment, tmp_path / "run")
    params = jax.tree.map(lambda a: np.asarray(a) * np.nan, mdlm.load(tmp_path / "run").params)
    monkeypatch.setattr(importing.mdlm_torch, "read", lambda *_: {})
    monkeypatch.setattr(importing.mdlm_torch, "stacked", lambda *_: params["network"])
    with pytest.raises(InputError, match=r"w.bin: .*not finite"):
        import_weights("w.bin", experiment, tmp_path / "new", source="", overrides=[])
    assert not (tmp_path / "new").exists()


def test_json_has_no_bare_nan(experiment, tmp_path, monkeypatch, capsys):
    train(experiment, tmp_path / "run")
    found = [Metric("nelbo", math.inf, math.nan, None, 3.0, "how")]
    monkeypatch.setattr(mdlm.run.Run, "perplexity", lambda *_, **__: found)

    def refuse(word):
        raise ValueError(word)

    for _ in range(2):  # the second prints what the first has kept
        assert cli.main(["eval", str(tmp_path / "run"), "--json"]) == 0
        (metric,) = json.loads(capsys.readouterr().out, parse_constant=refuse)
        assert metric["value"] is None and metric["stderr"] is None
    assert cli.main(["eval", str(tmp_path / "run")]) == 0
    assert "not finite" in capsys.readouterr().out
    for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
