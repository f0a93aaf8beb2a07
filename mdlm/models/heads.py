"""Heads: small layers that make something else than logits of tokens from what a network computed.

    Pooled     y = dropout(tanh(h_0 W + b)) W' + b'     [b k], from the first token of each row
    PerToken   y_i = dropout(h_i) W' + b'               [b l k]

h is the output of the network's last block (`Prediction.features`). With BERT, `Pooled` is what
`BertForSequenceClassification` of Hugging Face computes, pooler and classifier. Kernels begin with
normal numbers of deviation 0.02, biases at 0, as in BERT (arXiv:1810.04805). All is float32.

An experiment names one head (`Experiment.head`). Its parameters lie beside those of the network, in
`params["head"]`, and objectives and samplers are handed both together (`Diffusion.head`).
"""

import abc
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from mdlm.keys import stream
from mdlm.models.layers import dropout
from mdlm.types import ArrayTree, Prediction, ReadHead

DEVIATION = 0.02
"""Standard deviation of the kernels at first."""


@dataclass(frozen=True, kw_only=True)
class Head(abc.ABC):
    """A layer on the output of a network's last block, with parameters of its own.

    Args:
        outputs: numbers that it gives, for a row or for each token.
        dropout: probability of dropping an input of its last layer, in calls with a key.
    """

    outputs: int
    dropout: float = 0.1

    def __post_init__(self):
        if self.outputs < 1:
            raise ValueError(f"outputs={self.outputs}: must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must be in [0, 1)")

    @abc.abstractmethod
    def init(self, key: Key[Array, ""], width: int) -> ArrayTree:
        """Returns fresh parameters for a network of this width."""

    @abc.abstractmethod
    def __call__(
        self,
        params: ArrayTree,
        features: Float[Array, "b l d"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "..."]:
        """Returns the outputs, in float32. `key` is for dropout; None turns it off."""

    def bound(self, params: ArrayTree) -> ReadHead:
        """Returns the head with its parameters, as a function of a prediction.

        That function raises ValueError if the prediction has no `features`: if the call computed
        some positions only, or is of no network.
        """

        def read(prediction: Prediction, *, key: Key[Array, ""] | None = None) -> Array:
            features = prediction.features
            if features is None:
                raise ValueError("features=None: a head reads the output of whole rows")
            with jax.named_scope("head"):
                return self(params, features.astype(jnp.float32), key=key)

        return read


@dataclass(frozen=True, kw_only=True)
class Pooled(Head):
    """Reads the first token of each row, for which BERT has [CLS]; outputs are `[b k]`."""

    def init(self, key: Key[Array, ""], width: int) -> ArrayTree:
        return {
            "pooler": _linear(stream(key, "pooler"), width, width),
            "out": _linear(stream(key, "out"), width, self.outputs),
        }

    def __call__(
        self,
        params: ArrayTree,
        features: Float[Array, "b l d"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b k"]:
        pooled = jnp.tanh(_applied(params["pooler"], features[:, 0]))
        return _applied(params["out"], dropout(key, pooled, self.dropout))


@dataclass(frozen=True, kw_only=True)
class PerToken(Head):
    """Reads every token by itself; outputs are `[b l k]`."""

    def init(self, key: Key[Array, ""], width: int) -> ArrayTree:
        return {"out": _linear(stream(key, "out"), width, self.outputs)}

    def __call__(
        self,
        params: ArrayTree,
        features: Float[Array, "b l d"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b l k"]:
        return _applied(params["out"], dropout(key, features, self.dropout))


def _linear(key: Key[Array, ""], fan_in: int, fan_out: int) -> ArrayTree:
    kernel = DEVIATION * jax.random.normal(key, (fan_in, fan_out), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(fan_out)}


def _applied(layer: Any, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
    y = x @ layer["kernel"]
    return y + jnp.broadcast_to(layer["bias"], y.shape)
