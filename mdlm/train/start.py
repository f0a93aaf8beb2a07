"""The state from which a run begins, or is resumed, and the arrays that no step changes."""

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from mdlm.experiment.model import Model
from mdlm.keys import of_seed
from mdlm.runs import base_weights
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.folder import RunFolder
from mdlm.train import guard
from mdlm.train.origin import Carried, started_from
from mdlm.train.step import BASE, State, create_state, saved
from mdlm.types import ArrayTree


def created(
    model: Model,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    initial: ArrayTree | None,
    carried: Carried | None,
) -> State:
    """Returns the state before the first step; `initial` and `carried` are those of `Trainer`."""
    state = create_state(model, tx, mesh, of_seed(model.experiment.seed))
    return state if initial is None else started_from(state, initial, carried)


def restored(
    checkpoints: Checkpoints, abstract: State, folder: RunFolder | None = None
) -> tuple[State, dict[str, Any]]:
    """Returns state and data of the newest checkpoint. Counters that it lacks start at zero. What
    no step changes is read from `folder`."""
    base = {}
    if BASE in abstract:
        assert folder is not None
        base = {BASE: base_weights.restore(folder, abstract[BASE])}
    abstract = saved(abstract)
    if checkpoints.has("watch"):
        state, data = checkpoints.restore(abstract)
        return {**state, **base}, data
    state, data = checkpoints.restore({k: v for k, v in abstract.items() if k != "watch"})
    shardings = jax.tree.map(lambda a: a.sharding, abstract["watch"])
    fresh = jax.tree.map(np.asarray, guard.fresh())
    return {**state, "watch": jax.device_put(fresh, shardings), **base}, data
