"""The state that training starts from: of a checkpoint, or fresh with given parameters."""

from typing import Any

import jax
import numpy as np

from mdlm.errors import InputError
from mdlm.runs.checkpoints import Checkpoints
from mdlm.train import guard
from mdlm.train.step import State
from mdlm.types import ArrayTree


def restored(checkpoints: Checkpoints, abstract: State) -> tuple[State, dict[str, Any]]:
    """Returns state and data of the newest checkpoint. Counters that it lacks start at zero."""
    if checkpoints.has("watch"):
        return checkpoints.restore(abstract)
    state, data = checkpoints.restore({k: v for k, v in abstract.items() if k != "watch"})
    shardings = jax.tree.map(lambda a: a.sharding, abstract["watch"])
    fresh = jax.tree.map(np.asarray, guard.fresh())
    return {**state, "watch": jax.device_put(fresh, shardings)}, data


def started_from(state: dict[str, Any], initial: ArrayTree) -> dict[str, Any]:
    """Returns a fresh state with the parameters of `initial` in place of its own. Components that
    `initial` does not have keep theirs.

    Raises InputError if names or shapes differ.
    """

    def take(old: jax.Array, new: Any) -> jax.Array:
        if old.shape != new.shape:
            raise InputError(
                f"--init-from: an array has shape {new.shape}, this experiment needs {old.shape}"
            )
        return jax.device_put(new.astype(old.dtype), old.sharding)

    fresh = {name: state["params"][name] for name in initial}
    if jax.tree.structure(fresh) != jax.tree.structure(initial):
        raise InputError("--init-from: the parameters are of another kind of network")
    params = {**state["params"], **jax.tree.map(take, fresh, initial)}
    # The step donates its input, so the EMA needs arrays of its own.
    return {**state, "params": params, "ema": jax.tree.map(lambda a: a.copy(), params)}
