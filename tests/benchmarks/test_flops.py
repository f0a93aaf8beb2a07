"""`Network.flops` is what is executed: every dot_general of the traced network, counted."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from mdlm.models.block import BlockDiT
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.md4 import MD4Transformer
from mdlm.models.network import denoiser, shapes
from mdlm.types import NetInput

ROWS, LENGTH, COLUMNS = 3, 24, 70
DIT = DiT(width=32, depth=3, heads=2, cond_dim=16, remat="none", attention="xla")
CAUSAL = CausalTransformer(width=32, depth=3, heads=2, remat="none", attention="xla")
BLOCK = BlockDiT(
    width=32, depth=3, heads=2, cond_dim=16, block_size=4, remat="none", attention="xla"
)
MD4 = MD4Transformer(width=32, depth=3, heads=2, cond_dim=16, remat="none", attention="xla")


def counted(jaxpr) -> int:
    """Operations of the dot_generals of a jaxpr; the body of a scan as often as it runs."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
            continue
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        inside = sum(map(counted, jaxprs_in_params(eqn.params)))
        assert not (inside and eqn.primitive.name in ("while", "cond")), "runs who knows how often"
        total += times * inside
    return total


def logits(network, params, tokens):
    return denoiser(network, COLUMNS, params)(NetInput(tokens=tokens, clean=tokens)).logits()


@pytest.mark.parametrize(
    "network",
    [
        DIT,
        replace(DIT, mlp="swiglu", width=48, qk_norm=True, norm="rms", use_bias=False),
        replace(DIT, mlp="relu2", depth=1),
        replace(DIT, mlp="geglu", cond_dim=0),
        CAUSAL,
        BLOCK,
        MD4,
        replace(MD4, embed_width=8, cond_dim=0, mlp="glu"),
    ],
    ids=["dit", "swiglu", "relu2", "geglu", "causal", "block", "md4", "md4, widened, no time"],
)
def test_flops_are_those_of_the_traced_network(network):
    """Modulation and the embedding of the noise level, small as they are, are counted too."""
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    params = shapes(network, COLUMNS)
    forward = jax.make_jaxpr(lambda p, x: logits(network, p, x))(params, tokens)
    expected = network.flops(ROWS, LENGTH, ROWS * LENGTH, COLUMNS)
    assert counted(forward.jaxpr) == expected
    # Fewer scored positions: so many products of the width with the columns fewer.
    saved = expected - network.flops(ROWS, LENGTH, 10, COLUMNS)
    assert saved == 2 * (ROWS * LENGTH - 10) * network.width * COLUMNS


@pytest.mark.parametrize("network", [DIT, CAUSAL], ids=["dit", "causal"])
def test_a_training_step_takes_three_times_as_many(network):
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    params = shapes(network, COLUMNS)
    gradient = jax.grad(lambda p, x: logits(network, p, x).sum())
    found = counted(jax.make_jaxpr(gradient)(params, tokens).jaxpr)
    expected = 3 * network.flops(ROWS, LENGTH, ROWS * LENGTH, COLUMNS)
    assert found == expected


def test_recomputation_is_not_counted():
    remat = replace(DIT, remat="blocks")
    assert remat.flops(1, 8, 8, 64) == DIT.flops(1, 8, 8, 64)
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    params = shapes(DIT, COLUMNS)

    def executed(network):
        gradient = jax.grad(lambda p, x: logits(network, p, x).sum())
        return counted(jax.make_jaxpr(gradient)(params, tokens).jaxpr)

    assert executed(remat) > executed(DIT)
