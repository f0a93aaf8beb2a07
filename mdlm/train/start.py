"""The state from which a run begins, or is resumed."""

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from mdlm.experiment.model import Model
from mdlm.keys import of_seed
from mdlm.runs.checkpoints import Checkpoints
from mdlm.train import guard
from mdlm.train.origin import Carried, started_from
from mdlm.train.step import State, create_state
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


def restored(checkpoints: Checkpoints, abstract: State) -> tuple[State, dict[str, Any]]:
    """Returns state and data of the newest checkpoint. Counters that it lacks start at zero."""
    if checkpoints.has("watch"):
        return checkpoints.restore(abstract)
    state, data = checkpoints.restore({k: v for k, v in abstract.items() if k != "watch"})
    shardings = jax.tree.map(lambda a: a.sharding, abstract["watch"])
    fresh = jax.tree.map(np.asarray, guard.fresh())
    return {**state, "watch": jax.device_put(fresh, shardings)}, data
