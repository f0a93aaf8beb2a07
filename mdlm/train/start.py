"""The state of a checkpoint, from which a run is resumed."""

from typing import Any

import jax
import numpy as np

from mdlm.runs.checkpoints import Checkpoints
from mdlm.train import guard
from mdlm.train.step import State


def restored(checkpoints: Checkpoints, abstract: State) -> tuple[State, dict[str, Any]]:
    """Returns state and data of the newest checkpoint. Counters that it lacks start at zero."""
    if checkpoints.has("watch"):
        return checkpoints.restore(abstract)
    state, data = checkpoints.restore({k: v for k, v in abstract.items() if k != "watch"})
    shardings = jax.tree.map(lambda a: a.sharding, abstract["watch"])
    fresh = jax.tree.map(np.asarray, guard.fresh())
    return {**state, "watch": jax.device_put(fresh, shardings)}, data
