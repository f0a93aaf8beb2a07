"""The values that pass between components, and the axis letters their shapes are written in.

    b  batch (sequences)      l  length (tokens)      v  vocabulary (columns of the logits)
    d  width of the network   h  attention heads      n  any other count (layers, steps, rows)

Times are diffusion times, 0 clean and 1 noise, always `Float[Array, " b #l"]`: `[b, 1]` for one
noise level per sequence, `[b, l]` for one per token. Losses are in nats, float32.
"""

import abc
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
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
"""What a network's answer about a token may depend on: the whole noised row; the tokens before
it; or the noised tokens of its own block and the clean ones of the blocks before."""


def with_ids(component: Any, vocab: Vocab) -> Any:
    """A component whose `mask_id` and `vocab_size`, such as it has, are those of `vocab`.

    Raises ValueError where one was set by hand and `vocab` says otherwise.
    """
    theirs = {"mask_id": vocab.mask_id, "vocab_size": vocab.size}
    own = [field.name for field in dataclasses.fields(component) if field.name in theirs]
    for name in own:
        mine = getattr(component, name)
        if mine not in (None, theirs[name]):
            raise ValueError(f"{name}={mine}, but the vocabulary's is {theirs[name]}")
    return dataclasses.replace(component, **{name: theirs[name] for name in own})


@dataclass_transform(frozen_default=True, kw_only_default=True)
def pytree(cls):
    """Class decorator: a frozen keyword-only dataclass that JAX sees as a pytree of its fields.

    Fields are annotated loosely (`Any`) because JAX rebuilds such objects with placeholders in
    place of arrays; the shapes stand in the comments.
    """
    return jax.tree_util.register_dataclass(dataclass(frozen=True, kw_only=True)(cls))


@pytree
class KeyValues:
    """What a causal network keeps of the tokens it has read."""

    keys: Any  # Array, "n b l h d", by layer
    values: Any  # Array, "n b l h d"
    at: Any  # Int[Array, " b"], the place of the token that each sequence reads next


@pytree
class NetInput:
    """What a network is asked: the tokens and everything known about them."""

    tokens: Any  # Int[Array, "b l"], noised
    t: Any = None  # Float[Array, " b #l"], diffusion time; None for networks without noise
    clean: Any = None  # Int[Array, "b l"], for networks that read [noised ; clean]
    is_valid: Any = None  # Bool[Array, "b l"], False at padding, which nobody attends to
    segment_ids: Any = None  # Int[Array, "b l"], attention stays inside a segment
    positions: Any = None  # Int[Array, "b l"], default 0..l-1
    label: Any = None  # Int[Array, " b"]
    self_cond: Any = None  # Float[Array, "b l d"]
    cache: Any = None  # KeyValues, from an earlier Prediction: `tokens[at]` alone are read then,
    # and the answer is about the token after them
    defer_last_block: bool = dataclasses.field(default=False, metadata={"static": True})
    # True where logits are wanted at few positions: a network may leave its last block to
    # `Prediction.logits(at)`, which computes it at those positions alone
    make_cache: bool = dataclasses.field(default=False, metadata={"static": True})
    # True to have the keys and values of all tokens in `Prediction.cache`, where the network can


@pytree
class Batch:
    """Rows of data. `loss_mask` says which tokens are counted and scored.

    `row` and `rows` place each sequence in the larger whole that it is a part of (the global
    batch in training, the split in evaluation): noise times are stratified over that whole, and
    each row's randomness follows its place, so neither depends on how the whole is cut up.
    """

    tokens: Any  # Int[Array, "b l"]
    loss_mask: Any  # Bool[Array, "b l"]
    row: Any  # Int[Array, " b"], place of each sequence in the whole, 0 <= row < rows
    rows: Any  # Int[Array, ""], size of the whole
    is_valid: Any = None  # Bool[Array, "b l"], False at padding; None where there is none
    segment_ids: Any = None  # Int[Array, "b l"] where several documents share a row
    label: Any = None  # Int[Array, " b"]


@pytree
class LossTerms:
    """What an objective returns. All float32, in nats, not divided by the number of tokens.

    `total` is what is trained: a differentiable sum over the batch. `values` is that same sum by
    token, `bound` the terms of the NELBO that is reported; both are reports (no gradient).
    `count` is 1 for each token that the sums are to be divided by, else 0; `scored` is 1 for each
    whose logits were made. `t` is the noise level at which they were asked for, by row or token.
    """

    total: Any  # Float[Array, ""]
    values: Any  # Float[Array, "b l"]
    bound: Any  # Float[Array, "b l"]
    count: Any  # Float[Array, "b l"]
    scored: Any  # Float[Array, "b l"]
    scalars: Any  # dict[str, Float[Array, ""]], further figures for the log
    t: Any = None  # Float[Array, " b #l"], diffusion time; None where nothing is noised


class Prediction(abc.ABC):
    """What a network answers: for each position, logits about that position's clean token.

    A row is one position of one sequence; rows are numbered `sequence * l + position`.
    """

    hidden: Any = None  # Float[Array, "b l d"], input of the head, where there is one
    cache: Any = None  # KeyValues, where `NetInput` had `make_cache` or a cache, else None

    @property
    def whole(self) -> "Prediction":
        """The same prediction with its last block computed at all positions: itself, unless that
        block was deferred."""
        return self

    @abc.abstractmethod
    def logits(self, at: Int[Array, " n"] | None = None) -> Float[Array, "..."]:
        """Float32 logits of all positions, `[b l v]`, or of the rows `at`, `[n v]`."""

    @abc.abstractmethod
    def reduce_rows(
        self,
        fn: Callable[[Float[Array, "n v"], ArrayTree, ArrayTree], Float[Array, " n"]],
        rows: ArrayTree,
        weight: Float[Array, "b l"],
        shared: ArrayTree = None,
    ) -> tuple[Float[Array, ""], Float[Array, "b l"]]:
        """Sum of `weight * fn(logits, rows, shared)` over all rows, without `[b l v]` at once.

        `rows` is a pytree of `[b l ...]` arrays, passed to `fn` as `[n ...]`. Rows of weight 0
        add nothing, whatever `fn` gives there. The total is differentiable in the network and in
        `shared` (anything else differentiated must enter there, never by closure); the values,
        `weight * fn` by row, carry no gradient.
        """


class Denoise(Protocol):
    """A network with its parameters: the only thing that diffusion code knows of one."""

    def __call__(self, inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
        """Predicts clean tokens. `key` is the dropout's; None turns dropout off."""
        ...


class DenseLogits(Prediction):
    """Logits held whole: the plain `Prediction` that any function to logits can stand behind."""

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
    """`weight * loss`, and exactly 0 (in gradient too) where the weight is 0.

    A row of weight 0 may hold an infinite loss, and 0 * inf is not a number.
    """
    used = weight != 0
    return jnp.where(used, weight * jnp.where(used, loss, 0.0), 0.0)
