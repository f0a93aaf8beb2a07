"""The model that an experiment composes: its components, bound to a vocabulary."""

from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jax import Array
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Int, Key

from mdlm.data.dataset import Dataset
from mdlm.diffusion import Diffusion
from mdlm.experiment.experiment import Experiment, refuse_blocks, refuse_part
from mdlm.keys import stream
from mdlm.models import network as networks
from mdlm.objectives.base import Objective
from mdlm.parallel.sharding import Path, Rest, parameter_sharding
from mdlm.parameterizations.base import Parameterization
from mdlm.processes.base import Process
from mdlm.samplers.base import Sampler
from mdlm.types import ArrayTree, Batch, LossTerms, NetInput, Prediction, Vocab


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
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.vocab.size

    def init(self, key: Key[Array, ""]) -> ArrayTree:
        """Fresh parameters, by component: `network`, and `process` where it learns something."""
        params = {"network": networks.init(self.experiment.network, key, self.vocab_size)}
        learned = self.process.init(stream(key, "process"))
        return {**params, "process": learned} if learned else params

    def abstract_params(self, mesh: Mesh | AbstractMesh) -> ArrayTree:
        """Shapes, dtypes and shardings of the parameters on a mesh; nothing is computed.

        Raises InputError if the network or its rows cannot be split over the mesh.
        """
        return self.on_mesh(mesh, jax.eval_shape(self.init, jax.random.key(0)))

    def on_mesh(self, mesh: Mesh | AbstractMesh, shapes: ArrayTree) -> ArrayTree:
        """The shapes of parameters, or of anything with arrays named like them (gradients, the
        optimizer's moments, an average), with their shardings on a mesh.

        Raises InputError if the network or its rows cannot be split over the mesh.
        """
        network = self.experiment.network
        network.check_mesh(mesh, self.experiment.data.packing.length)
        rests = networks.rests(network, self.vocab_size)
        uses: dict[Path, Rest] = {("network", *path): rest for path, rest in rests.items()}
        return jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            shapes,
            parameter_sharding(mesh, shapes, uses),
        )

    def bound_process(self, params: ArrayTree) -> Process:
        """The process with what it has learned."""
        return self.process.bind(params.get("process", {}))

    def diffusion(self, params: ArrayTree) -> Diffusion:
        """What objectives and samplers are handed: the process with what it has learned, and the
        network with its parameters, fed as `time_condition` says."""
        process = self.bound_process(params)
        schedule = process.schedule
        condition = {
            "none": None,
            "t": lambda t: t,
            "sigma": schedule.sigma,
            "log_snr": schedule.log_snr,
        }[self.experiment.time_condition]
        denoise = networks.denoiser(
            self.experiment.network, self.vocab_size, params["network"], condition=condition
        )
        return Diffusion(process=process, parameterization=self.parameterization, denoise=denoise)

    def loss(
        self, params: ArrayTree, key: Key[Array, ""], batch: Batch, part: int | Int[Array, ""] = 0
    ) -> LossTerms:
        """The objective, with dropout, which differs from one `part` of a batch to the next."""
        diffusion = self.diffusion(params)
        denoise = diffusion.denoise
        batch = self.experiment.network.labelled(batch, stream(key, "labels"))

        def with_dropout(inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
            return denoise(inputs, key=None if key is None else jax.random.fold_in(key, part))

        return self.objective(key, batch, replace(diffusion, denoise=with_dropout))

    def evaluate(self, params: ArrayTree, key: Key[Array, ""], batch: Batch) -> LossTerms:
        """What an evaluation reports: its objective (by default that of the training), and no
        dropout."""
        diffusion = self.diffusion(params)
        denoise = diffusion.denoise
        batch = self.experiment.network.labelled(batch)
        certain = replace(diffusion, denoise=lambda inputs, *, key=None: denoise(inputs))
        return self.reported(key, batch, certain)


def check_sampler(sampler: Sampler, model: Model) -> None:
    """InputError, with the reason, where a model cannot be sampled so."""
    e = model.experiment
    refuse_part("sampler", sampler, e)
    refuse_blocks({"network": e.network, "sampler": sampler}, e.data.packing.length)
    sampler.check_ids(model.vocab)
