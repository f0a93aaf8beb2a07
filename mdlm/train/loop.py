"""The training loop on the host: feeds the step, looks at the run now and then, and saves it.

It is a generator of events; whoever iterates draws them (the command line as a progress bar) and
may stop it at any step through `should_stop`, upon which a checkpoint is saved first. Metrics are
fetched one step late, so the host hands the device its next step before it reads the last one;
batches are put on the devices ahead of time, by the loader's thread.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from mdlm.data.dataset import Dataset
from mdlm.data.loader import HostBatch, TrainLoader
from mdlm.evals.nll import Metric
from mdlm.experiment import Experiment, Model
from mdlm.hardware import peak_flops
from mdlm.mesh import check_batch, place
from mdlm.models.layers import compute_dtype
from mdlm.models.network import count_parameters
from mdlm.times import balanced_order
from mdlm.train.checkpoint import Checkpoints
from mdlm.train.profile import Profile, Profiler
from mdlm.train.record import RunFolder
from mdlm.train.score import Scorer
from mdlm.train.step import abstract_state, compile_step, create_state
from mdlm.types import ArrayTree, Batch, InputError


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
    step: int
    metrics: list[Metric]


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


Event = Began | Stepped | Evaluated | Profiled | Saved | Stopped
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
    InputError where mesh, batch, checkpoint or data do not fit.
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
        jax.process_index(),
        jax.process_count(),
    )
    with Checkpoints(folder.checkpoints, settings.keep) as checkpoints:
        if checkpoints.latest is None:
            state, position = create_state(model, tx, mesh, jax.random.key(experiment.seed)), 0
            if initial is not None:
                state = started_from(state, initial)
        else:
            state, data = checkpoints.restore(abstract_state(model, tx, mesh))
            position = data["position"]
        step = int(state["step"])
        folder.rewind(step)
        parameters = count_parameters(state["params"])
        yield Began(step, settings.steps, parameters, mesh.size)

        train_step = compile_step(model, tx, mesh)
        scorer = Scorer(model, mesh, dataset)
        order = balanced_order(settings.batch_size)
        quick = replace(experiment.evaluation, passes=1, ngrams=False)
        saved, nelbo = checkpoints.latest, None
        profiler = Profiler(folder.path, profile, step, folder.writes)
        pending: tuple[int, dict[str, jax.Array]] | None = None
        running: dict[str, Any] | None = None

        def on_device(rows: HostBatch) -> Batch:
            batch = Batch(**place(mesh, in_training(rows, order)))
            return jax.block_until_ready(batch)

        def is_idle() -> bool:
            return running is None or running["loss"].is_ready()

        batches = loader.iterate(position, on_device, is_idle)
        meter = Meter(model, mesh, lambda: batches.stalled)
        try:
            while step < settings.steps and not should_stop():
                position, batch = next(batches)
                profiler.before(step, train_step, state, batch)
                state, running = train_step(state, batch)
                step += 1
                last = step == settings.steps
                if pending is not None:
                    yield meter.read(folder, *pending)
                    pending = None
                if step % settings.log_every == 0 or last:
                    pending = (step, running)
                meter.steps += 1
                if (traced := profiler.after(step, state)) is not None:
                    yield Profiled(step, traced)
                    meter.skip()
                if last or due(step, settings.eval_every):
                    found = scorer.run(state["ema"], quick, settings.eval_rows)
                    nelbo = found[0].value
                    folder.log("valid", step, {m.name: m.value for m in found})
                    yield Evaluated(step, found)
                    meter.skip()
                if sample and (last or due(step, settings.sample_every)):
                    sample(step, state["ema"])
                    meter.skip()
                if last or due(step, settings.checkpoint_every):
                    checkpoints.save(step, state, {"position": position}, nelbo)
                    saved, nelbo = step, None
                    yield Saved(step)
            if pending is not None:
                yield meter.read(folder, *pending)
            if saved != step:
                checkpoints.save(step, state, {"position": position}, nelbo)
                yield Saved(step)
            checkpoints.wait()
            if step < settings.steps:
                yield Stopped(step)
        finally:
            profiler.close()
            batches.close()


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


class Meter:
    """Turns fetched metrics into a log line with the speed since the line before.

    `tokens_per_second` are scored tokens. `flops_per_second` are the model's own operations in
    matrix products: three times those of a forward pass, nothing that is done twice; `mfu` is
    their share of the devices' peak, left out where that is not known. `data_wait` is the share
    of the time in which this process's devices had nothing to do, and waited for a batch.

    Args:
        stalled: seconds so far of such waiting.
    """

    def __init__(self, model: Model, mesh: jax.sharding.Mesh, stalled: Callable[[], float]):
        experiment = model.experiment
        self.network, self.columns = experiment.network, model.columns
        self.rows, self.length = experiment.train.batch_size, experiment.data.packing.length
        dtype = compute_dtype(getattr(self.network, "dtype", "float32"))
        self.stalled = stalled
        # On a CPU this measures, so it comes before anything is timed.
        self.peak = peak_flops(dtype.name, list(mesh.devices.flat)).flops
        self.skip()

    def skip(self) -> None:
        """Forgets the time since the last reading: it went into something else than training."""
        self._start(time.perf_counter())

    def _start(self, now: float) -> None:
        self.steps, self.since, self.stalled_before = 0, now, self.stalled()

    def read(self, folder: RunFolder, step: int, metrics: dict[str, jax.Array]) -> Stepped:
        """Waits for the metrics of a step, logs them."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        if self.steps:
            rate = self.steps / (now - self.since)
            values["tokens_per_second"] = values["tokens"] * rate
            forward = self.network.flops(self.rows, self.length, values["scored"], self.columns)
            values["flops_per_second"] = 3 * forward * rate
            if self.peak is not None:
                values["mfu"] = values["flops_per_second"] / self.peak
            values["data_wait"] = (self.stalled() - self.stalled_before) / (now - self.since)
        self._start(now)
        folder.log("train", step, values)
        return Stepped(step, values)
