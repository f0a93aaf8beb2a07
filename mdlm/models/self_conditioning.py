"""Self-conditioning: a network with its own earlier prediction as an input (arXiv:2208.04202).

    hidden = f(z_t, 0);   prediction = f(z_t, stop_gradient(hidden))

In training (calls with a key) the first pass is made with probability 1/2, one draw per call;
otherwise the input is zeros, as in a first pass. Outside training every call makes both passes, so
it costs two. A first pass has no dropout, no gradient, and no logits.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Key

from mdlm.keys import stream
from mdlm.types import Denoise, NetInput, Prediction


def self_conditioned(denoise: Denoise) -> Denoise:
    """Returns `denoise` conditioned on the hidden states of a first pass.

    Inputs that already have a `self_cond` are passed on unchanged.
    """

    def conditioned(inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
        if inputs.self_cond is not None:
            return denoise(inputs, key=key)

        def hidden() -> Array:
            return jax.lax.stop_gradient(denoise(inputs).hidden)

        if key is None:
            return denoise(replace(inputs, self_cond=hidden()))
        known = jax.eval_shape(hidden)
        shown = jax.lax.cond(
            jax.random.bernoulli(stream(key, "self-conditioning")),
            hidden,
            lambda: jnp.zeros(known.shape, known.dtype),
        )
        return denoise(replace(inputs, self_cond=shown), key=key)

    return conditioned
