"""A run folder with its experiment, tokenizer and parameters, in memory."""

from functools import cached_property
from pathlib import Path

import jax

from mdlm.cluster import process_group
from mdlm.data.dataset import Dataset
from mdlm.data.places import placed
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.model import Model
from mdlm.parallel.mesh import MeshShape
from mdlm.runs import agreement, weights
from mdlm.runs.folder import RunFolder
from mdlm.runs.parameters import restore_parameters


class OpenedRun:
    """An experiment with its tokenizer and EMA parameters."""

    def __init__(
        self,
        path: str | Path,
        *,
        step: int | None = None,
        mesh: MeshShape | None = None,
        trust: bool = False,
        verify: bool = True,
    ):
        self.folder = RunFolder(path, trust=trust, verify=verify)
        process_group.broadcast(lambda: self.folder.config() and None)  # raises if it is not a run
        agreement.check_shared(self.folder)
        self.experiment: Experiment = self.folder.experiment()
        self.tokenizer = self.experiment.data.load_tokenizer(self.folder.data)
        self.model = Model(self.experiment, self.tokenizer.vocab, self.folder.counts())
        self.shape = mesh or self.experiment.mesh.fitting(len(jax.devices()))
        self.mesh = self.shape.build()
        abstract = self.model.abstract_params(self.mesh)
        self.step, self.params = restore_parameters(self.folder, abstract, step, model=self.model)

    @property
    def remark(self) -> str | None:
        """A line that says how the mesh differs from the one trained on; None if it does not."""
        if self.shape == self.experiment.mesh:
            return None
        here = MeshShape(**self.mesh.shape)
        return f"trained on a mesh of {self.experiment.mesh}, opened on one of {here}"

    def save_weights(self, dtype: weights.WeightsDtype | None = None) -> Path:
        """Writes the parameters into the run folder as `weights.safetensors`; returns the file.

        The network's tensors are written in `dtype`, by default in their own. Raises InputError if
        a value is too large for it, or if there are several processes.
        """
        if jax.process_count() > 1:
            raise InputError("weights are written by one process: open the run in a single process")
        known = self.folder.config().get("fingerprint")
        return weights.write(
            self.folder.path, self.params, step=self.step, dtype=dtype, fingerprint=known
        )

    @cached_property
    def dataset(self) -> Dataset:
        """The run's data. Splits are read when they are first used. Relative paths that lead to
        nothing here are looked for where the run was started."""
        data, folder = self.experiment.data, self.folder.started_in
        return (data if folder is None else placed(data, folder)).load(self.folder.data)
