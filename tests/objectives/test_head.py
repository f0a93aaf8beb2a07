"""Every objective through the chunked head: what it gives with dense logits, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.keys import stream
from mdlm.models.readout import Readout
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.objectives.block import BlockNelbo
from mdlm.objectives.d3pm import D3PM
from mdlm.objectives.discrete_time import DiscreteNelbo
from mdlm.objectives.generalized import GeneralizedDiscreteNelbo, GeneralizedNelbo
from mdlm.objectives.hybrid import HybridNelbo
from mdlm.objectives.llada import LLaDA
from mdlm.objectives.masked_count import OrderAgnostic
from mdlm.objectives.masked_lm import MaskedLM
from mdlm.objectives.nelbo import Nelbo
from mdlm.objectives.score_entropy import ScoreEntropy
from mdlm.objectives.uniform import UniformNelbo
from mdlm.parameterizations.mean import Mean
from mdlm.parameterizations.score import Score
from mdlm.parameterizations.subs import Subs
from mdlm.processes.hybrid import Hybrid
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.schedules.closed_form import LogLinear
from mdlm.schedules.per_token import LearnedPolynomial, Spindle
from mdlm.types import Batch, DenseLogits, Vocab

B, L, D, V = 16, 12, 8, 11
VOCAB = Vocab(size=V, mask_id=V - 1)

# name -> objective, process, parameterization
CASES = {
    "nelbo": (Nelbo(), Masked(), Subs()),
    "nelbo, importance": (Nelbo(importance=True), Masked(), Subs()),
    "nelbo, as published": (Nelbo(reconstruction=False), Masked(), Subs()),
    "discrete": (DiscreteNelbo(steps=10), Masked(), Subs()),
    "order-agnostic": (OrderAgnostic(), Masked(), Subs()),
    "llada": (LLaDA(), Masked(), Subs()),
    "masked LM": (MaskedLM(random=0.1, keep=0.1), Masked(), Subs()),
    "autoregressive": (Autoregressive(), Masked(), Subs()),
    "d3pm": (D3PM(steps=10), Masked(schedule=LogLinear(eps=0.0)), Mean(mask_has_mass=True)),
    "sedd": (ScoreEntropy(), Masked(), Score()),
    "sedd, uniform": (ScoreEntropy(), Uniform(), Score(graph="uniform")),
    "uniform": (UniformNelbo(), Uniform(), Mean()),
    "gidd": (HybridNelbo(), Hybrid(), Mean()),
    "genmd4": (GeneralizedNelbo(), Masked(schedule=LearnedPolynomial()), Subs()),
    "genmd4, discrete": (
        GeneralizedDiscreteNelbo(steps=10),
        Masked(schedule=LearnedPolynomial()),
        Subs(),
    ),
    "diffusionbert": (GeneralizedNelbo(), Masked(schedule=Spindle()), Subs()),
    "blocks": (BlockNelbo(block_size=4), Masked(), Subs()),
    "blocks, clipped": (BlockNelbo(block_size=4, low=0.3, high=0.8), Masked(), Subs()),
}


@pytest.fixture
def batch(key):
    tokens = jax.random.randint(key, (B, L), 0, V - 1)
    loss_mask = jnp.ones((B, L), bool).at[1, 8:].set(False).at[2, :3].set(False)
    is_valid = jnp.ones((B, L), bool).at[1, 8:].set(False)
    return Batch(
        tokens=tokens,
        loss_mask=loss_mask,
        is_valid=is_valid,
        row=jnp.arange(B),
        rows=jnp.asarray(B),
    )


@pytest.mark.parametrize("name", CASES)
def test_equals_dense_logits(key, batch, name):
    objective, process, parameterization = (part.with_vocab(VOCAB) for part in CASES[name])
    if process.needs_counts:
        process = process.with_counts(np.arange(V) ** 2)
    learned = process.init(stream(key, "process"))
    params = {
        "table": jax.random.normal(stream(key, "table"), (V, D)),
        "kernel": jax.random.normal(stream(key, "kernel"), (D, V)),
        "bias": jax.random.normal(stream(key, "bias"), (V,)),
        "process": learned,
    }

    def run(head, params):
        def denoise(inputs, *, key=None):
            hidden = params["table"][inputs.tokens]
            mixed = jnp.tanh(hidden + hidden.mean(1, keepdims=True))
            return head(mixed, params["kernel"], params["bias"])

        terms = objective(
            stream(key, "loss"),
            batch,
            diffusion=Diffusion(
                process=process.bind(params["process"]),
                parameterization=parameterization,
                denoise=denoise,
            ),
        )
        return terms.total, (terms.values, terms.bound)

    def chunked(hidden, kernel, bias):
        return Readout(hidden, kernel, bias, chunk=5 * V)

    def dense(hidden, kernel, bias):
        return DenseLogits(hidden @ kernel + bias[None, None])

    both = [
        jax.jit(jax.value_and_grad(lambda p, head=head: run(head, p), has_aux=True))(params)
        for head in (chunked, dense)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *both)
    (total, (values, bound)), gradients = both[0]
    assert jnp.isfinite(total) and total > 0
    assert (values[~batch.loss_mask] == 0).all() and (bound[~batch.loss_mask] == 0).all()
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
