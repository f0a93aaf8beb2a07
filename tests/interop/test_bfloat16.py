"""Checkpoints imported and computed in bfloat16, against the public code's logits in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_maker import GOLDENS

import mdlm
from mdlm.interop.importing import import_folder
from mdlm.models.network import denoiser
from mdlm.types import NetInput

pytestmark = pytest.mark.golden
CASES = {  # file, logits, names of further inputs, options of the network
    "llada": ("interop_llada", "mha__logits", {}, {}),
    "llada_gqa": ("interop_llada", "gqa__logits", {}, {}),
    "dream": ("interop_dream", "untied__logits", {}, dict(shift=False)),
    "dream_tied": ("interop_dream", "tied__logits", {}, dict(shift=False)),
    "sdar": ("interop_sdar", "logits_block_causal", dict(clean="x"), {}),
    "llama": ("interop_ar", "llama__logits_causal", {}, {}),
    "qwen3": ("interop_ar", "qwen3__logits_causal", {}, {}),
    "a2d-llama": ("interop_ar", "llama__logits_full", {}, {}),
    "a2d-qwen2": ("interop_dream", "untied__logits", {}, {}),
    "a2d-qwen3": ("interop_ar", "qwen3__logits_full", {}, {}),
    "llada2": ("interop_llada2moe", "logits_block_causal", dict(clean="x"), {}),
    "mdlm": ("mdlm_dit", "logits_notime", {}, {}),
    "duo": ("mdlm_dit", "logits_time", dict(t="sigma"), {}),
    "sedd": ("mdlm_dit", "logits_time", dict(t="sigma"), {}),
    "bert": ("interop_bert", "bert__logits_nomask_type0", {}, {}),
    "modernbert": ("interop_bert", "modernbert__logits_nomask", {}, {}),
    "bd3lm": (
        "interop_bd3lm_hf",
        "train__logits",
        dict(tokens="train__xt", clean="train__x0"),
        {},
    ),
}


def both_logits(tmp_path, golden_folder, golden, name, dtype):
    """The logits here, and those of the public code in float32."""
    file, logits, inputs, options = CASES[name]
    values = golden(f"{file}.npz")
    source = GOLDENS[name].source(tmp_path / "source", golden_folder)
    import_folder(source, tmp_path / "run", overrides=list(GOLDENS[name].changes), dtype=dtype)
    run = mdlm.load(tmp_path / "run")
    params = run.params["network"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    given = {key: jnp.asarray(values[own]) for key, own in (dict(tokens="x") | inputs).items()}
    if "t" in given:
        given["t"] = given["t"].astype(jnp.float32)[:, None]
    network = dataclasses.replace(run.experiment.network, dtype=dtype, **options)
    condition = (lambda t: t) if "t" in given else None
    denoise = denoiser(network, run.model.columns, params, condition=condition)
    found = jax.jit(lambda given: denoise(NetInput(**given)).logits())(given)
    found, due = np.asarray(found, np.float32), values[logits]
    return (found[:, 1:], due[:, :-1]) if network.attends == "causal" else (found, due)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_within_its_tolerance(tmp_path, golden_folder, golden, name):
    found, due = both_logits(tmp_path, golden_folder, golden, name, "bfloat16")
    is_known = np.isfinite(due)
    spread = due[is_known].std()
    error = np.where(is_known, found - np.where(is_known, due, 0), 0) / spread
    assert np.sqrt((error[is_known] ** 2).mean()) < 0.02
    assert np.abs(error).max() < 0.15
    assert np.abs(error).max() > 1e-4  # it was not computed in float32


@pytest.mark.parametrize("name", ["a2d-qwen2", "sedd"])
def test_layouts_with_the_network_of_another(tmp_path, golden_folder, golden, name):
    found, due = both_logits(tmp_path, golden_folder, golden, name, "float32")
    assert np.isfinite(due).all()
    np.testing.assert_allclose(found, due, rtol=1e-5, atol=1e-4)
