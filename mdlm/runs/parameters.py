"""The EMA parameters of a run, from a checkpoint or from its weights."""

from collections.abc import Mapping
from typing import Any

import jax

from mdlm.errors import InputError
from mdlm.experiment.model import Model
from mdlm.runs import base_weights
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.finite import check_finite
from mdlm.runs.folder import RunFolder
from mdlm.runs.weights import Weights
from mdlm.types import ArrayTree


def restore_parameters(
    folder: RunFolder,
    abstract: Mapping[str, ArrayTree],
    step: int | None = None,
    *,
    some: bool = False,
    model: Model | None = None,
) -> tuple[int, dict[str, Any]]:
    """Returns the step of a run and its EMA parameters, with the shardings of `abstract`.

    They come from the newest checkpoint, or from the weights if no checkpoint is newer; `step`
    selects a checkpoint. From a checkpoint they have the dtypes of `abstract`, from weights those
    of the file. With `some`, components that the run does not have are left out. `model` is the
    run's: where its `tune` keeps arrays as they are, these are joined with those of the checkpoint.
    Raises InputError if there are no parameters, if they are not finite, or if their names or
    shapes are not those of `abstract`.
    """
    found, parameters = _restored(folder, abstract, step, some, model)
    check_finite(parameters, f"{folder.path}, step {found}")
    return found, parameters


def _restored(
    folder: RunFolder,
    abstract: Mapping[str, ArrayTree],
    step: int | None,
    some: bool,
    model: Model | None,
) -> tuple[int, dict[str, Any]]:
    weights = Weights.of(folder.path, verify=folder.verify)
    verify = folder.verify
    with Checkpoints(folder.checkpoints, read_only=True, verify=verify) as checkpoints:
        newest = checkpoints.latest
        if weights is not None and (newest is None or newest <= weights.step):
            if step is None:
                return weights.step, weights.restore(abstract, some=some)
            if newest is None:
                raise InputError(
                    f"step {step}: {folder.path} has weights (of step {weights.step}) and no"
                    " checkpoints; leave the step out"
                )
        parts = None if model is None else _parts(model, abstract)
        trained = abstract if parts is None else parts[1]
        if some:
            trained = {k: v for k, v in trained.items() if checkpoints.has("ema", k)}
        ema = checkpoints.restore_part({"ema": trained}, step)["ema"]
        found = newest if step is None else step
        assert found is not None  # a missing checkpoint was refused
        if model is None or parts is None:
            return found, ema
        return found, _joined(model, base_weights.restore(folder, parts[0]), ema, abstract)


def restore_trained(
    folder: RunFolder, model: Model, abstract: ArrayTree, step: int | None = None
) -> ArrayTree:
    """Returns the EMA of the arrays that a run trains while it keeps others as they are; `abstract`
    is of all parameters. Raises InputError if there is no such checkpoint."""
    parts = _parts(model, abstract)
    assert parts is not None  # all others are in `restore_parameters`
    with Checkpoints(folder.checkpoints, read_only=True, verify=folder.verify) as checkpoints:
        return checkpoints.restore_part({"ema": parts[1]}, step)["ema"]


def _parts(model: Model, abstract: ArrayTree) -> tuple[ArrayTree, ArrayTree] | None:
    """Returns what `Model.split` gives for parameters like `abstract`, with shardings, but of the
    base only what the network is run with; None if that is nothing."""
    if not model.tuning.keeps_base:
        return None
    mesh = jax.tree.leaves(abstract)[0].sharding.mesh
    base, trained = jax.eval_shape(model.split, jax.random.key(0), abstract)
    return model.on_mesh(mesh, (model.tuning.base(base), trained))


def _joined(model: Model, base: ArrayTree, ema: ArrayTree, abstract: ArrayTree) -> ArrayTree:
    """Returns the parameters of the network, with the dtypes and shardings of `abstract`."""

    def due(array: jax.Array, like: Any) -> jax.Array:
        return jax.lax.with_sharding_constraint(array.astype(like.dtype), like.sharding)

    @jax.jit
    def join(base: ArrayTree, ema: ArrayTree) -> ArrayTree:
        params = model.merged(base, ema)
        return {name: jax.tree.map(due, part, abstract[name]) for name, part in params.items()}

    return join(base, ema)
