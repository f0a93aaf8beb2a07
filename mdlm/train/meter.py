"""Training speed, for the log of a run."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mdlm.experiment.model import Model
from mdlm.models.layers import compute_dtype
from mdlm.profiling.peak import peak_flops
from mdlm.runs.log import Log


class Meter:
    """Writes fetched metrics as a log line, with the speed since the line before.

    `tokens_per_second` counts the tokens in the loss. `flops_per_second` counts the model's
    matmuls: three times those of a forward pass, without recomputation. `mfu` is its fraction of
    the devices' peak, left out if the peak is not known. `data_wait` is the fraction of time in
    which this process's devices were idle and waited for a batch.

    Args:
        stalled: returns the seconds spent so in total.
    """

    def __init__(self, model: Model, mesh: jax.sharding.Mesh, stalled: Callable[[], float]):
        experiment = model.experiment
        self.network, self.columns = experiment.network, model.columns
        self.rows, self.length = experiment.train.batch_size, experiment.data.packing.length
        dtype = compute_dtype(self.network.dtype)
        self.stalled = stalled
        # On a CPU the peak is measured, so this comes before anything is timed.
        self.peak = peak_flops(dtype.name, list(mesh.devices.flat)).flops
        self.skip()

    def skip(self) -> None:
        """Excludes the time since the last reading, which was not spent on training."""
        self._start(time.perf_counter())

    def _start(self, now: float) -> None:
        self.steps, self.since, self.stalled_before = 0, now, self.stalled()

    def read(self, log: Log, step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
        """Waits for the metrics of a step and logs them; returns those that are scalars."""
        values, several = numbers(jax.device_get(metrics))
        now = time.perf_counter()
        if self.steps:
            rate = self.steps / (now - self.since)
            values["tokens_per_second"] = values["tokens"] * rate
            forward = self.network.flops(self.rows, self.length, values["scored"], self.columns)
            values["flops_per_second"] = 3 * forward * rate
            if self.peak is not None:
                values["mfu"] = values["flops_per_second"] / self.peak
            values["data_wait"] = (self.stalled() - self.stalled_before) / (now - self.since)
        self._start(now)
        log.add("train", step, {**values, **several})
        return values


def numbers(metrics: dict[str, Any]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Returns fetched metrics as plain numbers: the scalars, and the lists."""
    one = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
    several = {name: value.tolist() for name, value in metrics.items() if np.ndim(value)}
    return one, several
