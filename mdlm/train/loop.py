"""The training loop on the host: feeds the step, looks at the run now and then, and saves it.

It is a generator of events; whoever iterates draws them (the command line as a progress bar) and
may stop it at any step through `should_stop`, upon which a checkpoint is saved first. Metrics are
fetched one step late, so the host hands the device its next step before it reads the last one;
batches are put on the devices ahead of time, by the loader's thread. Metrics that are read may end
the run, or send it back to a checkpoint (see `mdlm.train.guard`).
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from mdlm.cluster import process_group
from mdlm.data.dataset import Dataset
from mdlm.data.loader import HostBatch, TrainLoader
from mdlm.errors import InputError
from mdlm.evals.nll import Metric
from mdlm.evals.scorer import Scorer
from mdlm.experiment.evaluation import SELECTS, split_in_training
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.identity import recorded
from mdlm.experiment.model import Model
from mdlm.models.network import count_parameters
from mdlm.parallel.mesh import check_batch, place, rows_here
from mdlm.profiling.profile import Profile, Profiler
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.folder import RunFolder
from mdlm.times import balanced_order
from mdlm.train import guard
from mdlm.train.guard import Diverged, Guard, Spike
from mdlm.train.meter import Meter
from mdlm.train.step import State, abstract_state, compile_step, create_state
from mdlm.types import ArrayTree, Batch


@dataclass(frozen=True)
class Began:
    """Before the first step: where it starts, and how large the model is."""

    step: int
    steps: int
    parameters: int
    devices: int


@dataclass(frozen=True)
class Stepped:
    """After a logged step: its metrics, and the speed since the last one (see `Meter`)."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Evaluated:
    """After an evaluation of `split`: the validation split, where the data have one."""

    step: int
    split: str
    metrics: list[Metric]


@dataclass(frozen=True)
class Spiked:
    """The loss of a logged step was a spike. Step `back_to` follows, if that is not None."""

    step: int
    spike: Spike
    back_to: int | None


@dataclass(frozen=True)
class Profiled:
    """The steps that were to be traced are, up to this one."""

    step: int
    profile: Profile


@dataclass(frozen=True)
class Saved:
    step: int


@dataclass(frozen=True)
class Stopped:
    """The run was asked to stop before its last step, and its state is saved."""

    step: int


KINDS = {"valid": "valid", "test": "test", "train": "train split"}
"""What an evaluation of a split is called in metrics.jsonl, where "train" is a training step."""

Event = Began | Stepped | Evaluated | Spiked | Profiled | Saved | Stopped
Look = Callable[[int, ArrayTree], None]
"""Called with (step, averaged parameters) when it is time to sample."""


def train(
    experiment: Experiment,
    dataset: Dataset,
    folder: RunFolder,
    *,
    initial: ArrayTree | None = None,
    sample: Look | None = None,
    profile: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Trains to the last step, from the folder's newest checkpoint if it has one.

    `initial` replaces the fresh parameters of a run that has none; `profile` steps are traced.
    InputError where mesh, batch, checkpoint or data do not fit; Diverged where too many steps in a
    row were not finite.
    """
    settings = experiment.train
    mesh = experiment.mesh.build()
    check_batch(mesh, settings.batch_size, settings.accumulate)
    model = Model.on(experiment, dataset)
    tx = experiment.optimizer.build(settings.steps)
    loader = TrainLoader(
        dataset.train.rows,
        settings.batch_size,
        experiment.seed,
        rows_here(mesh, settings.batch_size),
    )
    abstract = abstract_state(model, tx, mesh)
    state: State
    with Checkpoints(folder.checkpoints, settings.keep, settings.keep_every) as checkpoints:
        if checkpoints.latest is None:
            state = create_state(model, tx, mesh, jax.random.key(experiment.seed))
            data: dict[str, Any] = {"position": 0}
            if initial is not None:
                state = started_from(state, initial)
        else:
            state, data = restored(checkpoints, abstract)
        step, position = int(state["step"]), data["position"]
        judge = Guard(settings, data)
        folder.rewind(step)
        parameters = count_parameters(state["params"])
        yield Began(step, settings.steps, parameters, mesh.size)

        train_step = compile_step(model, tx, mesh)
        scorer = Scorer(model, mesh, dataset)
        order = balanced_order(settings.batch_size)
        split = split_in_training(experiment.evaluation, dataset.splits)
        quick = replace(experiment.evaluation, passes=1, ngrams=False, split=split)
        saved, nelbo = checkpoints.latest, None
        profiler = Profiler(folder.path, profile, step, folder.writes)
        pending: tuple[int, dict[str, jax.Array], int] | None = None
        running: dict[str, Any] | None = None

        def on_device(rows: HostBatch) -> Batch:
            batch = Batch(**place(mesh, in_training(rows, order)))
            return jax.block_until_ready(batch)

        def is_idle() -> bool:
            return running is None or running["loss"].is_ready()

        batches = loader.iterate(position, on_device, is_idle)
        meter = Meter(model, mesh, lambda: batches.stalled)

        def save() -> None:
            nonlocal saved, nelbo
            data = {"position": position, "run": recorded(experiment), **judge.memory}
            checkpoints.save(step, state, data, nelbo)
            saved, nelbo = step, None

        def look() -> Generator[Event, None, bool]:
            """Reads what is pending. True where that sent the run back."""
            nonlocal pending, state, step, position, saved, nelbo, judge, batches
            if pending is None:
                return False
            at, metrics, after = pending
            pending = None
            stepped = Stepped(at, meter.read(folder, at, metrics))
            yield stepped
            if judge.has_given_up(stepped.metrics):
                checkpoints.wait()
                raise Diverged(given_up(stepped, checkpoints))
            spike = judge.spike(stepped.metrics["loss"])
            if settings.spike is not None:  # a loss may differ in its last bit between processes
                found = process_group.broadcast(lambda: spike and vars(spike))
                spike = found and Spike(**found)
            if spike is None:
                return False
            back_to = checkpoints.latest if judge.may_rewind else None
            yield Spiked(at, spike, back_to)
            if back_to is None:
                folder.log("spike", at, vars(spike))
                return False
            checkpoints.wait()
            batches.close()
            state = {}  # before another takes its memory
            state, data = restored(checkpoints, abstract)
            judge = Guard(settings, {**data, "rewinds": judge.rewinds + 1})
            step, position, saved, nelbo = back_to, after, back_to, None
            folder.rewind(step)
            # Of the first step that is made anew: gone again where a stopped run does it again.
            folder.log("rewind", step + 1, {"from": at, **vars(spike)})
            batches = loader.iterate(position, on_device, is_idle)
            meter.skip()
            return True

        try:
            while step < settings.steps and not should_stop():
                position, batch = next(batches)
                if running is None:
                    process_group.compile_together(train_step, state, batch)
                profiler.before(step, train_step, state, batch)
                state, running = train_step(state, batch)
                step += 1
                if (yield from look()):
                    continue
                last = step == settings.steps
                if step % settings.log_every == 0 or last:
                    pending = (step, running, position)
                meter.steps += 1
                if (traced := profiler.after(step, state)) is not None:
                    yield Profiled(step, traced)
                    meter.skip()
                if last or due(step, settings.eval_every):
                    found = scorer.run(state["ema"], quick, settings.eval_rows)
                    nelbo = found[0].value if split == SELECTS else None
                    folder.log(KINDS[split], step, {m.name: m.value for m in found})
                    yield Evaluated(step, split, found)
                    meter.skip()
                if sample and (last or due(step, settings.sample_every)):
                    sample(step, state["ema"])
                    meter.skip()
                if last or due(step, settings.checkpoint_every):
                    if (yield from look()):  # before a spike is saved
                        continue
                    save()
                    yield Saved(step)
            yield from look()
            if saved != step:
                save()
                yield Saved(step)
            checkpoints.wait()
            if step < settings.steps:
                yield Stopped(step)
        finally:
            profiler.close()
            batches.close()


def restored(checkpoints: Checkpoints, abstract: State) -> tuple[State, dict[str, Any]]:
    """State and data of the newest checkpoint; fresh counters where it is older than those."""
    if checkpoints.has("watch"):
        return checkpoints.restore(abstract)
    state, data = checkpoints.restore({k: v for k, v in abstract.items() if k != "watch"})
    places = jax.tree.map(lambda a: a.sharding, abstract["watch"])
    fresh = jax.tree.map(np.asarray, guard.fresh())
    return {**state, "watch": jax.device_put(fresh, places)}, data


def given_up(stepped: Stepped, checkpoints: Checkpoints) -> str:
    """Why the run ends, and what is left of it."""
    newest = checkpoints.latest
    left = "no checkpoint was saved"
    if newest is not None:
        left = f"the last good checkpoint is {checkpoints.folder / str(newest)}"
    return (
        f"{stepped.metrics['skipped_in_a_row']:.0f} steps in a row, up to step {stepped.step}, had"
        f" a loss or gradient that is not finite and were skipped; {left}"
    )


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens at this one."""
    return every > 0 and step % every == 0


def in_training(rows: dict[str, np.ndarray], order: np.ndarray) -> dict[str, Any]:
    """A loader's rows with their strata: which noise level each gets within the global batch."""
    return {
        **rows,
        "row": order[rows["row"]].astype(np.int32),
        "rows": np.asarray(len(order), np.int32),
    }


def started_from(state: dict[str, Any], initial: ArrayTree) -> dict[str, Any]:
    """A fresh state that begins with the parameters of the given components, of the same names
    and shapes; other components stay fresh."""

    def take(old: jax.Array, new: Any) -> jax.Array:
        if old.shape != new.shape:
            raise InputError(f"--init-from: an array of shape {new.shape} where {old.shape} is due")
        return jax.device_put(new.astype(old.dtype), old.sharding)

    fresh = {name: state["params"][name] for name in initial}
    if jax.tree.structure(fresh) != jax.tree.structure(initial):
        raise InputError("--init-from: those parameters are of another kind of network")
    params = {**state["params"], **jax.tree.map(take, fresh, initial)}
    # The step donates its input, so the average needs arrays of its own.
    return {**state, "params": params, "ema": jax.tree.map(lambda a: a.copy(), params)}
