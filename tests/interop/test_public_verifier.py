"""Drafts verified by an autoregressive network, against the public code, step after step."""

import dataclasses

import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.models.network import denoiser
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers import FreeCache, Verified

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("mode", ["exact", "prompt"])
@pytest.mark.parametrize(
    ("rule", "accept"), [("deterministic", "argmax"), ("topk_relative", "relaxed")]
)
def test_guided_diffusion(dream, llama, golden, mode, rule, accept):
    values = golden("interop_flashdlm.npz")
    states = values[f"guided_{mode}_{rule}__states"][:, None]
    heads = (values[f"guided__{name}_lm_head"].T for name in ("dlm", "ar"))
    drafts, causal = (
        dataclasses.replace(one, head=head) for one, head in zip((dream, llama), heads, strict=True)
    )
    vocab = drafts.run.model.vocab
    network = dataclasses.replace(causal.run.experiment.network, dtype="float32")
    verifier = Diffusion(
        process=Masked().with_vocab(vocab),
        parameterization=Subs().with_vocab(vocab),
        denoise=denoiser(network, causal.run.model.columns, causal.params),
    )
    cache = FreeCache(until="prompt") if mode == "prompt" else None
    sampler = Verified(ahead=20, accept=accept, cache=cache)
    is_fixed = np.arange(20)[None] < 6
    calls = len(states) - 1
    found, nfe = drafts.decoded(sampler, states[0], is_fixed, calls, verifier=verifier)
    np.testing.assert_array_equal(found, states)
    assert nfe == 1 + 2 * calls  # the verifier reads the prompt first
