"""The experiment: every choice of a run as one value, and the model those choices compose.

An experiment file is Python that defines `experiment = Experiment(...)`. It is executed: open one
only from people you would run code from. Values in it can be replaced from outside by dotted name
(`train.steps`), see `mdlm.overrides`.
"""

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from jaxtyping import Int, Key

from mdlm.data.dataset import Dataset, TextData
from mdlm.data.mixture import Mixture
from mdlm.evals.nll import Perplexity
from mdlm.keys import stream
from mdlm.mesh import MeshShape
from mdlm.models import network as networks
from mdlm.models.network import Network
from mdlm.objectives.base import Objective
from mdlm.objectives.nelbo import Nelbo
from mdlm.optim import AdamW, Optimizer
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.subs import Subs
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.base import Sampler
from mdlm.types import (
    ArrayTree,
    Batch,
    Denoise,
    InputError,
    LossTerms,
    NetInput,
    Prediction,
    Sees,
    Vocab,
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and in what portions a run trains, and when it looks at itself.

    Args:
        steps: optimizer steps.
        batch_size: rows of a global batch, over all devices and micro-batches.
        accumulate: micro-batches whose gradients are added up before a step.
        ema_decay: decay of the parameters' moving average, reached by min(decay, (1+n)/(10+n)).
        log_every: steps between lines in metrics.jsonl.
        eval_every: steps between validations (0: only at the end).
        eval_rows: rows of the validation split that those look at (0: all).
        sample_every: steps between samples (0: only at the end).
        sample_length: tokens of such a sample (0: a row of the data).
        checkpoint_every: steps between checkpoints (0: only at the end).
        keep: newest checkpoints that are kept; the best by validation is kept too.
        keep_every: checkpoints at multiples of so many steps are kept for good (0: none is).
        max_skipped: steps in a row whose loss or gradient is not finite after which the run ends.
            Such a step changes nothing but the count of steps. Looked at with each line of the log.
        spike: what the loss of a logged step may be above the median of the 50 lines before it,
            nats per token, without being called a spike (None: it may be anything).
        rewinds: how often, at most, a spike sends the run back to its newest checkpoint, from where
            it goes on with the batches after the spike. Further ones are noted only.
    """

    steps: int = 1000
    batch_size: int = 32
    accumulate: int = 1
    ema_decay: float = 0.9999
    log_every: int = 10
    eval_every: int = 0
    eval_rows: int = 512
    sample_every: int = 0
    sample_length: int = 0
    checkpoint_every: int = 0
    keep: int = 2
    keep_every: int = 0
    max_skipped: int = 10
    spike: float | None = None
    rewinds: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} is not positive")
        for name in ("keep_every", "rewinds"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)} is negative")
        if self.spike is not None and not self.spike > 0:
            raise ValueError(f"train.spike={self.spike} is not positive")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay={self.ema_decay} is not in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: data, process, network, objective, optimizer, sampler, and the mesh it runs on.

    `time_condition` says what the network is told of the noise level: nothing ("none", as in the
    released MDLM models), the time itself, sigma = -log alpha, or the log-SNR.
    """

    name: str
    data: TextData | Mixture
    network: Network
    process: Process = Masked()
    parameterization: Parameterization = Subs()
    objective: Objective = Nelbo()
    sampler: Sampler = Ancestral()
    time_condition: Literal["none", "t", "sigma", "log_snr"] = "none"
    optimizer: Optimizer = AdamW()
    train: Training = Training()
    evaluation: Perplexity = Perplexity()
    mesh: MeshShape = MeshShape()
    seed: int = 0

    def __post_init__(self):
        refuse_nonsense(self)


@dataclass(frozen=True)
class Model:
    """An experiment's parts bound to a vocabulary: what is trained, evaluated and sampled.

    `counts`, of the training split's tokens, is for processes that are made from them. `process`
    is without what it learns; `bound_process` has that too.
    """

    experiment: Experiment
    vocab: Vocab
    counts: Int[np.ndarray, " v"] | None = field(default=None, repr=False)
    process: Process = field(init=False)
    parameterization: Parameterization = field(init=False)
    objective: Objective = field(init=False)
    reported: Objective = field(init=False)

    @classmethod
    def on(cls, experiment: Experiment, dataset: Dataset) -> "Model":
        """The model of an experiment on its data."""
        counts = dataset.counts if experiment.process.needs_counts else None
        return cls(experiment, dataset.vocab, counts)

    def __post_init__(self):
        e = self.experiment
        e.sampler.check_ids(self.vocab)
        process = e.process.with_vocab(self.vocab)
        if process.needs_counts:
            if self.counts is None:
                raise ValueError("this process is made from token counts, and none were given")
            process = process.with_counts(self.counts)
        for name, component in (
            ("process", process),
            ("parameterization", e.parameterization.with_vocab(self.vocab)),
            ("objective", e.objective.with_vocab(self.vocab)),
            ("reported", (e.evaluation.objective or e.objective.reported()).with_vocab(self.vocab)),
        ):
            object.__setattr__(self, name, component)

    @property
    def columns(self) -> int:
        """Columns of the logits."""
        return self.vocab.size

    def init(self, key: Key[Array, ""]) -> ArrayTree:
        """Fresh parameters, by component: `network`, and `process` where it learns something."""
        params = {"network": networks.init(self.experiment.network, key, self.columns)}
        learned = self.process.init(stream(key, "process"))
        return {**params, "process": learned} if learned else params

    def bound_process(self, params: ArrayTree) -> Process:
        """The process with what it has learned."""
        return self.process.bind(params.get("process", {}))

    def denoise(self, params: ArrayTree) -> Denoise:
        """The network with its parameters, fed as `time_condition` says."""
        schedule = self.bound_process(params).schedule
        condition = {
            "none": None,
            "t": lambda t: t,
            "sigma": schedule.sigma,
            "log_snr": schedule.log_snr,
        }[self.experiment.time_condition]
        return networks.denoiser(
            self.experiment.network, self.columns, params["network"], condition=condition
        )

    def loss(
        self, params: ArrayTree, key: Key[Array, ""], batch: Batch, part: int | Int[Array, ""] = 0
    ) -> LossTerms:
        """The objective, with dropout, which differs from one `part` of a batch to the next."""
        denoise = self.denoise(params)
        batch = self.experiment.network.labelled(batch, stream(key, "labels"))

        def with_dropout(inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
            return denoise(inputs, key=None if key is None else jax.random.fold_in(key, part))

        return self._apply(self.objective, params, with_dropout, key, batch)

    def score(self, params: ArrayTree, key: Key[Array, ""], batch: Batch) -> LossTerms:
        """What an evaluation reports: its objective (by default that of the training), and no
        dropout."""
        denoise = self.denoise(params)
        batch = self.experiment.network.labelled(batch)
        return self._apply(
            self.reported, params, lambda inputs, *, key=None: denoise(inputs), key, batch
        )

    def _apply(
        self,
        objective: Objective,
        params: ArrayTree,
        denoise: Denoise,
        key: Key[Array, ""],
        batch: Batch,
    ) -> LossTerms:
        return objective(
            key,
            batch,
            process=self.bound_process(params),
            parameterization=self.parameterization,
            denoise=denoise,
        )


def refuse_nonsense(e: Experiment) -> None:
    """InputError, with the reason, for choices that do not work together."""
    parts: dict[str, Objective | Sampler] = {"objective": e.objective, "sampler": e.sampler}
    if e.evaluation.objective is not None:
        parts["evaluation.objective"] = e.evaluation.objective
    for name, part in parts.items():
        _refuse_part(name, part, e)
    _refuse_blocks({"network": e.network, **parts}, e.data.packing.length)
    if e.time_condition == "none":
        return
    if e.network.sees == "before":
        raise InputError("time_condition has no meaning for a causal network: nothing is noised")
    if e.process.schedule.per_token and e.time_condition != "t":
        raise InputError(
            f'time_condition="{e.time_condition}" is one number for a row, and this schedule has'
            ' one for each token; use "t"'
        )


def check_sampler(sampler: Sampler, model: Model) -> None:
    """InputError, with the reason, where a model cannot be sampled so."""
    e = model.experiment
    _refuse_part("sampler", sampler, e)
    _refuse_blocks({"network": e.network, "sampler": sampler}, e.data.packing.length)
    sampler.check_ids(model.vocab)


def _refuse_part(name: str, part: Objective | Sampler, e: Experiment) -> None:
    title = f"{name}={type(part).__name__}()"
    for other, kinds in (
        ("process", part.processes),
        ("parameterization", part.parameterizations),
    ):
        chosen = type(getattr(e, other))
        if not issubclass(chosen, kinds):
            fitting = " or ".join(f"{kind.__name__}(...)" for kind in kinds)
            raise InputError(f"{title} needs {other}={fitting}, not {chosen.__name__}(...)")
    if part.sees != e.network.sees:
        raise InputError(
            f"{title} needs a network that sees {SEEN[part.sees]};"
            f" network={type(e.network).__name__}(...) sees {SEEN[e.network.sees]}"
        )
    reason = part.refuses(e.process, e.parameterization)
    if reason is None and isinstance(part, Sampler):
        reason = part.misfits(e.process, e.parameterization, takes_labels=e.network.takes_labels)
    if reason:
        raise InputError(f"{title}: {reason}")


def _refuse_blocks(parts: dict[str, Any], length: int) -> None:
    """InputError where blocks are not of one size, or do not fill a row."""
    sizes = {name: part.block_size for name, part in parts.items() if part.sees == "blocks"}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}.block_size={size}" for name, size in sizes.items())
        raise InputError(f"blocks must all have the same size: {listed}")
    for name, size in sizes.items():
        if length % size:
            raise InputError(
                f"{name}.block_size={size} does not divide data.packing.length={length}"
            )


SEEN: dict[Sees, str] = {
    "all": "all tokens of the noised row",
    "before": "the tokens before each, and nothing noised",
    "blocks": "a noised block and the clean blocks before it",
}


def load_file(path: str | Path) -> Experiment:
    """Executes an experiment file and returns its `experiment`.

    InputError, naming the line, where the file is missing, raises, or defines no experiment.
    """
    experiment = _executed(path).get("experiment")
    if not isinstance(experiment, Experiment):
        raise InputError(f"{path}: defines no `experiment = Experiment(...)`")
    return experiment


def load_data_file(path: str | Path) -> "Experiment | DataOnly":
    """The same; a file that defines `data = TextData(...)` and no experiment will do."""
    space = _executed(path)
    if isinstance(space.get("experiment"), Experiment):
        return space["experiment"]
    if not isinstance(space.get("data"), TextData):
        raise InputError(
            f"{path}: defines neither `experiment = Experiment(...)` nor `data = TextData(...)`"
        )
    return DataOnly(data=space["data"])


@dataclass(frozen=True, kw_only=True)
class DataOnly:
    """What a file of data says, under the name that its values have in an experiment."""

    data: TextData


def _executed(path: str | Path) -> dict[str, Any]:
    """What a file of Python defines."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such experiment file")
    space: dict[str, Any] = {"__name__": "mdlm_experiment", "__file__": str(path)}
    try:
        exec(compile(path.read_text(), str(path), "exec"), space)
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
        ]
        where = f", line {lines[-1]}" if lines else ""
        raise InputError(f"{path}{where}: {type(error).__name__}: {error}") from error
    return space
