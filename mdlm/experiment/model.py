"""The model that an experiment composes: its components, bound to a vocabulary."""

from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jax import Array
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Int, Key

from mdlm.data.dataset import Dataset
from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment, refuse_blocks, refuse_part
from mdlm.experiment.stages import Stage
from mdlm.keys import stream
from mdlm.models import network as networks
from mdlm.objectives.base import Objective
from mdlm.parallel.sharding import Path, Rest, parameter_sharding
from mdlm.parameterizations.base import Parameterization
from mdlm.processes.base import Process
from mdlm.samplers.base import Sampler
from mdlm.schedules.check import fault_of
from mdlm.tuning.base import Tuning, Widths
from mdlm.tuning.full import Full
from mdlm.types import ArrayTree, Batch, LossTerms, NetInput, Prediction, Vocab


@dataclass(frozen=True)
class Model:
    """An experiment's components bound to a vocabulary; it is trained, evaluated and sampled.

    `counts` are the token counts of the training split, for processes that are built from them.
    `stage` says what is trained where that is not the experiment's own network and objective.
    `process` is without its learned parameters, `bound_process` with them. Raises InputError if
    its schedule is none (`schedules.check`).
    """

    experiment: Experiment
    vocab: Vocab
    counts: Int[np.ndarray, " v"] | None = field(default=None, repr=False)
    stage: Stage | None = None
    process: Process = field(init=False)
    parameterization: Parameterization = field(init=False)
    objective: Objective = field(init=False)
    reported: Objective = field(init=False)

    @classmethod
    def on(cls, experiment: Experiment, dataset: Dataset) -> "Model":
        """Returns the model of an experiment on its data."""
        counts = dataset.counts if experiment.process.needs_counts else None
        return cls(experiment, dataset.vocab, counts)

    def __post_init__(self):
        e = self.experiment
        e.sampler.check_ids(self.vocab)
        process = e.process.with_vocab(self.vocab)
        if process.needs_counts:
            if self.counts is None:
                raise ValueError("counts=None: this process is built from token counts")
            process = process.with_counts(self.counts)
        self._check_columns()
        fault = fault_of(process.schedule)
        if fault is not None:
            raise InputError(f"process.schedule={type(process.schedule).__name__}(): {fault}")
        for name, component in (
            ("process", process),
            ("parameterization", e.parameterization.with_vocab(self.vocab)),
            (
                "objective",
                ((self.stage and self.stage.objective) or e.objective).with_vocab(self.vocab),
            ),
            ("reported", (e.evaluation.objective or e.objective.reported()).with_vocab(self.vocab)),
        ):
            object.__setattr__(self, name, component)
        if self.stage is None:
            self._check_stages()
        if e.tune is not None:
            e.tune.check(jax.eval_shape(self.init, jax.random.key(0)), self._widths)

    def _check_stages(self) -> None:
        """Raises InputError if the network of a stage has other parameters."""
        shapes = lambda model: jax.eval_shape(model.init, jax.random.key(0))
        others = {n: s for n, s in enumerate(self.experiment.stages) if s.network is not None}
        own = shapes(self) if others else None
        for number, stage in others.items():
            if shapes(replace(self, stage=stage)) != own:
                raise InputError(
                    f"stages[{number}].network: has other parameters than the experiment's network;"
                    " it may differ in attends, block_size, shift, dropout and what does not change"
                    " the arrays"
                )

    @property
    def network(self) -> networks.Network:
        """The network, in the form that it has in the stage."""
        return (self.stage and self.stage.network) or self.experiment.network

    def _check_columns(self) -> None:
        """Raises InputError if the network has no columns for some tokens. A causal network may
        lack that of the mask, which it never reads or predicts."""
        vocab, network = self.vocab, self.network
        last_is_mask = network.attends == "causal" and vocab.mask_id == vocab.size - 1
        if self.columns < vocab.size - last_is_mask:
            raise InputError(
                f"network.columns={self.columns}: too few for the {vocab.size} tokens of the"
                " vocabulary; give at least as many, or 0 for as many"
            )

    @property
    def columns(self) -> int:
        """The last axis of the logits: the size of the vocabulary, or more (`Network.columns`)."""
        return self.network.columns or self.vocab.size

    def init(self, key: Key[Array, ""]) -> ArrayTree:
        """Returns fresh parameters by component: `network`, `process` if it learns any, and `head`
        if the experiment has one."""
        network, head = self.network, self.experiment.head
        params = {"network": networks.init(network, key, self.columns)}
        learned = self.process.init(stream(key, "process"))
        if learned:
            params["process"] = learned
        if head is not None:
            params["head"] = head.init(stream(key, "head"), network.features_width)
        return params

    @property
    def tuning(self) -> Tuning:
        """What is trained."""
        return self.experiment.tune or Full()

    @property
    def keeps_base(self) -> bool:
        """Whether a run keeps arrays that no step changes: those that `tuning` does not train, or
        all that training began from, which an objective compares with."""
        return self.tuning.keeps_base or self.objective.needs_reference

    def base(self, params: ArrayTree) -> ArrayTree:
        """Returns the arrays of `params` that training from them keeps as they are."""
        return params if self.objective.needs_reference else self.tuning.base(params)

    def split(self, key: Key[Array, ""], params: ArrayTree) -> tuple[ArrayTree, ArrayTree]:
        """Returns `base(params)` and the arrays that training from `params` trains, before the
        first step. `merged` joins them."""
        return self.base(params), self.tuning.start(key, params, self._widths)

    def merged(self, base: ArrayTree, trained: ArrayTree) -> ArrayTree:
        """Returns the parameters that the network is run with, of the two parts of `split`."""
        return self.tuning.merged(self.tuning.base(base), trained)

    @property
    def _widths(self) -> Widths:
        found = networks.widths(self.network, self.columns) if self.experiment.tune else {}
        return {("network", *path): own for path, own in found.items()}

    def abstract_params(self, mesh: Mesh | AbstractMesh) -> ArrayTree:
        """Returns shapes, dtypes and shardings of the parameters on a mesh; nothing is computed.

        Raises InputError if the network or its rows cannot be split over the mesh.
        """
        return self.on_mesh(mesh, jax.eval_shape(self.init, jax.random.key(0)))

    def on_mesh(self, mesh: Mesh | AbstractMesh, shapes: ArrayTree) -> ArrayTree:
        """Returns `shapes` with their shardings on a mesh: those of parameters, or of any tree with
        arrays named like them (gradients, the optimizer's moments, an EMA).

        Raises InputError if the network or its rows cannot be split over the mesh.
        """
        self.network.check_mesh(mesh, self.experiment.data.packing.length)
        rests = networks.rests(self.network, self.columns)
        uses: dict[Path, Rest] = {("network", *path): rest for path, rest in rests.items()}
        return jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            shapes,
            parameter_sharding(mesh, shapes, uses),
        )

    def bound_process(self, params: ArrayTree) -> Process:
        """Returns the process with its learned parameters."""
        return self.process.bind(params.get("process", {}))

    def diffusion(self, params: ArrayTree) -> Diffusion:
        """Returns the argument of objectives and samplers: process, network and head with their
        parameters, the network conditioned as `time_condition` says."""
        process = self.bound_process(params)
        schedule = process.schedule
        condition = {
            "none": None,
            "t": lambda t: t,
            "sigma": schedule.sigma,
            "log_snr": schedule.log_snr,
        }[self.experiment.time_condition]
        network, head = self.network, self.experiment.head
        denoise = networks.denoiser(network, self.columns, params["network"], condition=condition)
        return Diffusion(
            process=process,
            parameterization=self.parameterization,
            denoise=denoise,
            shift=network.shift,
            head=None if head is None else head.bound(params["head"]),
        )

    def loss(
        self,
        params: ArrayTree,
        key: Key[Array, ""],
        batch: Batch,
        part: int | Int[Array, ""] = 0,
        reference: ArrayTree | None = None,
    ) -> LossTerms:
        """Returns the training loss, with dropout, drawn anew for each `part` of a batch.
        `reference` are the parameters that training began from, if the objective needs them."""
        diffusion = replace(self.diffusion(params), reference=self._fixed(reference))
        denoise, head = diffusion.denoise, diffusion.head
        batch = self.network.typed(self.network.labelled(batch, stream(key, "labels")))
        of_network = {}
        of_part = lambda key: None if key is None else jax.random.fold_in(key, part)

        def with_dropout(inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
            made = denoise(inputs, key=of_part(key))
            of_network.update(made.scalars)
            return made

        dropped = replace(diffusion, denoise=with_dropout)
        if head is not None:
            read = lambda prediction, *, key=None: head(prediction, key=of_part(key))
            dropped = replace(dropped, head=read)
        if not self.objective.noises_prompts:
            dropped = self._given(batch, dropped)
        terms = self.objective(key, batch, dropped)
        return replace(terms, scalars={**of_network, **terms.scalars})

    def _fixed(self, params: ArrayTree | None) -> Diffusion | None:
        """Returns the diffusion of parameters that are not trained."""
        if params is None:
            return None
        return self.diffusion(jax.lax.stop_gradient(params)).without_dropout()

    def evaluate(self, params: ArrayTree, key: Key[Array, ""], batch: Batch) -> LossTerms:
        """Returns the evaluation's objective (by default that of training), without dropout."""
        batch = self.network.typed(self.network.labelled(batch))
        certain = self.diffusion(params).without_dropout()
        return self.reported(key, batch, self._given(batch, certain))

    def _given(self, batch: Batch, diffusion: Diffusion) -> Diffusion:
        """Returns the diffusion of a batch whose prompts, if its rows have some, stay clean."""
        has_prompts = self.experiment.data.packing.has_prompts
        return diffusion.with_prompts(batch) if has_prompts else diffusion


def check_text(model: Model) -> None:
    """Raises InputError if the model is not one of text, but of what belongs to texts."""
    objective = model.experiment.objective
    if objective.of_rows is not None:
        raise InputError(
            f"objective={type(objective).__name__}(): this run predicts {objective.of_rows} of"
            " rows; it has no distribution of text to generate or score. `mdlm eval` evaluates it"
        )


def check_sampler(sampler: Sampler, model: Model) -> None:
    """Raises InputError, with the reason, if the sampler does not fit the model."""
    check_text(model)
    e = model.experiment
    refuse_part("sampler", sampler, e)
    refuse_blocks({"network": e.network, "sampler": sampler}, e.data.packing.length)
    sampler.check_ids(model.vocab)
