"""The parts of JAX that are not public and that this package uses, all in this one file.

JAX may move them in any release. `PRIVATE` lists them, `KNOWN` the releases that were tried. Where
one is missing, a run that needs it ends with a message that names it, and so does a test.
"""

from importlib import import_module
from typing import Any

from mdlm.errors import InputError

KNOWN = ("0.10",)
"""Releases of JAX in which everything in `PRIVATE` was found and tried."""

CLUSTERS = ("SlurmCluster", "OmpiCluster", "GkeTpuCluster", "GceTpuCluster", "K8sCluster")
PRIVATE: dict[str, tuple[str, ...]] = {
    "jax._src.cloud_tpu_init": ("running_in_cloud_tpu_vm",),
    "jax._src.clusters": CLUSTERS,
    "jax._src.distributed": ("global_state",),
}
"""What is used, by module."""


def cluster(name: str) -> Any:
    """JAX's reader of a launcher's environment, one of `CLUSTERS`.

    Raises InputError if this release of JAX does not have it.
    """
    return _private("jax._src.clusters", name)


def is_cloud_tpu() -> bool:
    """Whether this machine is a host of a Cloud TPU.

    Raises InputError if this release of JAX does not tell.
    """
    return bool(_private("jax._src.cloud_tpu_init", "running_in_cloud_tpu_vm"))


def coordination_client() -> Any:
    """The client of the coordination service, once `jax.distributed` is initialized.

    Raises InputError if this release of JAX does not give it.
    """
    return _private("jax._src.distributed", "global_state").client


def _private(module: str, name: str) -> Any:
    assert name in PRIVATE[module], f"{module}.{name} is not listed in PRIVATE"
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        import jax

        known = " or ".join(f"jax=={release}.*" for release in KNOWN)
        raise InputError(
            f"JAX {jax.__version__} has no {module}.{name}, which is needed to join processes:"
            f" install {known}, or give --processes 1 to run alone"
        ) from error
