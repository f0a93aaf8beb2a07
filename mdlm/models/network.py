"""Networks as configuration, parameters and a function of them.

A `Network` says what to build; `init` gives its parameters, a plain nested dict of float32
arrays; `denoiser` joins the two into the function that diffusion code calls. Modules of Flax NNX
are taken apart and put together here and nowhere else: every other file sees dicts and functions.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
from flax import nnx
from jax import Array
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Float, Key

from mdlm.errors import InputError
from mdlm.models.layers import Precision
from mdlm.models.self_conditioning import self_conditioned
from mdlm.parallel.mesh import SEQUENCE, TENSOR
from mdlm.parallel.sharding import Path, Rest
from mdlm.types import ArrayTree, Attends, Batch, Denoise, NetInput, Prediction

Params = dict[str, Any]
Remat = Literal["auto", "none", "products", "blocks"]


@dataclass(frozen=True, kw_only=True)
class Network(abc.ABC):
    """The configuration of a network, which builds the network's module.

    The module is called with `(inputs, condition=..., key=...)` and answers with a `Prediction`.
    `condition`, `Float[Array, " b #l"]` or None, is what the network is told of the noise level.

    The fields here are those that planning and measuring read of every network. The defaults are
    those of a network that does not offer the choice; one that does gives its own.

    Args:
        depth: blocks that are alike, of which the backward pass goes through one at a time.
        dtype: of the matmuls; parameters, norms, softmax, residual stream and logits are
            float32. "auto" is bfloat16 except on CPUs.
        remat: what the backward pass recomputes instead of keeping: nothing ("none"); all but the
            results of matmuls and attention ("products"); all inside a block ("blocks", the least
            memory and a third more matmuls). "auto": "products" on TPUs, else nothing.
        logits_chunk: logits that `Prediction.reduce_rows` holds at once on a device (None: see
            `mdlm.models.readout.chunk_size`).
    """

    attends: ClassVar[Attends] = "all"

    depth: int = 1
    dtype: Precision = "float32"
    remat: Remat = "none"
    logits_chunk: int | None = None

    @property
    def passes(self) -> int:
        """Passes of one call: 2 with self-conditioning, see `self_conditioning`."""
        return 1

    @property
    def takes_labels(self) -> bool:
        """Whether it can be told the kind of a row, and asked without."""
        return False

    def labelled(self, batch: Batch, key: Key[Array, ""] | None = None) -> Batch:
        """The batch with the labels that the network is to be told, none if it takes none.

        With a `key`, in training, each row loses its label with some probability, by its place.
        """
        return replace(batch, label=None)

    def check_mesh(self, mesh: Mesh | AbstractMesh, length: int) -> None:
        """InputError where rows of that length, or the network, cannot be split over the mesh."""
        sequence, tensor = mesh.shape[SEQUENCE], mesh.shape[TENSOR]
        heads, hidden = self.shared
        if length % sequence:
            raise InputError(f"rows of {length} tokens do not divide over mesh.sequence={sequence}")
        if heads % (sequence * tensor):
            raise InputError(
                f"network.heads={heads} does not divide over sequence x tensor = "
                f"{sequence} x {tensor} devices, which share the heads of a row"
            )
        if hidden % tensor:
            raise InputError(
                f"the mlp's hidden width of {hidden} does not divide over mesh.tensor={tensor}"
            )

    @property
    @abc.abstractmethod
    def shared(self) -> tuple[int, int]:
        """Attention heads, and the width inside the mlp, which devices share."""

    @abc.abstractmethod
    def module(self, columns: int, rngs: nnx.Rngs) -> nnx.Module:
        """A module with logits of `columns` columns; it must not keep `rngs`."""

    @abc.abstractmethod
    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        """Operations of the matrix products of one forward pass, a multiplication and an
        addition counted as two.

        `rows` sequences of `length` tokens through all layers, attention in full (causal too),
        and `columns` logits at `scored` positions. Training takes three times as many;
        what rematerialisation does again is not counted, nor what a first of two `passes` does.
        """


def init(network: Network, key: Key[Array, ""], columns: int) -> Params:
    """Fresh parameters. May be jitted with any output sharding: the values are the same."""
    return nnx.to_pure_dict(nnx.state(network.module(columns, nnx.Rngs(params=key))))


def shapes(network: Network, columns: int) -> ArrayTree:
    """The parameters' tree with `jax.ShapeDtypeStruct` leaves; nothing is computed."""
    return jax.eval_shape(lambda: init(network, jax.random.key(0), columns))


def rests(network: Network, columns: int) -> dict[Path, Rest]:
    """How parameters are used, by their path, as far as they are split over a mesh."""
    module = nnx.eval_shape(lambda: network.module(columns, nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(module))
    uses = {path: param.get_metadata().get("rest") for path, param in flat}
    return {tuple(map(str, path)): rest for path, rest in uses.items() if rest is not None}


def bind(network: Network, columns: int, params: ArrayTree) -> nnx.Module:
    """The module with `params` in it, for a look at its parts. Not to be changed in place."""
    empty = nnx.eval_shape(lambda: network.module(columns, nnx.Rngs(0)))
    return nnx.merge(nnx.graphdef(empty), params)


def denoiser(
    network: Network,
    columns: int,
    params: ArrayTree,
    *,
    condition: Callable[[Float[Array, " b #l"]], Float[Array, " b #l"]] | None = None,
) -> Denoise:
    """The network with its parameters, as diffusion code calls it.

    `condition` maps diffusion time to what the network is fed (sigma, the log-SNR, ...). None
    feeds zeros: a network of the MDLM paper then does not know the time, though it has adaLN.
    Raises ValueError where there is a `condition` and the inputs have no time.
    """
    module: Any = bind(network, columns, params)

    def denoise(inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
        if condition is None:
            return module(inputs, condition=None, key=key)
        if inputs.t is None:
            raise ValueError("the network is conditioned on time, but the inputs have t=None")
        return module(inputs, condition=condition(inputs.t), key=key)

    return self_conditioned(denoise) if network.passes == 2 else denoise


def count_parameters(params: ArrayTree) -> int:
    """Number of entries in all arrays (or shapes) of the tree."""
    return sum(math.prod(array.shape) for array in jax.tree.leaves(params))
