"""The training loop on the host: feeds the step, logs, evaluates and saves the run.

`Trainer.run` is a generator of events (`mdlm.train.events`), which the caller displays (the command
line as a progress bar). The caller may stop it after any step through `should_stop`; a checkpoint
is saved first. Metrics are fetched one step late, so the host dispatches the next step before it
reads the last one. The loader's thread puts batches on the devices ahead of time. The metrics may
end the run, or rewind it to a checkpoint (see `mdlm.train.guard`).
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from mdlm.cluster import compiling, process_group
from mdlm.data.dataset import Dataset
from mdlm.data.loader import HostBatch, TrainLoader
from mdlm.data.prefetch import Prefetcher
from mdlm.evals.nll import as_line
from mdlm.evals.scorer import Scorer
from mdlm.experiment.evaluation import SELECTS, split_in_training
from mdlm.experiment.identity import recorded
from mdlm.experiment.model import Model
from mdlm.keys import of_seed
from mdlm.models.network import count_parameters
from mdlm.parallel.mesh import check_batch, put_on_mesh, rows_here
from mdlm.profiling.profile import Profiler
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.finite import check_finite
from mdlm.runs.folder import RunFolder
from mdlm.runs.log import warn_once
from mdlm.runs.past import note_saved
from mdlm.times import balanced_order
from mdlm.train.events import Began, Evaluated, Event, Profiled, Saved, Spiked, Stepped, Stopped
from mdlm.train.guard import Diverged, Guard, Spike
from mdlm.train.meter import Meter
from mdlm.train.origin import Carried, started_from
from mdlm.train.soundness import Soundness, given_up
from mdlm.train.start import restored
from mdlm.train.step import (
    BASE,
    State,
    abstract_state,
    compile_step,
    create_state,
    joiner,
    saved,
)
from mdlm.types import ArrayTree, Batch

KINDS = {"valid": "valid", "test": "test", "train": "train split"}
"""Kinds of evaluation lines in metrics.jsonl, by split; "train" there is a training step."""

Sample = Callable[[int, ArrayTree], None]
"""Called with (step, EMA parameters)."""


@dataclass(frozen=True)
class Pending:
    """The metrics of a step, still on the devices, and the data position after it."""

    step: int
    metrics: dict[str, jax.Array]
    position: int


class Trainer:
    """Trains one run, from its folder's newest checkpoint if it has one. Call `run` only once.

    Args:
        model: the model to train; its experiment has the number of steps and all intervals.
        mesh: the devices.
        tx: the optimizer, built for the run's number of steps.
        dataset: the training split and the split to evaluate.
        folder: the run folder, for checkpoints, log and profile.
        initial: parameters to start from, if the run has no checkpoint.
        carried: the tokens that `initial` shares with the model, if its vocabulary is another.
        sample: called at each step at which samples are due.
        profile: number of steps to trace.

    Raises InputError if the batch or the network does not fit the mesh.
    """

    state: State
    """The training state. This and the attributes below are set once `run` has begun."""
    made: int
    """Steps made."""
    position: int
    """Position in the data after the last step's batch."""
    saved: int | None
    """Step of the newest checkpoint."""

    def __init__(
        self,
        model: Model,
        mesh: Mesh,
        tx: optax.GradientTransformation,
        dataset: Dataset,
        folder: RunFolder,
        *,
        initial: ArrayTree | None = None,
        carried: Carried | None = None,
        sample: Sample | None = None,
        profile: int = 0,
    ):
        experiment = model.experiment
        size = experiment.train.batch_size
        check_batch(mesh, size, experiment.train.accumulate)
        self.settings = experiment.train
        self.model, self.mesh, self.tx, self.folder = model, mesh, tx, folder
        self.initial, self.carried = initial, carried
        self.sample, self.profile = sample, profile
        self.abstract = abstract_state(model, tx, mesh)
        self.train_step = compile_step(model, tx, mesh)
        self.scorer = Scorer(model, mesh, dataset)
        split = split_in_training(experiment.evaluation, dataset.splits)
        self.validation = replace(experiment.evaluation, passes=1, ngrams=False, split=split)
        self.joined = joiner(model, mesh)
        self.soundness = Soundness(self.scorer, self.validation, self.joined)
        self.loader = TrainLoader(dataset.train.rows, size, experiment.seed, rows_here(mesh, size))
        self.order = balanced_order(size)
        self.metrics: dict[str, Any] | None = None
        self.pending: Pending | None = None
        self.nelbo: float | None = None

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Trains to the last step, or until `should_stop()` is true; the state is then saved.

        Raises InputError if the checkpoint or the data do not fit, and Diverged if too many steps
        in a row had a loss or gradient that is not finite.
        """
        settings = self.settings
        with Checkpoints(
            self.folder.checkpoints,
            settings.keep,
            settings.keep_every,
            verify=self.folder.verify,
        ) as self.checkpoints:
            self._begin()
            parameters = count_parameters(self.state["params"])
            yield Began(self.made, settings.steps, parameters, self.mesh.size)
            self.profiler = Profiler(
                self.folder.path,
                self.profile,
                self.made,
                self.folder.writes,
                failed=warn_once,
            )
            self.batches = self._batches()
            self.meter = Meter(self.model, self.mesh, lambda: self.batches.stalled)
            try:
                while self.made < settings.steps and not should_stop():
                    self.step()
                    yield from self._after_step()
                yield from self.log()
                if self.saved != self.made:
                    in_a_row = self._in_a_row()
                    if in_a_row and not self.soundness.of(self.state):
                        raise self._diverged(in_a_row, self.made)
                    yield self.save()
                self.checkpoints.wait()
                self._note_saved()
                if self.made < settings.steps:
                    yield Stopped(self.made)
            finally:
                self.profiler.close()
                self.batches.close()

    def step(self) -> None:
        """Dispatches a step on the next batch; does not wait for the devices."""
        self.position, batch = next(self.batches)
        if self.metrics is None:
            compiling.compile_together(self.train_step, self.state, batch, what="the training step")
            self.meter.skip()
        self.profiler.before(self.made, self.train_step, self.state, batch)
        self.state, self.metrics = self.train_step(self.state, batch)
        self.made += 1

    def log(self) -> Generator[Event, None, bool]:
        """Fetches and logs the pending metrics. Returns True if the run was rewound.

        Raises Diverged if too many steps in a row were skipped.
        """
        if self.pending is None:
            return False
        pending, self.pending = self.pending, None
        metrics = self.meter.read(self.folder.log, pending.step, pending.metrics)
        stepped = Stepped(pending.step, metrics)
        yield stepped
        if self.guard.has_given_up(stepped.metrics):
            raise self._diverged(int(stepped.metrics["skipped_in_a_row"]), pending.step)
        spike = self.guard.spike(stepped.metrics["loss"])
        if self.settings.spike is not None:  # a loss may differ in its last bit between processes
            found = process_group.broadcast(lambda: spike and vars(spike))
            spike = found and Spike(**found)
        if spike is None:
            return False
        back_to = self.checkpoints.latest if self.guard.may_rewind else None
        yield Spiked(pending.step, spike, back_to)
        if back_to is None:
            self.folder.log.add("spike", pending.step, vars(spike))
            return False
        self._go_back(back_to, pending, spike)
        return True

    def evaluate(self) -> Evaluated:
        """Evaluates the EMA parameters. A result on the validation split is saved with the next
        checkpoint, to select the best one."""
        split = self.validation.split
        found = self.scorer.run(
            self.joined(self.state, self.state["ema"]), self.validation, self.settings.eval_rows
        )
        self.nelbo = found[0].value if split == SELECTS else None
        self.folder.log.add(KINDS[split], self.made, as_line(found))
        return Evaluated(self.made, split, found)

    def save(self) -> Saved:
        """Starts writing a checkpoint."""
        data = {
            "position": self.position,
            "run": recorded(self.model.experiment),
            **self.guard.memory,
        }
        self.checkpoints.save(self.made, saved(self.state), data, self.nelbo)
        if self.saved is not None:  # a save first waits for the one before it
            self._note_saved()
        self.saved, self.nelbo = self.made, None
        return Saved(self.made)

    def _in_a_row(self) -> int:
        """Number of steps skipped since the last update; while there are some, nothing is saved."""
        return int(self.state["watch"]["in_a_row"])

    def _diverged(self, in_a_row: int, step: int) -> Diverged:
        """Returns the end of a run that makes no progress; it names the newest sound checkpoint."""
        self.checkpoints.wait()
        # Frees its memory before others are restored.
        self.state = {name: part for name, part in self.state.items() if name == BASE}
        left = self.soundness.newest(self.checkpoints, self.abstract, self.state)
        return Diverged(given_up(in_a_row, step, left))

    def _note_saved(self) -> None:
        if self.folder.writes:
            note_saved(self.folder.path)

    def _begin(self) -> None:
        """Restores the newest checkpoint, or creates the state before the first step."""
        data: dict[str, Any] = {"position": 0}
        self.saved = self.checkpoints.latest
        if self.saved is not None:
            self.state, data = restored(self.checkpoints, self.abstract, self.folder)
        else:
            key = of_seed(self.model.experiment.seed)
            self.state = create_state(self.model, self.tx, self.mesh, key)
            if self.initial is not None:
                self.state = started_from(self.state, self.initial, self.carried)
        self.initial = None  # frees its memory
        self.made, self.position = int(self.state["step"]), data["position"]
        where = f"{self.folder.path}, step {self.made}"
        check_finite({n: self.state[n] for n in ("params", "ema", BASE) if n in self.state}, where)
        self.guard = Guard(self.settings, data)
        self.folder.log.rewind(self.made)

    def _after_step(self) -> Iterator[Event]:
        """Logs, traces, evaluates, samples and saves, as due after a step."""
        settings = self.settings
        if (yield from self.log()):
            return
        last = self.made == settings.steps
        if self.made % settings.log_every == 0 or last:
            assert self.metrics is not None
            self.pending = Pending(self.made, self.metrics, self.position)
        self.meter.steps += 1
        if (traced := self.profiler.after(self.made, self.state)) is not None:
            yield Profiled(self.made, traced)
            self.meter.skip()
        if last or due(self.made, settings.eval_every):
            yield self.evaluate()
            self.meter.skip()
        if self.sample and (last or due(self.made, settings.sample_every)):
            self.sample(self.made, self.joined(self.state, self.state["ema"]))
            self.meter.skip()
        if last or due(self.made, settings.checkpoint_every):
            if (yield from self.log()):  # so that a spike is not saved
                return
            if not last and not self._in_a_row():  # the last is saved by `run`
                yield self.save()

    def _go_back(self, step: int, spiked: Pending, spike: Spike) -> None:
        """Rewinds to the checkpoint of `step` and continues with the batches after the spike."""
        self.checkpoints.wait()
        self.batches.close()
        self.state = {}  # frees its memory before the restore
        self.state, data = restored(self.checkpoints, self.abstract, self.folder)
        self.guard = Guard(self.settings, {**data, "rewinds": self.guard.rewinds + 1})
        self.made, self.position, self.saved, self.nelbo = step, spiked.position, step, None
        self.folder.log.rewind(step)
        # Logged at the first repeated step, so that a later rewind to `step` drops this line too.
        self.folder.log.add("rewind", step + 1, {"from": spiked.step, **vars(spike)})
        self.batches = self._batches()
        self.meter.skip()

    def _batches(self) -> Prefetcher[tuple[int, Batch]]:
        """Returns batches from the current position on, put on the devices ahead of time."""

        def on_device(rows: HostBatch) -> Batch:
            batch = Batch(**put_on_mesh(self.mesh, in_training(rows, self.order)))
            return jax.block_until_ready(batch)

        def is_idle() -> bool:
            return self.metrics is None or self.metrics["loss"].is_ready()

        return self.loader.iterate(self.position, on_device, is_idle)


def due(step: int, every: int) -> bool:
    """Whether `step` is a multiple of `every` (0: never)."""
    return every > 0 and step % every == 0


def in_training(rows: dict[str, np.ndarray], order: np.ndarray) -> dict[str, Any]:
    """Returns a loader's rows with their strata: the noise level of each in the global batch."""
    return {
        **rows,
        "row": order[rows["row"]].astype(np.int32),
        "rows": np.asarray(len(order), np.int32),
    }
