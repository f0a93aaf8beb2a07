"""The training loop on the host: feeds the step, logs, evaluates and saves the run.

`Trainer.run` is a generator of events (`mdlm.train.events`), which the caller displays (the command
line as a progress bar). The caller may stop it after any step through `should_stop`; a checkpoint
is saved first. Metrics are fetched one step late, so the host dispatches the next step before it
reads the last one. The loader's thread puts batches on the devices ahead of time. The metrics may
end the run, or rewind it to a checkpoint (see `mdlm.train.guard`).
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from mdlm.cluster import compiling, process_group
from mdlm.data.dataset import Dataset
from mdlm.data.loader import TrainLoader
from mdlm.data.prefetch import Prefetcher
from mdlm.evals.nll import as_line
from mdlm.evals.scorer import Scorer
from mdlm.experiment import stages
from mdlm.experiment.evaluation import SELECTS, split_in_training
from mdlm.experiment.identity import recorded
from mdlm.experiment.model import Model
from mdlm.models.network import count_parameters
from mdlm.parallel.mesh import check_batch, rows_here
from mdlm.profiling.profile import Profiler
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.finite import check_finite
from mdlm.runs.folder import RunFolder
from mdlm.runs.log import warn_once
from mdlm.train import events
from mdlm.train.batches import on_devices
from mdlm.train.events import Event
from mdlm.train.guard import Diverged, Guard, Spike
from mdlm.train.meter import Meter
from mdlm.train.origin import Carried
from mdlm.train.rollouts import Reward, Written
from mdlm.train.saving import Saving
from mdlm.train.soundness import Soundness
from mdlm.train.start import created, restored
from mdlm.train.step import BASE, State, Step, abstract_state, compile_step, joiner
from mdlm.train.stopping import Stopping
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
        reward: judges texts, if the objective has rollouts.

    Raises InputError if the batch or the network does not fit the mesh.
    """

    state: State
    """The training state. This and the attributes below are set once `run` has begun."""
    made: int
    """Steps made."""
    position: int
    """Position in the data after the last step's batch."""

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
        reward: Reward | None = None,
    ):
        experiment = model.experiment
        size = experiment.train.batch_size
        check_batch(mesh, size, experiment.train.accumulate, model.objective.rows_together)
        self.settings = experiment.train
        self.model, self.mesh, self.tx, self.folder = model, mesh, tx, folder
        self.initial, self.carried = initial, carried
        self.sample, self.profile = sample, profile
        self.abstract = abstract_state(model, tx, mesh)
        self.stages = experiment.stages
        self.scorer = Scorer(model, mesh, dataset)
        split = split_in_training(experiment.evaluation, dataset.splits)
        self.validation = replace(experiment.evaluation, passes=1, ngrams=False, split=split)
        self.joined = joiner(model, mesh)
        self.soundness = Soundness(self.scorer, self.validation, self.joined)
        self.loader = TrainLoader(dataset.train.rows, size, experiment.seed, rows_here(mesh, size))
        self.stage: stages.Stage | None = None
        self.train_step: Step | None = None
        self.written = None
        if model.objective.own_texts is not None:
            assert reward is not None
            self.written = Written(model, mesh, dataset.tokenizer, reward, self.joined)
            self.loader.order = self.written.order(self.loader.order)
        self.metrics: dict[str, Any] | None = None
        self.pending: Pending | None = None

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Trains to the last step, or until `should_stop()` is true, or `Stopping` ends the run;
        the state is then saved.

        Raises InputError if the checkpoint or the data do not fit, and Diverged if too many steps
        in a row had a loss or gradient that is not finite.
        """
        settings = self.settings
        with Checkpoints(
            self.folder.checkpoints,
            settings.keep,
            settings.keep_every,
            best=settings.best,
            verify=self.folder.verify,
        ) as self.checkpoints:
            self._begin()
            parameters = count_parameters(self.state["params"])
            yield events.Began(self.made, settings.steps, parameters, self.mesh.size)
            path, writes = self.folder.path, self.folder.writes
            self.profiler = Profiler(path, self.profile, self.made, writes, failed=warn_once)
            self.batches = self._batches()
            self.meter = Meter(self.model, self.mesh, lambda: self.batches.stalled)
            try:
                while not self._is_last and not (self._may_stop and should_stop()):
                    yield from self._enter()
                    self.step()
                    yield from self._after_step()
                yield from self.log()
                if self.saving.saved != self.made:
                    in_a_row = self._in_a_row()
                    if in_a_row and not self.soundness.of(self.state):
                        raise self._diverged(in_a_row, self.made)
                    yield self.save()
                self.saving.finish()
                if not self._is_last:
                    yield events.Stopped(self.made)
                elif self.made < settings.steps:
                    best = self.checkpoints.best
                    others = best if best != self.made else None
                    yield events.Ended(self.made, self.stopping.why, others)
            finally:
                self.profiler.close()
                self.batches.close()

    def step(self) -> None:
        """Dispatches a step on the next batch; does not wait for the devices."""
        self.position, batch = next(self.batches)
        if self.written is not None:
            batch = self.written.batch(self.state, self.made, batch)
        if self.train_step is None:
            model = replace(self.model, stage=self.stage)
            self.train_step = compile_step(model, self.tx, self.mesh)
            with self._aside():
                compiling.compile_together(
                    self.train_step, self.state, batch, what="the training step"
                )
            self.meter.network = model.network
        self.profiler.before(self.made, self.train_step, self.state, batch)
        self.state, self.metrics = self.train_step(self.state, batch)
        self.made += 1

    def _enter(self) -> Iterator[Event]:
        """Enters the stage of the next step, if it is another one than that of the last step."""
        entered = stages.at(self.stages, self.made, self.settings.steps)
        if not self.stages or (self.train_step is not None and entered == self.stage):
            return
        if (yield from self.log()):  # rewound, perhaps into the stage that was over
            yield from self._enter()
            return
        if self.train_step is not None:
            self.guard.losses = []  # those of another objective tell nothing
        self.stage, self.train_step = entered, None
        number = len(self.stages) if entered is None else self.stages.index(entered)
        self.folder.log.add("stage", self.made + 1, {"number": number})
        yield events.Entered(self.made, number, entered)

    def log(self) -> Generator[Event, None, bool]:
        """Fetches and logs the pending metrics. Returns True if the run was rewound.

        Raises Diverged if too many steps in a row were skipped.
        """
        if self.pending is None:
            return False
        pending, self.pending = self.pending, None
        metrics = self.meter.read(self.folder.log, pending.step, pending.metrics)
        stepped = events.Stepped(pending.step, metrics)
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
        yield events.Spiked(pending.step, spike, back_to)
        if back_to is None:
            self.folder.log.add("spike", pending.step, vars(spike))
            return False
        self._go_back(back_to, pending, spike)
        return True

    def evaluate(self) -> events.Evaluated:
        """Evaluates the EMA parameters. A result on the validation split is saved with the next
        checkpoint, to select the best one."""
        split = self.validation.split
        params = self.joined(self.state, self.state["ema"])
        found = self.scorer.run(params, self.validation, self.settings.eval_rows)
        if split == SELECTS:
            self.saving.found = self.stopping.validated(self.made, {m.name: m.value for m in found})
        self.folder.log.add(KINDS[split], self.made, as_line(found))
        return events.Evaluated(self.made, split, found)

    def save(self) -> events.Saved:
        """Starts writing a checkpoint."""
        data = {
            "position": self.position,
            "run": recorded(self.model.experiment),
            **self.guard.memory,
            **self.stopping.memory,
        }
        return self.saving.save(self.made, self.state, data)

    def _in_a_row(self) -> int:
        """Number of steps skipped since the last update; while there are some, nothing is saved."""
        return int(self.state["watch"]["in_a_row"])

    def _diverged(self, in_a_row: int, step: int) -> Diverged:
        # Frees its memory before others are restored.
        self.state = {name: part for name, part in self.state.items() if name == BASE}
        return self.saving.diverged(in_a_row, step, self.soundness, self.abstract, self.state)

    def _begin(self) -> None:
        """Restores the newest checkpoint, or creates the state before the first step."""
        self.saving = Saving(self.checkpoints, self.folder)
        if self.saving.saved is not None:
            self.state, data = restored(self.checkpoints, self.abstract, self.folder)
        else:
            data: dict[str, Any] = {"position": 0}
            self.state = created(self.model, self.tx, self.mesh, self.initial, self.carried)
        self.initial = None  # frees its memory
        self.made, self.position = int(self.state["step"]), data["position"]
        where = f"{self.folder.path}, step {self.made}"
        check_finite({n: self.state[n] for n in ("params", "ema", BASE) if n in self.state}, where)
        self.guard, self.stopping = Guard(self.settings, data), Stopping(self.settings, data)
        self.folder.log.rewind(self.made)

    def _after_step(self) -> Iterator[Event]:
        """Logs, traces, evaluates, samples and saves, as due after a step."""
        settings = self.settings
        if (yield from self.log()):
            return
        if due(self.made, settings.log_every):
            self.stopping.look_at_clock()
        if due(self.made, settings.log_every) or self._is_last:
            assert self.metrics is not None
            self.pending = Pending(self.made, self.metrics, self.position)
        self.meter.steps += 1
        with self.stopping.paused():
            traced = self.profiler.after(self.made, self.state)
        if traced is not None:
            with self._aside():
                yield events.Profiled(self.made, traced)
        if self._is_last or due(self.made, settings.eval_every):
            with self._aside():
                yield self.evaluate()
        if self.sample and (self._is_last or due(self.made, settings.sample_every)):
            with self._aside():
                self.sample(self.made, self.joined(self.state, self.state["ema"]))
        is_best = self.stopping.is_best(self.made)
        if self._is_last or is_best or due(self.made, settings.checkpoint_every):
            if (yield from self.log()):  # so that a spike is not saved
                return
            if not self._is_last and not self._in_a_row():  # the last is saved by `run`
                with self.stopping.paused():
                    yield self.save()

    @property
    def _is_last(self) -> bool:
        """Whether no step is made after the present one."""
        return self.made >= self.settings.steps or bool(self.stopping.why)

    @property
    def _may_stop(self) -> bool:
        """Whether a run that is stopped now goes on as if it had not been."""
        asked = self.model.objective.own_texts
        return asked is None or self.made % asked.updates == 0

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """For what is not training: its time counts for no speed, and not as training."""
        jax.block_until_ready(self.metrics)
        with self.stopping.paused():
            yield
        self.meter.skip()

    def _go_back(self, step: int, spiked: Pending, spike: Spike) -> None:
        """Rewinds to the checkpoint of `step` and continues with the batches after the spike."""
        self.checkpoints.wait()
        self.batches.close()
        self.state = {}  # frees its memory before the restore
        self.state, data = restored(self.checkpoints, self.abstract, self.folder)
        self.guard = Guard(self.settings, {**data, "rewinds": self.guard.rewinds + 1})
        self.stopping = Stopping(self.settings, {**data, "seconds": self.stopping.seconds})
        self.saving.go_on_from(step)
        self.made, self.position = step, spiked.position
        self.folder.log.rewind(step)
        # Logged at the first repeated step, so that a later rewind to `step` drops this line too.
        self.folder.log.add("rewind", step + 1, {"from": spiked.step, **vars(spike)})
        self.batches = self._batches()
        self.meter.skip()
        self.stopping.start()

    def _batches(self) -> Prefetcher[tuple[int, Batch]]:
        """Returns batches from the current position on, put on the devices ahead of time."""

        def is_idle() -> bool:
            return self.metrics is None or self.metrics["loss"].is_ready()

        return on_devices(self.loader, self.mesh, self.position, is_idle)


def due(step: int, every: int) -> bool:
    """Whether `step` is a multiple of `every` (0: never)."""
    return every > 0 and step % every == 0
