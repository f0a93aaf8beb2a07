"""The experiment: all choices of a run as one value.

An experiment file is Python that defines `experiment = Experiment(...)`. It is executed: open one
only from people you would run code from. Its values can be overridden by dotted name
(`train.steps`), see `mdlm.config.overrides`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import optax

from mdlm.config.field_types import NOTHING, expected, hints_of, is_kind, options
from mdlm.config.ranges import check_ranges
from mdlm.data.dataset import TextData
from mdlm.data.mixture import Mixture
from mdlm.errors import InputError
from mdlm.experiment.evaluation import Perplexity
from mdlm.experiment.stages import Stage
from mdlm.models.heads import Head
from mdlm.models.network import Network
from mdlm.objectives.base import Objective
from mdlm.objectives.nelbo import Nelbo
from mdlm.optim import AdamW, Optimizer
from mdlm.parallel.mesh import MeshShape
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.subs import Subs
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.base import Sampler
from mdlm.tuning.base import Tuning


@dataclass(frozen=True, kw_only=True)
class Training:
    """Length, batch and EMA of training, and the intervals of logging, evaluation and checkpoints.

    Args:
        steps: optimizer steps. Learning-rate schedules that fall follow them, however early
            `patience` or `minutes` end the run.
        minutes: the run ends after this many minutes of training, those of earlier starts
            included, with the last evaluation and everything saved (0: no limit). Only steps
            count, with their waiting for data: compilation, evaluations, samples and saving do
            not. Checked at the steps of `log_every`. The learning rate does not follow the
            minutes, it still follows `steps`.
        patience: the run ends after this many validations in a row that were no better than the
            best before them, by the metric of `best`; each new best one is saved (0: it goes on).
        batch_size: rows of a global batch, over all devices and micro-batches.
        accumulate: micro-batches whose gradients are added up before a step.
        ema_decay: largest decay of the parameters' EMA; at update n it is min(decay, (1+n)/(10+n)).
        log_every: steps between lines in metrics.jsonl.
        eval_every: steps between evaluations of the validation split (0: only at the end). Data
            without one are evaluated on `evaluation.split`, and no best checkpoint is selected.
        eval_rows: rows of that split that are evaluated (0: all).
        sample_every: steps between samples (0: only at the end).
        sample_length: tokens of each sample (0: the length of a row of the data).
        checkpoint_every: steps between checkpoints (0: only at the end).
        keep: number of newest checkpoints kept; the best on the validation split is kept too.
        best: the metric of validations by which it is the best, the lower the better: "nats per
            token", "perplexity", and with `eval_rows=0` "bits per byte" or "bits per character".
        keep_every: checkpoints at multiples of this many steps are kept permanently (0: none).
        max_skipped: the run ends after this many steps in a row whose loss, gradient or new
            parameters are not finite. Such steps only count; they make no update, and nothing is
            saved after them. Checked at each line of the log.
        spike: the loss of a logged step is a spike if it exceeds the median of the 50 lines before
            it by more than this, nats per token (None: there are no spikes).
        rewinds: how often, at most, a spike rewinds the run to its newest checkpoint, to continue
            with the batches after the spike. Further spikes are only logged.
    """

    steps: int = 1000
    minutes: float = 0.0
    patience: int = 0
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
    best: str = "nats per token"
    keep_every: int = 0
    max_skipped: int = 10
    spike: float | None = None
    rewinds: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be at least 1")
        for name in ("eval_every", "eval_rows", "sample_every", "sample_length") + (
            "checkpoint_every",
            "keep_every",
            "rewinds",
            "patience",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be at least 0")
        if not 0 <= self.minutes < math.inf:
            raise ValueError(f"train.minutes={self.minutes}: must be a number, at least 0")
        if self.patience and not self.eval_every:
            raise ValueError(
                f"train.patience={self.patience}: needs train.eval_every, the steps between"
                " validations"
            )
        if self.spike is not None and not self.spike > 0:
            raise ValueError(f"train.spike={self.spike}: must be above 0, or None")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay={self.ema_decay}: must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: data, process, network, objective, optimizer, sampler, and the mesh it runs on.

    `name` is the default name of the run folder. `seed`, in [0, 2**63), decides everything that is
    random. `stages` are steps that train something else on the way (`mdlm.experiment.stages`).
    `time_condition` is what the network is conditioned on: no noise level ("none", as in
    the released MDLM models), the time itself ("t"), "sigma" = -log alpha, or the log-SNR
    ("log_snr"). `tune` says which parameters are trained (None: all). `head` is a layer beside that
    of tokens, for objectives and samplers that read one (None: there is none).
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
    tune: Tuning | None = None
    stages: tuple[Stage, ...] = ()
    head: Head | None = None

    def __post_init__(self):
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed={self.seed}: must be in [0, 2**63)")
        refuse_others(self)
        check_ranges(self)
        refuse_nonsense(self)

    def updates(self) -> optax.GradientTransformation:
        """Returns the optimizer for the run's steps, with the learning rates of `tune`."""
        optimizer = self.optimizer.build(self.train.steps)
        return optimizer if self.tune is None else self.tune.scaled(optimizer, self.network.depth)


def refuse_others(e: Experiment) -> None:
    """Raises InputError if a part of the experiment is no component of its kind."""
    for name, declared in hints_of(Experiment).items():
        kinds = tuple(kind for kind in options(declared) if is_kind(kind))
        value = getattr(e, name)
        if value is None and NOTHING in options(declared):
            continue
        if kinds and not isinstance(value, kinds):
            raise InputError(f"{name}={value!r:.80}: expected {expected(declared)}")


def refuse_nonsense(e: Experiment) -> None:
    """Raises InputError, with the reason, if the experiment's components do not fit together."""
    parts: dict[str, Objective | Sampler] = {"objective": e.objective, "sampler": e.sampler}
    if e.evaluation.objective is not None:
        parts["evaluation.objective"] = e.evaluation.objective
    for name, part in parts.items():
        refuse_part(name, part, e)
        if isinstance(part, Objective):
            refuse_targets(name, part, e)
    refuse_blocks({"network": e.network, **parts}, e.data.packing.length)
    refuse_stages(e)
    refuse_rows(e)
    if e.time_condition == "none":
        return
    if e.network.attends == "causal":
        raise InputError("time_condition has no meaning for a causal network: nothing is noised")
    if e.process.schedule.per_token and e.time_condition != "t":
        raise InputError(
            f'time_condition="{e.time_condition}" is one number per sequence, and this schedule has'
            ' one per token; use "t"'
        )


def refuse_stages(e: Experiment) -> None:
    """Raises InputError, with the reason, if a stage does not fit the experiment."""
    ends = [stage.until for stage in e.stages]
    if sorted(set(ends)) != ends:
        raise InputError(f"stages: each must end after the one before it, not until={ends}")
    for number, stage in enumerate(e.stages):
        network, objective = stage.network or e.network, stage.objective or e.objective
        name = f"stages[{number}].objective"
        refuse_part(name, objective, e, network)
        refuse_targets(name, objective, e)
        for what in ("needs_reference", "rows_together", "own_texts"):
            there, here = (getattr(one, what) for one in (objective, e.objective))
            if there != here:
                raise InputError(
                    f"{name}={type(objective).__name__}(): its {what} is {there}, that of the"
                    f" experiment's {type(e.objective).__name__}() is {here}; both need the same"
                    " rows and parameters beside those that are trained"
                )
        refuse_blocks(
            {f"stages[{number}].network": network, name: objective}, e.data.packing.length
        )


def refuse_rows(e: Experiment) -> None:
    """Raises InputError if the rows of the data are not those of the objective, or if an evaluation
    would need what only training has."""
    together, name = e.objective.rows_together, type(e.objective).__name__
    if e.evaluation.objective is not None and e.evaluation.objective.needs_reference:
        raise InputError(
            f"evaluation.objective={type(e.evaluation.objective).__name__}(): it compares with a"
            " network that only training has; leave it out"
        )
    parts = e.data.parts if isinstance(e.data, Mixture) else (e.data,)
    for part in parts:
        if part.source.rows_together > together:
            raise InputError(
                f"data of {part.source.name}: pairs of a chosen and a rejected response need"
                f" objective=Preference(), not {name}()"
            )
        if part.source.rows_together < together:
            raise InputError(
                f"objective={name}(): it compares responses, so it needs data=PairData("
                f"source=Preferences(...)), not {type(part.source).__name__}(...)"
            )
    if together > 1 and isinstance(e.data, Mixture):
        raise InputError(f"objective={name}(): a mixture takes rows one by one; name one source")


def refuse_part(
    name: str, part: Objective | Sampler, e: Experiment, network: Network | None = None
) -> None:
    """Raises InputError, with the reason, if a component does not fit the experiment, or another
    network in it."""
    reason = part.incompatibility(e.process, e.parameterization, network or e.network)
    if reason is not None:
        raise InputError(f"{name}={type(part).__name__}(): {reason}")


def refuse_targets(name: str, part: Objective, e: Experiment) -> None:
    """Raises InputError if an objective does not predict what the data and the head have."""
    title, head = f"{name}={type(part).__name__}()", e.head
    has = {None: None, 0: "numbers"}.get(e.data.classes, "classes")
    if part.of_rows != has:
        wants, there = (what or "tokens" for what in (part.of_rows, has))
        raise InputError(f"{title}: predicts {wants}, and the data have {there} to predict")
    if part.reads_head is None:
        return
    if head is None or head.gives != part.reads_head:
        kind = {"rows": "Pooled", "tokens": "PerToken"}[part.reads_head]
        raise InputError(
            f"{title}: needs a head of {part.reads_head}, such as head={kind}(outputs=2)"
        )
    outputs = None if has is None else e.data.classes or 1
    if outputs not in (None, head.outputs):
        raise InputError(
            f"head.outputs={head.outputs}: the data have"
            f" {f'{outputs} classes' if has == 'classes' else 'one number'} for each row; give"
            f" {outputs}"
        )


def refuse_blocks(parts: dict[str, Any], length: int) -> None:
    """Raises InputError if diffusion blocks differ in size, or do not divide a row."""
    sizes = {name: part.block_size for name, part in parts.items() if part.attends == "blocks"}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}.block_size={size}" for name, size in sizes.items())
        raise InputError(f"blocks must all have the same size: {listed}")
    for name, size in sizes.items():
        if length % size:
            raise InputError(
                f"{name}.block_size={size} does not divide data.packing.length={length}"
            )
