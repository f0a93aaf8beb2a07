"""The loader's batches, with the noise level of each row, put on the devices ahead of time."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mdlm.data.loader import HostBatch, TrainLoader
from mdlm.data.prefetch import Prefetcher
from mdlm.parallel.mesh import put_on_mesh
from mdlm.times import balanced_order
from mdlm.types import Batch


def on_devices(
    loader: TrainLoader, mesh: Mesh, position: int, is_idle: Callable[[], bool]
) -> Prefetcher[tuple[int, Batch]]:
    """Returns batches from a position on, as a thread has put them on the devices.

    `is_idle` tells whether the devices wait for a batch.
    """
    order = balanced_order(loader.batch_size)

    def on_device(rows: HostBatch) -> Batch:
        batch = Batch(**put_on_mesh(mesh, in_training(rows, order)))
        return jax.block_until_ready(batch)

    return loader.iterate(position, on_device, is_idle)


def in_training(rows: dict[str, np.ndarray], order: np.ndarray) -> dict[str, Any]:
    """Returns a loader's rows with their strata: the noise level of each in the global batch."""
    return {
        **rows,
        "row": order[rows["row"]].astype(np.int32),
        "rows": np.asarray(len(order), np.int32),
    }
