"""The parts of JAX that are not public and that this package uses, all in this one file.

JAX may move them in any release. `PRIVATE` lists them, `KNOWN` the releases that were tried. Where
one is missing, a run that needs it ends with a message that names it, and so does a test.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from mdlm.errors import InputError

KNOWN = ("0.10",)
"""Releases of JAX in which everything in `PRIVATE` was found and tried."""

CLUSTERS = ("SlurmCluster", "OmpiCluster", "GkeTpuCluster", "GceTpuCluster", "K8sCluster")
CUDNN, CUDNN_CHECK = "jax._src.cudnn.fused_attention_stablehlo", "check_cudnn_version"
CUDNN_VERSION = 91100
"""The release of cuDNN that is assumed where there is none: 9.11. No shape depends on it."""
PRIVATE: dict[str, tuple[str, ...]] = {
    "jax._src.cloud_tpu_init": ("running_in_cloud_tpu_vm",),
    "jax._src.clusters": CLUSTERS,
    CUDNN: (CUDNN_CHECK,),
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


@contextmanager
def cudnn_assumed() -> Iterator[None]:
    """Within this context, cuDNN's attention is traced on machines that have no cuDNN.

    JAX asks for the release of cuDNN before it traces. What is traced cannot run here.
    Raises InputError if this release of JAX asks in another place.
    """
    asked = _private(CUDNN, CUDNN_CHECK, "to plan for GPUs", "")
    module = import_module(CUDNN)
    setattr(module, CUDNN_CHECK, lambda: CUDNN_VERSION)
    try:
        yield
    finally:
        setattr(module, CUDNN_CHECK, asked)


def _private(
    module: str,
    name: str,
    purpose: str = "to join processes",
    instead: str = ", or give --processes 1 to run alone",
) -> Any:
    assert name in PRIVATE[module], f"{module}.{name} is not listed in PRIVATE"
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        import jax

        known = " or ".join(f"jax=={release}.*" for release in KNOWN)
        raise InputError(
            f"JAX {jax.__version__} has no {module}.{name}, which is needed {purpose}:"
            f" install {known}{instead}"
        ) from error
