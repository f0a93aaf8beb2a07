"""The run that a new run begins from: with its EMA parameters, or with its whole training state.

Either way the tokens must mean the same, so the new run takes over the tokenizer. With another
tokenizer, the parameters of each token that both have can be carried over.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from mdlm.config.component_text import to_text
from mdlm.config.records import differences, is_same
from mdlm.data.dataset import Dataset
from mdlm.data.tokenizers import TokenizerConfig
from mdlm.data.tokens.tokenizer import Report, Tokenizer
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.identity import identity, recorded
from mdlm.experiment.model import Model
from mdlm.models import network as networks
from mdlm.runs import base_weights
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.copies import copy_checkpoint
from mdlm.runs.finite import check_finite
from mdlm.runs.folder import BASE as BASE_FILE
from mdlm.runs.folder import RunFolder
from mdlm.runs.parameters import restore_parameters
from mdlm.runs.weights import Weights, named
from mdlm.train.step import BASE
from mdlm.tuning.base import Tuning
from mdlm.types import ArrayTree

ROLES = ("mask_id", "bos_id", "eos_id", "pad_id")


@dataclass(frozen=True)
class Carried:
    """Parameters of a model with another vocabulary, and the tokens that both have.

    `pairs` has their id and our id of each token, `axes` the axis of each array that counts tokens
    (-1: none).
    """

    axes: ArrayTree
    pairs: Int[np.ndarray, "n 2"]

    def into(self, fresh: jax.Array, theirs: jax.Array, axis: int) -> jax.Array:
        """Returns `fresh` with the values of `theirs` at the tokens that both have."""
        if axis < 0:
            return theirs
        there, here = self.pairs.T
        at = (slice(None),) * axis
        return fresh.at[(*at, here)].set(theirs[(*at, there)].astype(fresh.dtype))


@dataclass(frozen=True)
class Origin:
    """A run that another begins from.

    Args:
        option: the option that named it, for messages: `--init-from` or `--fork`.
        run: its folder.
        step: the step of its checkpoint; None is the newest.
        new_tokenizer: keep the new run's own tokenizer, and carry over what both have.

    Raises InputError if it is no run.
    """

    option: str
    run: RunFolder
    step: int | None = None
    new_tokenizer: bool = False

    def __post_init__(self):
        self.run.config()  # raises if it is not a run
        if self.new_tokenizer and self.option != "--init-from":
            raise InputError("--new-tokenizer: goes with --init-from RUN only")

    @classmethod
    def of(
        cls, init_from: str | None, fork: str | None, new_tokenizer: bool, *, verify: bool = True
    ) -> "Origin | None":
        """Returns the origin that the options name, None if there is none."""
        if init_from is not None and fork is not None:
            raise InputError("--init-from and --fork: give one of them")
        if fork is not None:
            path, mark, step = fork.rpartition("@")
            if mark and not step.isdecimal():
                raise InputError(f"--fork {fork}: expected RUN or RUN@STEP")
            run = RunFolder(path if mark else fork, verify=verify)
            return cls("--fork", run, int(step) if mark else None, new_tokenizer)
        if init_from is not None:
            return cls("--init-from", RunFolder(init_from, verify=verify), None, new_tokenizer)
        if new_tokenizer:
            raise InputError("--new-tokenizer: goes with --init-from RUN only")
        return None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.run.data)

    def load(self, data: Any, report: Report | None = None) -> Dataset:
        """Loads the data of the new run, with the tokenizer of this one.

        Raises InputError if the new run has a tokenizer whose tokens differ.
        """
        ours = data.tokenizer
        if not self.new_tokenizer and is_same(self.tokenizer.made_by, ours, TokenizerConfig):
            return data.load(self.run.data, report)
        dataset = data.load(None, report)
        if self.new_tokenizer or dataset.tokenizer.fingerprint == self.tokenizer.fingerprint:
            return dataset
        raise InputError(
            f"{self.option} {self.run.path}: its tokenizer is {self.tokenizer.made_by}, this"
            f" experiment has {to_text(ours)}, so its embeddings would mean other tokens. Give"
            f' --data.tokenizer "{self.tokenizer.made_by}" to take it over'
            + (
                ", or --new-tokenizer to keep the parameters of tokens that both have"
                if self.option == "--init-from"
                else ""
            )
        )

    def carried(self, model: Model, tokenizer: Tokenizer) -> Carried | None:
        """Returns what tells the tokens of this run from those of a model with another tokenizer;
        None if the tokenizer is the same."""
        if tokenizer.fingerprint == self.tokenizer.fingerprint:
            return None
        network, size = model.experiment.network, self.tokenizer.vocab.size
        one, other = (networks.shapes(network, columns) for columns in (size, size + 1))

        def axis(a: Any, b: Any) -> int:
            found = [i for i, (x, y) in enumerate(zip(a.shape, b.shape, strict=True)) if x != y]
            return found[0] if found else -1

        axes = {"network": jax.tree.map(axis, one, other)}
        return Carried(axes, pairs(self.tokenizer, tokenizer))

    def parameters(
        self, model: Model, mesh: Mesh, carried: Carried | None
    ) -> tuple[int, ArrayTree]:
        """Returns the step of the run and its EMA parameters. With `carried`, of the network only,
        for its own tokens. Those of a head are among them if the new run has the same head."""
        tune = self.run.tune()
        experiment = replace(model.experiment, tune=tune if tune and tune.keeps_base else None)
        if carried is None:
            # This run may lack parameters that the new run's process learns.
            theirs = Model(experiment, model.vocab, model.counts)
            abstract = theirs.abstract_params(mesh)
            if self.run.head() != model.experiment.head:
                abstract.pop("head", None)
            return restore_parameters(self.run, abstract, some=True, model=theirs)
        theirs = Model(experiment, self.tokenizer.vocab, self.run.counts())
        abstract = {"network": theirs.abstract_params(mesh)["network"]}
        return restore_parameters(self.run, abstract, model=theirs)

    def base(self, model: Model, initial: ArrayTree, carried: Carried | None) -> ArrayTree:
        """Returns the arrays of `initial` that the new run keeps as they are.

        Raises InputError if this run lacks some of them.
        """
        due, there = due_in_base(model), named(initial)
        lacking = sorted(due - there.keys())
        if carried is not None:
            axes = named(carried.axes)
            lacking += sorted(name for name in due & axes.keys() if axes[name] >= 0)
        if lacking:
            raise InputError(
                f"{self.option} {self.run.path} has no {lacking[0]} for this run, {_why(model)}"
            )
        return model.base(initial)

    def check_base(self, model: Model) -> None:
        """Raises InputError if this run does not keep the arrays that a fork of it keeps."""
        if not model.keeps_base:
            return
        kept = Weights.of(self.run.path, verify=self.run.verify, name=BASE_FILE)
        lacking = sorted(due_in_base(model) - set({} if kept is None else kept.shapes))
        if lacking:
            raise InputError(
                f"{self.option} {self.run.path} keeps no {lacking[0]} for this run, {_why(model)};"
                " begin from its parameters instead: --init-from"
            )

    def check(self, abstract: ArrayTree, experiment: Experiment) -> None:
        """Raises InputError if the state to fork is missing, not finite, or of another network or
        optimizer."""
        there, here = self.run.identity(experiment)["optimizer"], identity(experiment)["optimizer"]
        found = differences(there, here, "optimizer")
        if self.run.tune() != experiment.tune:
            raise InputError(
                f"{self.option} {self.run.path}: its state is of tune={_text(self.run.tune())},"
                f" this experiment has {_text(experiment.tune)}; begin from its parameters instead:"
                " --init-from"
            )
        if found:
            raise InputError(
                f"{self.option} {self.run.path}: its state is of another optimizer;"
                f" {'; '.join(found)}"
            )
        folder, verify = self.run.checkpoints, self.run.verify
        with Checkpoints(folder, read_only=True, verify=verify) as checkpoints:
            checkpoints.check(abstract, self.step)
            judged = {name: abstract[name] for name in ("params", "ema")}
            state = checkpoints.restore_part(judged, self.step)
            step = checkpoints.latest if self.step is None else self.step
        check_finite(state, f"{self.option} {self.run.path}@{step}", "fork an earlier checkpoint")

    def copy_state(self, folder: RunFolder, experiment: Experiment) -> None:
        """Copies the checkpoint to a new run's folder of checkpoints, as one of that run."""
        with Checkpoints(self.run.checkpoints, read_only=True) as checkpoints:
            step = checkpoints.latest if self.step is None else self.step
        assert step is not None  # `check` refused a run without checkpoints
        base_weights.copy(self.run, folder)
        copy_checkpoint(self.run.checkpoints, folder.checkpoints, step, recorded(experiment))


def pairs(theirs: Tokenizer, ours: Tokenizer) -> Int[np.ndarray, "n 2"]:
    """Returns their id and our id of each token that two tokenizers have, by name or by role."""
    roles = [(getattr(theirs.vocab, role), getattr(ours.vocab, role)) for role in ROLES]
    found = {here: there for there, here in roles if None not in (there, here)}
    here_by_name = ours.backend.get_vocab(with_added_tokens=True)
    taken = {i for i in vars(ours.vocab).values() if i is not None}
    for name, there in theirs.backend.get_vocab(with_added_tokens=True).items():
        here = here_by_name.get(name)
        if here is not None and here not in taken:
            found[here] = there
    return np.array(sorted((there, here) for here, there in found.items()), np.int64)


def due_in_base(model: Model) -> set[str]:
    """Returns the names of the arrays that a run of a model keeps as they are."""
    return set(named(model.base(jax.eval_shape(model.init, jax.random.key(0)))))


def _why(model: Model) -> str:
    """Says why a run of a model keeps arrays as they are, about one of them."""
    if model.objective.needs_reference:
        return f"whose objective={type(model.objective).__name__}(...) compares with it"
    return f"whose tune={type(model.tuning).__name__}(...) does not train it"


def _text(tune: Tuning | None) -> str:
    return "none" if tune is None else to_text(tune)


def started_from(
    state: dict[str, Any], initial: ArrayTree, carried: Carried | None = None
) -> dict[str, Any]:
    """Returns a fresh state with the parameters of `initial` in place of its own. Components that
    `initial` does not have keep theirs, and so do tokens that are not `carried`.

    Raises InputError if names or shapes differ.
    """
    # An array may be in both parts: trained, and kept to be compared with.
    parts = {part: state[part] for part in ("params", BASE) if part in state}
    ours = {name: leaf for tree in parts.values() for name, leaf in named(tree).items()}
    fresh = {name: leaf for name, leaf in ours.items() if name.partition(".")[0] in initial}
    theirs = named(initial)
    if fresh.keys() != theirs.keys():
        raise InputError("--init-from: the parameters are of another kind of network")
    if carried is not None:
        axes = named(carried.axes)
        theirs = {n: carried.into(fresh[n], value, axes[n]) for n, value in theirs.items()}

    def take(old: jax.Array, new: Any) -> jax.Array:
        if old.shape != new.shape:
            raise InputError(
                f"--init-from: an array has shape {new.shape}, this experiment needs {old.shape}"
            )
        return jax.device_put(new.astype(old.dtype), old.sharding)

    taken = {**ours, **{name: take(fresh[name], value) for name, value in theirs.items()}}
    for part, tree in parts.items():
        parts[part] = jax.tree.unflatten(jax.tree.structure(tree), [taken[n] for n in named(tree)])
    # The step donates its input, so all parts need arrays of their own.
    own = lambda tree: jax.tree.map(lambda a: jnp.copy(a), tree)
    if BASE in parts and named(parts["params"]).keys() & named(parts[BASE]).keys():
        parts[BASE] = own(parts[BASE])
    return {**state, **parts, "ema": own(parts["params"])}
