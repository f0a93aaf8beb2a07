"""A training session: an experiment, its data and its run folder together.

All checks come before the folder is written to: the experiment is composed, the data read and
packed, the mesh and the batch checked. Then the folder is created (or resumed, if it holds the same
run), and `train` yields the loop's events and keeps samples, plots and metrics writers up to date.

With several processes (see `mdlm.cluster.process_group`) each prepares the same and reads the data
itself; their arguments and their data are compared. Process 0 checks the folder and writes.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import jax

from mdlm.cluster import process_group
from mdlm.config import records
from mdlm.config.component_text import to_text
from mdlm.config.components import UnknownComponent
from mdlm.config.records import describe
from mdlm.data.dataset import Dataset
from mdlm.data.tokens.text_size import UNITS
from mdlm.errors import InputError
from mdlm.evals.nll import Metric, table
from mdlm.evals.scorer import check_same_data
from mdlm.experiment.evaluation import split_in_training
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.identity import without_stores
from mdlm.experiment.model import Model
from mdlm.files import Lock
from mdlm.generation.texts import Generation
from mdlm.parallel.mesh import check_batch
from mdlm.profiling import profile as profiles
from mdlm.runs import agreement, base_weights, curves
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.folder import RunFolder
from mdlm.runs.log import warn_once
from mdlm.runs.past import check_past, check_texts, hold, keep_texts
from mdlm.runs.weights import Weights
from mdlm.runs.writers import check_packages, writers
from mdlm.train import stopping
from mdlm.train.events import Ended, Evaluated, Event, Saved
from mdlm.train.loop import Trainer
from mdlm.train.origin import Origin
from mdlm.train.sampling import Sampling
from mdlm.train.step import abstract_state, saved
from mdlm.types import ArrayTree
from mdlm.version import __version__


class Session:
    """Prepares a run; `train` runs it.

    Args:
        experiment: what to train.
        out: the run folder; an earlier run of the same experiment there is resumed.
        source: text of the experiment file, of which the folder keeps a copy, if any.
        file: where the experiment file lies, for code in it that asks.
        overrides: overrides of the experiment's values, recorded in config.json.
        checkpoints: a folder or URL to keep checkpoints in, if not in the run folder.
        init_from: a run folder whose EMA parameters training starts from.
        fork: a run folder, or `RUN@STEP`, whose training state training starts from.
        new_tokenizer: with `init_from`, keep this experiment's tokenizer; tokens that both have
            start from their parameters there, other tokens afresh.
        restart: begin again if the run's checkpoints are gone; the old log is moved aside.
        tensorboard: also write TensorBoard events.
        wandb: project of Weights & Biases to log to as well.
        profile: steps to trace, see `mdlm.profiling.profile`; 0 for none.
        trust: execute an earlier run's copy of its experiment file to compare with it.
        verify: compare files of runs with their digests before they are used.
        report: called with `(task, done, total)` while data are prepared.
    """

    def __init__(
        self,
        experiment: Experiment,
        out: Path,
        *,
        source: str | None = None,
        overrides: Sequence[tuple[str, str]] = (),
        file: Path | None = None,
        checkpoints: str | None = None,
        init_from: str | None = None,
        fork: str | None = None,
        new_tokenizer: bool = False,
        restart: bool = False,
        tensorboard: bool = False,
        wandb: str | None = None,
        profile: int = 0,
        trust: bool = False,
        verify: bool = True,
        report: Callable[[str, int, int], None] | None = None,
    ):
        check_recordable(experiment, with_file=bool(source))
        origin = Origin.of(init_from, fork, new_tokenizer, verify=verify)
        self.experiment, self.profile = experiment, profile
        self.folder = RunFolder(out, checkpoints, trust=trust, verify=verify)
        settings = experiment.train
        asked = {"--checkpoints": checkpoints, "--init-from": init_from, "--fork": fork}
        asked |= {"--new-tokenizer": new_tokenizer, "--profile": profile}
        process_group.check_same({**configuration(experiment), **asked}, "values")
        process_group.broadcast(lambda: check_packages(tensorboard, wandb))
        self.mesh = experiment.mesh.build()
        check_batch(self.mesh, settings.batch_size, settings.accumulate)
        experiment.network.check_mesh(self.mesh, experiment.data.packing.length)
        resumes = agreement.agreed(self.folder, experiment)
        self.changed = self.folder.changes(experiment) if resumes else []
        if origin is not None and not resumes:
            self.dataset: Dataset = origin.load(experiment.data, report)
        else:
            self.dataset = experiment.data.load(self.folder.data if resumes else None, report)
        self.model = Model.on(experiment, self.dataset)
        self.split = split_in_training(experiment.evaluation, self.dataset.splits)
        splits = ("train", self.split)
        for split in splits:
            getattr(self.dataset, split)  # reads and packs it; raises if the text is too short
        is_whole = not 0 < settings.eval_rows < len(getattr(self.dataset, self.split).rows)
        stopping.check(settings, self.split, UNITS, is_whole=is_whole)
        check_same_data(self.dataset, splits)
        # A store has checksums of its own kind.
        kind = "text" if self.dataset.store is None else "store"
        texts = {f"{s} ({kind})": getattr(self.dataset, s).text_fingerprint for s in splits}
        process_group.broadcast(partial(check_texts, self.folder.data, texts))
        made = self._steps_made()
        self.initial, self.carried = None, None
        copy: Callable[[], None] = lambda: None
        keep: Callable[[], None] = lambda: None
        if made is None and origin is not None and origin.option == "--fork":
            tx = experiment.updates()
            origin.check_base(self.model)
            origin.check(saved(abstract_state(self.model, tx, self.mesh)), experiment)
            copy = partial(origin.copy_state, self.folder, experiment)
        elif made is None:
            keep = self._take_parameters(origin)
        if made is None:
            where, log = self.folder.checkpoints, self.folder.log
            process_group.broadcast(partial(check_past, out, where, log, restart=restart))
        if profile:
            profiles.check(profile, settings.steps - (made or 0))
        self._lock: Lock | None = None
        process_group.broadcast(self._take_lock)
        self.folder.begin(
            source, overrides, experiment, file, copy, step=made or 0, changed=self.changed
        )
        if self.folder.writes:
            self.folder.save_data(self.dataset.tokenizer.files())
            keep_texts(self.folder.data, texts)
            self.folder.save_counts(self.model.counts)
            self.folder.log.writers = writers(self.folder.path, tensorboard, wandb, experiment)
        keep()
        process_group.barrier()
        agreement.check_shared(self.folder)
        self.step = 0
        self.ended: Ended | None = None
        self.references: dict[str, float] = {}
        self.metrics: list[Metric] = []
        self.generated: Generation | None = None
        self._sampling = Sampling(self.model, self.dataset, self.split)

    @property
    def finished(self) -> bool:
        """Whether the run made its last step, or ended before it (`mdlm.train.stopping`)."""
        return self.step >= self.experiment.train.steps or self.ended is not None

    def train(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Yields the loop's events; stops early, with everything saved, once `should_stop()`."""
        initial, self.initial = self.initial, None  # the trainer frees it once the state is built
        trainer = Trainer(
            self.model,
            self.mesh,
            self.experiment.updates(),
            self.dataset,
            self.folder,
            initial=initial,
            carried=self.carried,
            sample=self._sample,
            profile=self.profile,
        )
        del initial
        if self.experiment.evaluation.ngrams:
            found = trainer.scorer.ngrams(self.split)
            self.references = {m.name.split()[0]: m.value for m in found if "nats" in m.name}
        try:
            for event in trainer.run(should_stop):
                self.step = event.step
                if isinstance(event, Ended):
                    self.ended = event
                if isinstance(event, Evaluated):
                    self.metrics = event.metrics
                if isinstance(event, Evaluated | Saved):
                    self._draw()
                yield event
            self._draw()
        finally:
            self.folder.log.close()
            if self._lock is not None:
                self._lock.close()

    def closing_words(self) -> str:
        """Returns the text to print at the end of a run: its folder, why it ended before its last
        step, metrics, next commands."""
        lines, which = [f"{self.folder.path}: step {self.step}"], ""
        if self.ended is not None:
            lines[0] += f" of {self.experiment.train.steps}, ended early: {self.ended.why}"
            which = "" if self.ended.best is None else f" --step {self.ended.best}"
        lines += [table(self.metrics)] if self.metrics else []
        if self.generated:
            lines.append("a sample (more in samples.txt):")
            lines += [f"  | {line}" for line in self.generated.texts[0].shown.splitlines()]
        path = shlex.quote(str(self.folder.path))
        lines += [f"next: mdlm eval {path}{which}", f"      mdlm sample {path}{which}"]
        return "\n".join(lines)

    def _take_lock(self) -> None:
        self._lock = hold(self.folder.path)

    def _steps_made(self) -> int | None:
        """Step of the folder's newest checkpoint, None if it has none."""
        with Checkpoints(self.folder.checkpoints, read_only=True) as checkpoints:
            return checkpoints.latest

    def _take_parameters(self, origin: Origin | None) -> Callable[[], None]:
        """Reads the parameters to start from, if any: those of the origin, or the weights of this
        run folder, which has no training state. Returns what writes the arrays among them that
        training does not change."""
        nothing = lambda: None
        keeps_base = self.model.keeps_base
        if origin is not None:
            self.carried = origin.carried(self.model, self.dataset.tokenizer)
            step, self.initial = origin.parameters(self.model, self.mesh, self.carried)
            if not keeps_base:
                return nothing
            known = origin.run.config().get("fingerprint")
            base = origin.base(self.model, self.initial, self.carried)
            return partial(base_weights.write, self.folder, base, step=step, fingerprint=known)
        if keeps_base:
            tune, objective = self.experiment.tune, self.experiment.objective
            what = f"tune={to_text(tune)}: it keeps"
            if objective.needs_reference:
                what = f"objective={to_text(objective)}: it compares with"
            raise InputError(f"{what} parameters of another run; give --init-from RUN")
        weights = Weights.of(self.folder.path, verify=self.folder.verify)
        if weights is None:
            return nothing
        if weights.step:
            raise InputError(
                f"{weights.path} has the weights of step {weights.step}, and there is no training"
                " state to resume; to start from them: --init-from"
                f" {shlex.quote(str(self.folder.path))}, and another --out"
            )
        self.initial = weights.restore(self.model.abstract_params(self.mesh))
        return nothing

    def _sample(self, step: int, params: ArrayTree) -> None:
        self.generated = self._sampling(params, step)
        self.folder.log.add_samples(step, [text.shown for text in self.generated.texts])

    def _draw(self) -> None:
        if self.folder.writes:
            title = f"{self.experiment.name} ({self.folder.path})"
            path = self.folder.path / "curves.png"
            try:
                curves.draw(self.folder.log.metrics(), path, title, self.references)
            except Exception as error:  # a picture never ends a run
                warn_once(f"drawing {path}", error)
                return
            self.folder.log.add_picture(self.step, path)


def check_recordable(experiment: Experiment, *, with_file: bool) -> None:
    """Raises InputError if a run of the experiment could not be opened again.

    `with_file`: the run folder keeps an experiment file, which may define components of its own.
    """
    record = records.record(experiment)
    if with_file:
        return
    try:
        records.read(record, Experiment, "experiment")
    except UnknownComponent as error:
        raise InputError(
            f"{error}, so a run of it could not be opened: train from an experiment file that"
            ' defines it (mdlm.train("FILE.py")), or declare it in a package (CONTRIBUTING.md)'
        ) from error


def configuration(experiment: Experiment) -> dict[str, object]:
    """Values that all processes of a run must share: the experiment, and the packages' versions."""
    data = without_stores(experiment.data)
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib")}
    return {
        **describe(experiment),
        "data": describe(data),
        "versions": {"mdlm": __version__, **versions},
        "processes": jax.process_count(),
    }
