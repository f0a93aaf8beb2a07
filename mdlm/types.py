"""The values that pass between components, and the axis letters their shapes are written in.

    b  batch (sequences)      l  length (tokens)      v  vocabulary (size of the logits)
    d  width of the network   h  attention heads      n  any other count (layers, steps)

Times are diffusion times, 0 clean and 1 noise, always `Float[Array, " b #l"]`: `[b, 1]` for one
noise level per sequence, `[b, l]` for one per token. Losses are in nats, float32.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol, dataclass_transform

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.errors import InputError as InputError
from mdlm.vocab import Vocab as Vocab

ArrayTree = Any
"""A pytree whose leaves are arrays (JAX has no narrower type for it)."""

Attends = Literal["all", "causal", "blocks"]
"""The tokens that a network's prediction of a token attends to: "all", the whole noised row;
"causal", those before it; "blocks", the noised ones of its block and the clean earlier blocks."""


def with_ids(component: Any, vocab: Vocab) -> Any:
    """Returns a component with those of `mask_id` and `vocab_size` that it has set from `vocab`.

    Raises InputError if one was set by hand to another value.
    """
    theirs = {"mask_id": vocab.mask_id, "vocab_size": vocab.size}
    own = [field.name for field in dataclasses.fields(component) if field.name in theirs]
    for name in own:
        mine = getattr(component, name)
        if mine not in (None, theirs[name]):
            raise InputError(
                f"{type(component).__name__}({name}={mine}): the vocabulary's is {theirs[name]};"
                " leave it out"
            )
    return dataclasses.replace(component, **{name: theirs[name] for name in own})


@dataclass_transform(frozen_default=True, kw_only_default=True)
def pytree(cls):
    """Class decorator: a frozen keyword-only dataclass that JAX treats as a pytree of its fields.

    Fields are annotated `Any` because JAX rebuilds such objects with placeholders instead of
    arrays. Comments give the shapes.
    """
    return jax.tree_util.register_dataclass(dataclass(frozen=True, kw_only=True)(cls))


@pytree
class KeyValues:
    """Stored keys and values of the tokens of each row, in all layers; m is the capacity."""

    keys: Any  # Array, "n b m g h", by layer, sequence, position and head
    values: Any  # Array, "n b m g h"
    rollout: Any = None  # Float[Array, "b m"], see `Reading.rollout`; None: not asked for


@pytree
class Reading:
    """A call that computes some positions of each row and has the others stored.

    Positions count in the row that the network reads: 0..l-1, and for networks that attend to
    diffusion blocks l..2l-1 too, the clean tokens. Larger numbers are no position.
    """

    stored: Any  # KeyValues, from an earlier Prediction; None: nothing is stored yet
    at: Any  # Int[Array, "b q"], the positions computed, each once; numbers that are none come last
    asked: Any = None  # Int[Array, ""], logits are needed at most for this many first entries of
    # `at`, in every row (None: for all)
    chunk: int = dataclasses.field(default=128, metadata={"static": True})
    # so many positions of each row are computed at a time; parts without a position are skipped.
    # Fewer leave less to compute in vain at the end, more make the faster matmuls
    rollout: bool = dataclasses.field(default=False, metadata={"static": True})
    # whether to store the attention rollout of the call (Abnar & Zuidema, arXiv:2005.00928): how
    # much each position contributes to the outputs of all, summed over them; the sum is l


@pytree
class NetInput:
    """The input of a network: the tokens and everything known about them."""

    tokens: Any  # Int[Array, "b l"], noised
    t: Any = None  # Float[Array, " b #l"], diffusion time; None for networks without noise
    clean: Any = None  # Int[Array, "b l"], for networks that read [noised ; clean]
    is_valid: Any = None  # Bool[Array, "b l"], False at padding, which no token attends to
    segment_ids: Any = None  # Int[Array, "b l"], tokens attend within their segment
    positions: Any = None  # Int[Array, "b l"], default 0..l-1
    token_types: Any = (
        None  # Int[Array, "b l"], which of the texts of a row, for networks that were
    )
    # trained with it (BERT); default 0
    label: Any = None  # Int[Array, " b"]
    self_cond: Any = None  # Float[Array, "b l d"]
    reading: Any = None  # Reading: the positions that are computed, if not all; for networks with
    # `caches`
    defer_last_block: bool = dataclasses.field(default=False, metadata={"static": True})
    # True if logits are needed at few positions: a network may leave its last block to
    # `Prediction.logits(at)`, which computes it at those positions alone


@pytree
class Batch:
    """Sequences of data, also called rows. `loss_mask` says which tokens count in the loss.

    `row` is the index of each sequence in the whole that the batch is part of (the global batch
    in training, the split in evaluation), and `rows` the size of that whole. Noise times are
    stratified over the whole and the random draws of a row follow its index, so neither depends
    on how the whole is split into batches.
    """

    tokens: Any  # Int[Array, "b l"]
    loss_mask: Any  # Bool[Array, "b l"]
    row: Any  # Int[Array, " b"], index of each sequence in the whole, 0 <= row < rows
    rows: Any  # Int[Array, ""], sequences in the whole
    is_valid: Any = None  # Bool[Array, "b l"], False at padding; None where there is none
    segment_ids: Any = None  # Int[Array, "b l"] where several documents share a row
    label: Any = None  # Int[Array, " b"]


@pytree
class LossTerms:
    """The result of an objective. All float32, in nats, not divided by the number of tokens.

    `total` is the loss that is trained: a differentiable sum over the batch. `values` is the same
    sum by token, and `bound` has the terms of the reported NELBO by token; both carry no
    gradient. `count` is 1 for each token that the sums are divided by, else 0. `scored` is 1 for
    each token whose logits were computed. `examples` are what `total` is divided by, if not by the
    tokens of `count`. `t` is the noise level, by row or by token. `weight` is
    that of each token's cross-entropy, whose product with it is the bound.
    """

    total: Any  # Float[Array, ""]
    values: Any  # Float[Array, "b l"]
    bound: Any  # Float[Array, "b l"]
    count: Any  # Float[Array, "b l"]
    scored: Any  # Float[Array, "b l"]
    scalars: Any  # dict[str, Float[Array, ""]], further values for the log
    t: Any = None  # Float[Array, " b #l"], diffusion time; None where nothing is noised
    weight: Any = None  # Float[Array, "b l"]; None where the bound is no weighted cross-entropy
    examples: Any = None  # Float[Array, ""]; None where the loss is one of tokens


class Prediction(abc.ABC):
    """The output of a network: at each position, logits of the clean token there.

    An index of a position counts through the batch: `sequence * l + position`.
    """

    hidden: Any = None  # Float[Array, "b l d"], input of the layer that makes the logits
    cache: Any = None  # KeyValues, the stored ones with those of this call, if the inputs have a
    # `reading`
    scalars: Mapping[str, Any] = MappingProxyType({})  # Float[Array, ""], what the network says of
    # this call in the log

    @property
    def features(self) -> Any:
        """What heads beside that of tokens read (`mdlm.models.heads`), Float[Array, "b l d"] or
        None: the output of the last block, normed where the network norms it before its logits. It
        is `hidden`, except where a transform of BERT's kind lies between the two."""
        return self.hidden

    @property
    def whole(self) -> "Prediction":
        """The same prediction with its last block computed at all positions.

        It is the prediction itself, unless the last block was deferred.
        """
        return self

    @abc.abstractmethod
    def logits(self, at: Int[Array, " n"] | None = None) -> Float[Array, "..."]:
        """Returns float32 logits at all positions, `[b l v]`, or at the indices `at`, `[n v]`."""

    @abc.abstractmethod
    def reduce_rows(
        self,
        fn: Callable[[Float[Array, "n v"], ArrayTree, ArrayTree], Float[Array, " n"]],
        rows: ArrayTree,
        weight: Float[Array, "b l"],
        shared: ArrayTree = None,
    ) -> tuple[Float[Array, ""], Float[Array, "b l"]]:
        """Sums `weight * fn(logits, rows, shared)` over all positions, never holding `[b l v]`.

        `rows` is a pytree of `[b l ...]` arrays, passed to `fn` as `[n ...]`, some positions at a
        time. Positions of weight 0 add nothing, whatever `fn` returns there. Returns the total
        and the values, `weight * fn` by position. The total is differentiable in the network and
        in `shared`: pass there whatever else needs a gradient, never by closure. The values carry
        no gradient.
        """


class Denoise(Protocol):
    """A network with its parameters: the one form in which diffusion code uses a network."""

    def __call__(self, inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
        """Predicts clean tokens. `key` is for dropout; None turns dropout off."""
        ...


class ReadHead(Protocol):
    """A head with its parameters, see `mdlm.models.heads`."""

    def __call__(
        self, prediction: Prediction, *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "..."]:
        """Returns the outputs of the head, `[b k]` for rows or `[b l k]` for tokens, float32. `key`
        is for dropout; None turns dropout off."""
        ...


class DenseLogits(Prediction):
    """A `Prediction` that holds all logits in one array, for any function that returns logits."""

    def __init__(self, array: Float[Array, "b l v"], cache: Any = None):
        self.array = array.astype(jnp.float32)
        self.cache = cache

    def logits(self, at: Int[Array, " n"] | None = None) -> Float[Array, "..."]:
        if at is None:
            return self.array
        return self.array.reshape(-1, self.array.shape[-1])[at]

    def reduce_rows(
        self,
        fn: Callable[[Float[Array, "n v"], ArrayTree, ArrayTree], Float[Array, " n"]],
        rows: ArrayTree,
        weight: Float[Array, "b l"],
        shared: ArrayTree = None,
    ) -> tuple[Float[Array, ""], Float[Array, "b l"]]:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        loss = fn(self.array.reshape(-1, self.array.shape[-1]), flat, shared)
        values = weighted(loss.reshape(weight.shape), weight)
        return values.sum(), jax.lax.stop_gradient(values)


def weighted(loss: Float[Array, "*s"], weight: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns `weight * loss`, and exactly 0 (also in the gradient) where the weight is 0.

    The loss may be infinite at weight 0, and 0 * inf is NaN.
    """
    used = weight != 0
    return jnp.where(used, weight * jnp.where(used, loss, 0.0), 0.0)
