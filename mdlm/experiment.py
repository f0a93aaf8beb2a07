"""The experiment: every choice of a run as one value, and the model those choices compose.

An experiment file is Python that defines `experiment = Experiment(...)`. It is executed: open one
only from people you would run code from. Values in it can be replaced from outside by dotted name
(`train.steps`), see `mdlm.overrides`.
"""

import dataclasses
import hashlib
import json
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
from jax import Array
from jaxtyping import Int, Key

from mdlm.data.dataset import TextData
from mdlm.evals.nll import Perplexity
from mdlm.mesh import MeshShape
from mdlm.models import network as networks
from mdlm.models.causal import CausalTransformer
from mdlm.models.network import Network
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.objectives.base import Objective
from mdlm.objectives.nelbo import Nelbo
from mdlm.optim import AdamW, Optimizer
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.subs import Subs
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.base import Sampler
from mdlm.samplers.left_to_right import LeftToRight
from mdlm.types import ArrayTree, Batch, Denoise, InputError, LossTerms, NetInput, Prediction, Vocab


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

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} is not positive")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay={self.ema_decay} is not in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: data, process, network, objective, optimizer, sampler, and the mesh it runs on.

    `time_condition` says what the network is told of the noise level: nothing ("none", as in the
    released MDLM models), the time itself, sigma = -log alpha, or the log-SNR.
    """

    name: str
    data: TextData
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
    """An experiment's parts bound to a vocabulary: what is trained, evaluated and sampled."""

    experiment: Experiment
    vocab: Vocab
    process: Process = field(init=False)
    parameterization: Parameterization = field(init=False)
    objective: Objective = field(init=False)

    def __post_init__(self):
        for name in ("process", "parameterization", "objective"):
            bound = getattr(self.experiment, name).with_vocab(self.vocab)
            object.__setattr__(self, name, bound)

    @property
    def columns(self) -> int:
        """Columns of the logits."""
        return self.vocab.size

    def init(self, key: Key[Array, ""]) -> ArrayTree:
        """Fresh parameters, by component: `{"network": ...}`."""
        return {"network": networks.init(self.experiment.network, key, self.columns)}

    def denoise(self, params: ArrayTree) -> Denoise:
        """The network with its parameters, fed as `time_condition` says."""
        schedule = self.process.schedule
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

        def with_dropout(inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
            return denoise(inputs, key=None if key is None else jax.random.fold_in(key, part))

        return self._loss(with_dropout, key, batch)

    def score(self, params: ArrayTree, key: Key[Array, ""], batch: Batch) -> LossTerms:
        """The objective without dropout: what an evaluation reports."""
        denoise = self.denoise(params)
        return self._loss(lambda inputs, *, key=None: denoise(inputs), key, batch)

    def _loss(self, denoise: Denoise, key: Key[Array, ""], batch: Batch) -> LossTerms:
        return self.objective(
            key,
            batch,
            process=self.process,
            parameterization=self.parameterization,
            denoise=denoise,
        )


def refuse_nonsense(e: Experiment) -> None:
    """InputError, with the reason, for choices that do not work together."""
    causal = isinstance(e.network, CausalTransformer)
    next_token = isinstance(e.objective, Autoregressive)
    if causal and not next_token:
        raise InputError(
            f"a causal network cannot train {type(e.objective).__name__}: it never sees the tokens"
            " after a masked one; use objective=Autoregressive(), or network=DiT(...)"
        )
    if next_token and not causal:
        raise InputError(
            "objective=Autoregressive() needs a causal network: another would be shown the token"
            " that it is to predict; use network=CausalTransformer(...)"
        )
    if causal != isinstance(e.sampler, LeftToRight):
        raise InputError(
            f"sampler={type(e.sampler).__name__}() does not fit"
            f" network={type(e.network).__name__}(...): causal networks generate with"
            " LeftToRight(), the others do not"
        )
    if causal and e.time_condition != "none":
        raise InputError("time_condition has no meaning for a causal network: nothing is noised")
    importance = getattr(e.objective, "importance", False)
    if importance and not e.process.schedule.has_inverse:
        raise InputError(
            f"importance sampling of times needs a schedule with an inverse;"
            f" {type(e.process.schedule).__name__} has none"
        )


def load_file(path: str | Path) -> Experiment:
    """Executes an experiment file and returns its `experiment`.

    InputError, naming the line, where the file is missing, raises, or defines no experiment.
    """
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
    experiment = space.get("experiment")
    if not isinstance(experiment, Experiment):
        raise InputError(f"{path}: defines no `experiment = Experiment(...)`")
    return experiment


def describe(component: Any) -> Any:
    """A component as plain JSON values: its class name and its fields."""
    if dataclasses.is_dataclass(component) and not isinstance(component, type):
        values = {
            f.name: describe(getattr(component, f.name)) for f in dataclasses.fields(component)
        }
        return {"class": type(component).__name__, **values}
    if isinstance(component, (tuple, list)):
        return [describe(item) for item in component]
    return component


FREE = ("name", "sampler", "evaluation", "mesh")
FREE_NETWORK = ("attention", "remat", "logits_chunk")
FREE_TRAINING = tuple(
    f.name for f in dataclasses.fields(Training) if f.name not in ("batch_size", "ema_decay")
)


def identity(experiment: Experiment) -> dict:
    """What must not change when a run goes on: all but where, how long, by which of several
    equal computations, and how often it looks."""
    values = {k: v for k, v in describe(experiment).items() if k not in FREE}
    values["network"] = {k: v for k, v in values["network"].items() if k not in FREE_NETWORK}
    values["train"] = {k: v for k, v in values["train"].items() if k not in FREE_TRAINING}
    return values


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    """The dotted names at which two descriptions differ, with both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        out = []
        for k in dict.fromkeys([*a, *b]):
            out += differences(a.get(k), b.get(k), f"{name}.{k}" if name else k)
        return out
    return [] if a == b else [f"{name}: {a} there, {b} here"]


def fingerprint(experiment: Experiment) -> str:
    """Twelve hexadecimal digits of the identity."""
    text = json.dumps(identity(experiment), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
