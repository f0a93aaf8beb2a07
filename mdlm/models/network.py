"""Networks: configuration, parameters, and a function of both.

A `Network` is the configuration; `init` returns its parameters, a plain nested dict of float32
arrays; `denoiser` joins the two into the function that diffusion code calls. Only this file splits
and merges Flax NNX modules: every other file has dicts and functions.
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
from mdlm.names import KERNEL
from mdlm.parallel.mesh import SEQUENCE, TENSOR
from mdlm.parallel.sharding import Path, Rest
from mdlm.types import ArrayTree, Attends, Batch, Denoise, NetInput, Prediction

Params = dict[str, Any]
Remat = Literal["auto", "none", "products", "blocks"]


@dataclass(frozen=True, kw_only=True)
class Network(abc.ABC):
    """The configuration of a network, which builds the network's module.

    The module is called with `(inputs, condition=..., key=...)` and returns a `Prediction`.
    `condition`, `Float[Array, " b #l"]` or None, is the noise level that conditions the network.

    Planning and profiling read these fields of every network. The defaults are for networks that
    do not offer the choice; the others set their own.

    Args:
        depth: number of blocks; the backward pass processes one at a time.
        dtype: of the matmuls; parameters, norms, softmax, residual stream and logits are
            float32. "auto" is bfloat16 except on CPUs.
        remat: what the backward pass recomputes: nothing ("none"); all but the results of matmuls
            and attention ("products"); all inside a block ("blocks", the least memory and a third
            more matmuls). "auto" is "products" on TPUs, else "none".
        columns: rows of the embedding table and columns of the head, at least the size of the
            vocabulary; 0: as many. The others belong to no token and get no probability.
        logits_chunk: most logits that `Prediction.reduce_rows` holds on a device (None: see
            `mdlm.models.readout.chunk_size`).
    """

    attends: ClassVar[Attends] = "all"
    shift: ClassVar[bool] = False
    """Whether the logits about a token are computed at the one before it (see `Decoder`)."""
    token_types: ClassVar[int] = 0
    """The number of token types that the network tells apart; 0: it has no such input."""

    depth: int = 1
    dtype: Precision = "float32"
    remat: Remat = "none"
    logits_chunk: int | None = None
    columns: int = 0

    @property
    def features_width(self) -> int:
        """Width of what heads read, `Prediction.features`: by default the setting `width`."""
        return vars(self)["width"]

    @property
    def passes(self) -> int:
        """Forward passes per call: 2 with self-conditioning, see `self_conditioning`."""
        return 1

    @property
    def caches(self) -> bool:
        """Whether calls can read some positions and have the others stored (`NetInput.reading`)."""
        return False

    @property
    def takes_labels(self) -> bool:
        """Whether the network can be conditioned on the label of a row, and run without."""
        return False

    def labelled(self, batch: Batch, key: Key[Array, ""] | None = None) -> Batch:
        """Returns the batch with the labels for the network, or no labels if it takes none.

        With a `key`, in training, the label of each row is dropped with some probability. The draw
        depends on the key and the row number only.
        """
        return replace(batch, label=None)

    def check_mesh(self, mesh: Mesh | AbstractMesh, length: int) -> None:
        """Raises InputError if rows of `length`, or the network, cannot be split over the mesh."""
        sequence, tensor = mesh.shape[SEQUENCE], mesh.shape[TENSOR]
        heads, hidden = self.shared
        if length % sequence:
            raise InputError(f"length={length}: must be a multiple of mesh.sequence={sequence}")
        if heads % (sequence * tensor):
            raise InputError(
                f"network.heads={heads}: must be a multiple of mesh.sequence x mesh.tensor = "
                f"{sequence} x {tensor}, as these devices split the heads"
            )
        if hidden % tensor:
            raise InputError(
                f"mlp hidden width {hidden}: must be a multiple of mesh.tensor={tensor}"
            )

    @property
    @abc.abstractmethod
    def shared(self) -> tuple[int, int]:
        """Attention heads, and the hidden width of the mlp, which are split over devices."""

    @abc.abstractmethod
    def module(self, columns: int, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a module for a vocabulary of `columns` tokens; it must not keep `rngs`."""

    @abc.abstractmethod
    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        """Returns the FLOPs of the matmuls of one forward pass; a multiply-add counts as two.

        `rows` sequences of `length` tokens pass all layers, with full attention (causal too), and
        `scored` positions get `columns` logits each. Training takes three times as many.
        Rematerialisation and the first of two `passes` are not counted.
        """


def init(network: Network, key: Key[Array, ""], columns: int) -> Params:
    """Returns initial parameters. Under jit, any output sharding gives the same values."""
    return nnx.to_pure_dict(nnx.state(network.module(columns, nnx.Rngs(params=key))))


def shapes(network: Network, columns: int) -> ArrayTree:
    """Returns the parameters' tree with `jax.ShapeDtypeStruct` leaves; computes nothing."""
    return jax.eval_shape(lambda: init(network, jax.random.key(0), columns))


def rests(network: Network, columns: int) -> dict[Path, Rest]:
    """Returns how the parameters that are split over a mesh are sharded, by their path."""
    module = nnx.eval_shape(lambda: network.module(columns, nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(module))
    uses = {path: param.get_metadata().get("rest") for path, param in flat}
    return {tuple(map(str, path)): rest for path, rest in uses.items() if rest is not None}


def widths(network: Network, columns: int) -> dict[Path, tuple[int, ...]]:
    """Returns the columns of each of the matrices that lie side by side in a kernel, by its path.
    Kernels that are one matrix are left out."""
    module = nnx.eval_shape(lambda: network.module(columns, nnx.Rngs(0)))
    found = {}
    for path, _ in nnx.to_flat_state(nnx.state(module)):
        layer: Any = module
        for name in path[:-1]:
            layer = getattr(layer, str(name))
        own = getattr(layer, "widths", ())
        if path[-1] == KERNEL and len(own) > 1:
            found[tuple(map(str, path))] = own
    return found


def bind(network: Network, columns: int, params: ArrayTree) -> nnx.Module:
    """Returns the module with `params`, to inspect its parts. Do not change it in place."""
    empty = nnx.eval_shape(lambda: network.module(columns, nnx.Rngs(0)))
    return nnx.merge(nnx.graphdef(empty), params)


def denoiser(
    network: Network,
    columns: int,
    params: ArrayTree,
    *,
    condition: Callable[[Float[Array, " b #l"]], Float[Array, " b #l"]] | None = None,
) -> Denoise:
    """Returns the network with its parameters, as the function that diffusion code calls.

    `condition` maps diffusion time to the network's conditioning (sigma, the log-SNR, ...). With
    None a network with adaLN gets zeros, as the MDLM paper's without time conditioning.
    Raises ValueError if there is a `condition` and the inputs have no time, or if the inputs have
    `token_types` or a `reading` and the network has no such input.
    """
    module: Any = bind(network, columns, params)

    def denoise(inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
        if inputs.reading is not None and not network.caches:
            raise ValueError(f"reading: {type(network).__name__} has no cache")
        if inputs.token_types is not None and not network.token_types:
            raise ValueError(f"token_types: {type(network).__name__} has no such input")
        if condition is None:
            return module(inputs, condition=None, key=key)
        if inputs.t is None:
            raise ValueError("t=None: the network is conditioned on time; give the inputs a time")
        return module(inputs, condition=condition(inputs.t), key=key)

    return self_conditioned(denoise) if network.passes == 2 else denoise


def count_parameters(params: ArrayTree) -> int:
    """Returns the number of entries in all arrays (or shapes) of the tree."""
    return sum(math.prod(array.shape) for array in jax.tree.leaves(params))
