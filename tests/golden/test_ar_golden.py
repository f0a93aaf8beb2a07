"""The autoregressive log-probabilities and losses of the MDLM repository, with its weights.

Its rollout from stored noise is in `test_trajectories_golden`, its raw logits in
`test_network_golden`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.interop.mdlm_torch import params_from
from mdlm.models.causal import CausalTransformer
from mdlm.models.network import denoiser
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.types import Batch, NetInput, Vocab

pytestmark = pytest.mark.golden
COLUMNS, MASK = 67, 66
VOCAB = Vocab(size=COLUMNS, mask_id=MASK)


@pytest.fixture
def denoise(golden):
    network = CausalTransformer(width=64, depth=2, heads=4, dtype="float32")
    params = params_from(golden("mdlm_ar.safetensors"), network, COLUMNS)
    return denoiser(network, COLUMNS, params)


def test_log_probabilities(golden, denoise):
    """Where the reference sets the mask's logit to -1000, it has no mass at all here."""
    data = golden("mdlm_ar.npz")
    logits = denoise(NetInput(tokens=jnp.asarray(data["tokens"]))).logits()[:, 1:]
    asked = jnp.full(logits.shape[:2], MASK)
    log_p = Subs().with_vocab(VOCAB).log_p0(logits, asked, None)
    np.testing.assert_allclose(
        log_p[..., :MASK], data["logprobs"][..., :MASK], rtol=1e-6, atol=3e-5
    )
    assert (np.asarray(log_p[..., MASK]) == -np.inf).all()
    assert (data["logprobs"][..., MASK] < -1000).all()


@pytest.mark.parametrize("is_hidden", [False, True])
def test_losses(golden, denoise, key, is_hidden):
    """Padding follows the text, so a causal network need not be told of it."""
    data = golden("mdlm_ar.npz")
    tokens, is_text = jnp.asarray(data["tokens"]), jnp.asarray(data["attention_mask"] > 0)
    batch = Batch(
        tokens=tokens,
        loss_mask=is_text,
        is_valid=is_text if is_hidden else None,
        row=jnp.arange(len(tokens)),
        rows=jnp.asarray(len(tokens)),
    )
    terms = jax.jit(
        lambda key: Autoregressive()(
            key,
            batch,
            diffusion=Diffusion(
                process=Masked().with_vocab(VOCAB),
                parameterization=Subs().with_vocab(VOCAB),
                denoise=lambda inputs, *, key=None: denoise(inputs),
            ),
        )
    )(key)
    assert data["token_mask"].sum() == 86  # seven positions are padded
    np.testing.assert_array_equal(terms.count[:, 1:], data["token_mask"])
    assert not terms.count[:, 0].any()
    np.testing.assert_allclose(terms.values[:, 1:], data["nlls"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(terms.bound, terms.values)
    np.testing.assert_allclose(terms.total / terms.count.sum(), data["loss"], rtol=1e-5)
