"""Training that defends itself: steps left out, loss by noise level, spikes, and the end."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mdlm.cli import main as cli
from mdlm.data.loader import TrainLoader
from mdlm.experiment.evaluation import Perplexity
from mdlm.experiment.experiment import Training
from mdlm.experiment.loading import load_file
from mdlm.experiment.model import Model
from mdlm.keys import stream
from mdlm.models.dit import DiT
from mdlm.objectives.nelbo import Nelbo
from mdlm.optim import AdamW
from mdlm.parallel.mesh import MeshShape, put_on_mesh
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.folder import RunFolder
from mdlm.times import balanced_order
from mdlm.train import guard
from mdlm.train.batches import in_training
from mdlm.train.events import Spiked, Stopped
from mdlm.train.guard import BINS, ENOUGH, WINDOW, Diverged, Guard
from mdlm.train.loop import Trainer
from mdlm.train.start import restored
from mdlm.train.step import compile_step, create_state
from mdlm.types import Batch, LossTerms, Vocab

VOCAB = Vocab(size=61, mask_id=60)
BAD = 59
"""A token that no sound batch has."""
NETWORK = DiT(width=32, depth=1, heads=2, cond_dim=16)
FAMILY = Path(__file__).parents[2] / "experiments" / "family"


@dataclass(frozen=True, kw_only=True)
class Poisoned(Nelbo):
    """Where the batch has the bad token, the loss or its gradient (not both) is no number."""

    what: str = "loss"

    def __call__(self, key, batch, diffusion):
        terms = super().__call__(key, batch, diffusion)
        is_bad = (batch.tokens == BAD).any()
        if self.what == "loss":
            return replace(terms, total=jnp.where(is_bad, jnp.nan, terms.total))
        # The root of a zero that depends on the parameters has the value 0 and no slope.
        zero = terms.total - jax.lax.stop_gradient(terms.total)
        root = jnp.sqrt(jnp.where(is_bad, zero, 1.0)) - jnp.where(is_bad, 0.0, 1.0)
        return replace(terms, total=terms.total + root)


@dataclass(frozen=True, kw_only=True)
class Marked(Nelbo):
    """The loss of the batch whose first row is `mark` is multiplied by `factor`."""

    mark: tuple[int, ...] = ()
    factor: float = 1.0

    def __call__(self, key, batch, diffusion):
        terms = super().__call__(key, batch, diffusion)
        is_it = (batch.tokens == jnp.asarray(self.mark)[None]).all(-1).any()
        times = jnp.where(is_it, self.factor, 1.0)
        return replace(terms, total=terms.total * times, bound=terms.bound * times)


def rows(seed: int, bad: bool = False, size: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, BAD, (size, 32)).astype(np.int32)
    if bad:
        tokens[3, 5] = BAD  # on one device alone
    inside = np.arange(32)[None] < rng.integers(4, 33, size)[:, None]
    row = np.arange(size, dtype=np.int32)
    fields = {"tokens": tokens, "loss_mask": inside, "is_valid": inside, "row": row}
    return in_training(fields, balanced_order(size))


class Stepper:
    """A compiled step, and states copied to the host."""

    def __init__(self, shape: MeshShape, devices: int, **changes):
        changes.setdefault("train", Training(batch_size=16, ema_decay=0.9, log_every=2))
        changes.setdefault("optimizer", AdamW(learning_rate=3e-3, warmup_steps=5))
        self.experiment = tiny.experiment(Path("none.txt"), network=NETWORK, **changes)
        self.model = Model(self.experiment, VOCAB)
        self.mesh = shape.build(jax.devices()[:devices])
        tx = self.experiment.optimizer.build(20)
        self.start = create_state(self.model, tx, self.mesh, jax.random.key(0))
        self.placed = jax.tree.map(lambda a: a.sharding, self.start)
        self.step = compile_step(self.model, tx, self.mesh)

    def __call__(self, state, batch):
        state = jax.device_put(state, self.placed)
        state, metrics = self.step(state, Batch(**put_on_mesh(self.mesh, batch)))
        # A copy, as the next step writes over its input.
        return jax.tree.map(np.array, (state, metrics))


def same(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def without(state, *names: str) -> dict:
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("what", "shape", "devices"),
    [("loss", MeshShape(data=1), 1), ("gradient", MeshShape(data=2, fsdp=4), 8)],
)
def test_a_step_that_is_not_finite_changes_nothing(what, shape, devices):
    go = Stepper(shape, devices, objective=Poisoned(what=what))
    first = jax.tree.map(np.array, go.start)
    for n in (8, 9):
        first, _ = go(first, rows(n))
    assert not same(first["params"], first["ema"])
    state = first
    for n in (1, 2):
        state, metrics = go(state, rows(n, bad=True))
        assert np.isfinite(metrics["loss"]) == (what == "gradient")
        assert np.isfinite(metrics["grad_norm"]) == (what == "loss")
        assert same(without(state, "step", "watch"), without(first, "step", "watch"))
        assert state["step"] == n + 2 and metrics["update_norm"] == 0
        assert metrics["skipped"] == metrics["skipped_in_a_row"] == n
    # It goes on as if they had not been, with the randomness of its own step.
    watch = {**first["watch"], "skipped": np.int32(2)}
    expected, _ = go({**first, "step": np.int32(4), "watch": watch}, rows(3))
    state, metrics = go(state, rows(3))
    assert same(without(state, "watch"), without(expected, "watch"))
    assert metrics["skipped"] == 2 and metrics["skipped_in_a_row"] == 0
    assert not same(state["params"], first["params"])
    rate = go.experiment.optimizer.rate(20)
    assert metrics["learning_rate"] == pytest.approx(float(rate(2))) != float(rate(4))
    assert np.isfinite(metrics["loss_by_time"]).any()


def norm(tree) -> float:
    return float(np.sqrt(sum(np.square(a, dtype=np.float64).sum() for a in jax.tree.leaves(tree))))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_norms_and_losses_by_noise_level(accumulate):
    """Against the objective's own terms, of both steps that the line is about."""
    settings = Training(batch_size=16, ema_decay=0.9, log_every=2, accumulate=accumulate)
    go = Stepper(MeshShape(data=2), 2, train=settings)
    terms_of = jax.jit(go.model.loss)
    state, sums = jax.tree.map(np.array, go.start), np.zeros((2, BINS))
    for n in range(3):
        if n == 2:
            sums[:] = 0  # another line's
        before = state
        state, metrics = go(state, rows(n))
        key = jax.random.fold_in(stream(jax.random.key(0), "train"), n)
        batch = jax.tree.map(jnp.asarray, Batch(**rows(n)))
        terms = terms_of(before["params"], key, batch)
        place = np.minimum(np.asarray(terms.t)[:, 0] * BINS, BINS - 1).astype(int)
        for i, part in enumerate((terms.bound, terms.count)):
            np.add.at(sums[i], place, np.asarray(part, np.float64).sum(-1))
        with np.errstate(invalid="ignore"):
            expected = sums[0] / sums[1]
        np.testing.assert_allclose(metrics["loss_by_time"], expected, rtol=1e-4)
        assert metrics["param_norm"] == pytest.approx(norm(state["params"]), rel=1e-5)
        moved = norm(jax.tree.map(np.subtract, state["params"], before["params"]))
        assert metrics["update_norm"] == pytest.approx(moved, rel=1e-2, abs=1e-6)
    assert moved > 0.01


def test_each_token_counts_at_its_own_noise_level():
    t = jnp.asarray([[0.0, 0.05, 0.95], [0.951, 1.0, 0.55]])
    bound = jnp.asarray([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    count = jnp.asarray([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    terms = LossTerms(
        total=bound.sum(), values=bound, bound=bound, count=count, scored=count, scalars={}, t=t
    )
    sums = np.zeros((2, BINS))
    sums[:, 0], sums[:, 9], sums[:, 5] = (3, 2), (28, 2), (32, 1)
    np.testing.assert_array_equal(guard.by_time(terms), sums)
    assert guard.by_time(replace(terms, t=None)) is None


@pytest.mark.parametrize("path", sorted(FAMILY.glob("*.py")), ids=lambda path: path.stem)
def test_objectives_tell_their_noise_levels(path):
    experiment = load_file(path)
    length = experiment.data.packing.length
    vocab = Vocab(size=67, mask_id=66, bos_id=63, eos_id=64, pad_id=65)
    model = Model(experiment, vocab, np.ones(67, np.int64))
    masks = jax.ShapeDtypeStruct((4, length), bool)
    batch = Batch(
        tokens=jax.ShapeDtypeStruct((4, length), np.int32),
        loss_mask=masks,
        is_valid=masks,
        row=jax.ShapeDtypeStruct((4,), np.int32),
        rows=jax.ShapeDtypeStruct((), np.int32),
    )
    params = jax.eval_shape(model.init, jax.random.key(0))
    t = jax.eval_shape(model.loss, params, jax.random.key(0), batch).t
    if path.stem == "ar":
        assert t is None
    else:
        assert t.shape == (4, length if path.stem in ("bd3lm", "ar_diffusion") else 1)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """An experiment of a few steps, its data, and how to mark the batch of a step."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    experiment = tiny.experiment(
        tiny.write_text(tmp_path / "text.txt"),
        network=NETWORK,
        evaluation=Perplexity(batch_size=16),
        train=Training(steps=12, batch_size=16, ema_decay=0.9, log_every=5, eval_rows=16),
    )
    dataset = experiment.data.load(None)
    loader = TrainLoader(dataset.train.rows, 16, experiment.seed)

    def marked(step: int, factor: float, **changes):
        mark = tuple(loader.batch_at((step - 1) * 16)["tokens"][0].tolist())
        objective = Marked(mark=mark, factor=factor)
        return replace(experiment, objective=objective, train=replace(experiment.train, **changes))

    return experiment, dataset, marked


def run(experiment, dataset, folder: Path, stop_at: int | None = None) -> list:
    """The events of a run in `folder`; stopped once step `stop_at` is seen."""
    folder.mkdir(exist_ok=True)
    asked = lambda seen: stop_at in [event.step for event in seen]
    seen = []
    tx = experiment.optimizer.build(experiment.train.steps)
    parts = Model.on(experiment, dataset), experiment.mesh.build(), tx, dataset
    for event in Trainer(*parts, RunFolder(folder)).run(lambda: asked(seen)):
        seen.append(event)
    return seen


def last(folder: Path, experiment, dataset) -> tuple[dict, dict]:
    """State and data of the newest checkpoint."""
    tx = experiment.optimizer.build(experiment.train.steps)
    model = Model.on(experiment, dataset)
    state = create_state(model, tx, experiment.mesh.build(), jax.random.key(0))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.restore(jax.eval_shape(lambda: state))


def lines(folder: Path, kind: str) -> list[dict]:
    return [entry for entry in RunFolder(folder).log.metrics() if entry["kind"] == kind]


@pytest.mark.slow
def test_counts_survive_a_stop(small, tmp_path):
    _, dataset, marked = small
    experiment = marked(6, np.nan)
    run(experiment, dataset, tmp_path / "a")
    # Every line is looked at, so that it can be stopped between two that are logged in "a".
    often = replace(experiment, train=replace(experiment.train, log_every=7))
    assert isinstance(run(often, dataset, tmp_path / "b", stop_at=7)[-1], Stopped)
    run(experiment, dataset, tmp_path / "b")
    (a, _), (b, _) = (last(tmp_path / name, experiment, dataset) for name in "ab")
    assert same(without(a, "watch"), without(b, "watch"))
    assert a["watch"]["skipped"] == b["watch"]["skipped"] == 1
    for name in "ab":
        assert [e["skipped"] for e in lines(tmp_path / name, "train")][-2:] == [1, 1]


def test_a_run_that_makes_no_progress_ends_and_names_its_checkpoint(small, tmp_path):
    experiment, dataset, _ = small
    often = replace(experiment.train, log_every=1, max_skipped=3, checkpoint_every=2)
    run(replace(experiment, train=replace(often, steps=4)), dataset, tmp_path / "run")
    experiment = replace(
        experiment,
        optimizer=AdamW(learning_rate=1e38, warmup_steps=0),
        train=replace(often, steps=40),
    )
    with pytest.raises(Diverged) as caught:
        run(experiment, dataset, tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        newest = checkpoints.folder / str(checkpoints.latest)
    said = str(caught.value)
    assert said.startswith("3 steps in a row, up to step ") and "\n" not in said
    assert said.endswith(f"; the last checkpoint with a finite loss is {newest}")
    assert newest.name == "4" and newest.is_dir()
    state, _ = last(tmp_path / "run", experiment, dataset)
    leaves = jax.tree.leaves((state["params"], state["opt_state"], state["ema"]))
    assert all(np.isfinite(leaf).all() for leaf in leaves)

    def refuse(word):
        raise ValueError(word)

    text = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line, parse_constant=refuse) for line in text]
    assert entries[-1]["loss"] is None and entries[-1]["skipped_in_a_row"] == 3


def test_its_exit_code_is_its_own(monkeypatch, capsys):
    def diverge(*_):
        raise Diverged("3 steps in a row")

    monkeypatch.setattr(cli, "_prepare_jax", lambda: None)
    train = replace(cli.COMMANDS["train"], run=diverge)
    monkeypatch.setitem(cli.COMMANDS, "train", train)
    assert cli.main(["train", "x.py"]) == 3
    assert capsys.readouterr().err == "mdlm: 3 steps in a row\n"


def test_spikes_are_losses_far_above_the_median():
    settings = Training(spike=0.5)
    judge = Guard(settings, {})
    assert all(judge.spike(loss) is None for loss in [9.0] + [1.0] * (ENOUGH - 2))
    assert judge.spike(9.0) is None  # too few lines before it
    assert judge.spike(float("nan")) is None and judge.spike(1.5) is None
    found = judge.spike(1.6)
    assert found is not None and (found.loss, found.median) == (1.6, 1.0)
    # A continued run judges alike.
    again = Guard(settings, json.loads(json.dumps(judge.memory)))
    assert again.spike(1.6) == found
    # A level that stays is the usual one in the end.
    judge = Guard(settings, {"losses": [1.0] * WINDOW})
    assert [judge.spike(3.0) is None for _ in range(WINDOW)].index(True) == WINDOW // 2 + 1
    assert Guard(Training(), {}).spike(1e9) is None and Guard(Training(), {}).memory == {}


def test_a_spike_sends_the_run_back_past_its_batches(small, tmp_path):
    _, dataset, marked = small
    settings = {"steps": 18, "log_every": 1, "checkpoint_every": 5, "spike": 20.0, "rewinds": 1}
    experiment = marked(15, 50.0, **settings)
    seen = [e for e in run(experiment, dataset, tmp_path / "a") if isinstance(e, Spiked)]
    assert [(e.step, e.back_to) for e in seen] == [(15, 10)]
    state, data = last(tmp_path / "a", experiment, dataset)
    # Batches 11 to 15 were left out.
    assert data["position"] == (18 + 5) * 16 and data["rewinds"] == 1 and state["step"] == 18
    assert [e["step"] for e in lines(tmp_path / "a", "train")] == list(range(1, 19))
    (line,) = lines(tmp_path / "a", "rewind")
    assert (line["step"], line["from"]) == (11, 15) and line["loss"] > line["median"] + 20
    # Stopped at the checkpoint, and when the spike is seen: the same run.
    for stop_at in (9, 15):
        run(experiment, dataset, tmp_path / "b", stop_at)
    run(experiment, dataset, tmp_path / "b")
    again, data_again = last(tmp_path / "b", experiment, dataset)
    # The time of training is another.
    assert same(state, again) and without(data, "seconds") == without(data_again, "seconds")
    assert len(lines(tmp_path / "b", "rewind")) == 1


@pytest.mark.slow
def test_a_spike_is_noted_where_there_is_no_going_back(small, tmp_path):
    _, dataset, marked = small
    experiment = marked(12, 50.0, log_every=1, spike=20.0)
    seen = [e for e in run(experiment, dataset, tmp_path / "run") if isinstance(e, Spiked)]
    assert [(e.step, e.back_to) for e in seen] == [(12, None)]
    assert [e["step"] for e in lines(tmp_path / "run", "spike")] == [12]
    assert last(tmp_path / "run", experiment, dataset)[1]["position"] == 12 * 16


def test_a_checkpoint_without_counters_is_continued(tmp_path):
    mesh = MeshShape(data=1).build(jax.devices()[:1])
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put({"step": jnp.asarray(3), "watch": guard.fresh()}, here)
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(3, without(state, "watch"), {"position": 48})
        checkpoints.wait()
        found, data = restored(checkpoints, abstract)
    assert same(found, state) and data == {"position": 48}


def test_numbers_of_a_line_each_have_a_name_for_the_writers(tmp_path):
    class Kept:
        def log(self, kind, step, values):
            self.values = values

        def close(self): ...

    folder, writer = RunFolder(tmp_path), Kept()
    folder.log.writers = (writer,)
    folder.log.add("train", 1, {"loss": 1.0, "loss_by_time": [2.0, float("nan")]})
    assert folder.log.metrics()[0]["loss_by_time"] == [2.0, None]
    assert list(writer.values) == ["loss", "loss_by_time/0", "loss_by_time/1"]
