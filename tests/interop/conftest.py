"""Networks of the public projects, imported as their users would."""

import dataclasses
import json
from typing import Any

import checkpoint_maker
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdlm
from mdlm.diffusion import Diffusion
from mdlm.interop.importing import import_folder
from mdlm.keys import by_row
from mdlm.models.network import denoiser
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.loop import Loop

MASK = 63
TOKENS = dict(t63="<mask>", t62="<eot>", t61="<eos>", t60="<bos>")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An imported network, in float32."""

    run: mdlm.Run
    head: Any = None  # replaces the kernel of the head

    @property
    def params(self):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), self.run.params["network"])
        if self.head is None:
            return params
        return {**params, "head": {"kernel": jnp.asarray(self.head, jnp.float32)}}

    def decoded(self, sampler, tokens, is_fixed, calls, network=None, verifier=None, **known):
        """The canvases before the first step and after each, `[calls + 1, b, l]`, and the network
        calls made. `network` replaces options of the network."""
        run, vocab = self.run, self.run.model.vocab
        options = dict(dtype="float32") | (network or {})
        chosen = dataclasses.replace(run.experiment.network, **options)
        known = {name: jnp.asarray(value) for name, value in known.items()}

        @jax.jit
        def decode(params, keys, tokens, is_fixed, known):
            diffusion = Diffusion(
                process=Masked().with_vocab(vocab),
                parameterization=Subs().with_vocab(vocab),
                denoise=denoiser(chosen, run.model.columns, params),
                shift=chosen.shift,
                verifier=verifier,
            )
            loop = Loop(sampler=sampler, diffusion=diffusion, **known)

            def advance(state, _):
                state = loop.advance(state)
                return state, (state.tokens, state.done)

            first = loop.begin(keys, tokens, is_fixed)
            last, (canvases, done) = jax.lax.scan(advance, first, length=calls)
            return jnp.concatenate([first.tokens[None], canvases]), done, last.nfe

        tokens = jnp.asarray(tokens, jnp.int32)
        keys = by_row(jax.random.key(0), jnp.arange(tokens.shape[0]))
        canvases, done, nfe = decode(self.params, keys, tokens, jnp.asarray(is_fixed), known)
        assert done[-1].all() and not (np.asarray(canvases[-1]) == vocab.mask_id).any()
        return np.asarray(canvases), int(nfe)


def checkpoint(folder, golden_folder, weights, config, special=TOKENS):
    """The network of a folder with these weights."""
    source = checkpoint_maker.folder(
        folder / "source",
        config,
        golden_folder / f"{weights}.safetensors",
        checkpoint_maker.tokenizer(config["vocab_size"], **special),
    )
    import_folder(source, folder / "run", overrides=[])
    return Checkpoint(mdlm.load(folder / "run"))


def settings(golden_folder, name):
    return json.loads((golden_folder / f"interop_{name}.json").read_text())


@pytest.fixture(scope="module")
def llada(tmp_path_factory, golden_folder):
    config = settings(golden_folder, "llada")["configs"]["mha"]
    return checkpoint(tmp_path_factory.mktemp("mha"), golden_folder, "interop_llada_mha", config)


@pytest.fixture(scope="module")
def llada_gqa(tmp_path_factory, golden_folder):
    config = settings(golden_folder, "llada")["configs"]["gqa"]
    return checkpoint(tmp_path_factory.mktemp("gqa"), golden_folder, "interop_llada_gqa", config)


@pytest.fixture(scope="module")
def dream(tmp_path_factory, golden_folder):
    config = settings(golden_folder, "dream")["configs"]["untied"]
    return checkpoint(
        tmp_path_factory.mktemp("dream"), golden_folder, "interop_dream_untied", config
    )


@pytest.fixture(scope="module")
def sdar(tmp_path_factory, golden_folder):
    config = settings(golden_folder, "sdar")["config"]
    return checkpoint(tmp_path_factory.mktemp("sdar"), golden_folder, "interop_sdar", config)


@pytest.fixture(scope="module")
def a2d(tmp_path_factory, golden_folder):
    config = settings(golden_folder, "ar")["configs"]["qwen3"]
    config |= {"model_type": "a2d-qwen3", "mask_token_id": MASK}
    return checkpoint(tmp_path_factory.mktemp("a2d"), golden_folder, "interop_ar_qwen3", config)


@pytest.fixture(scope="module")
def bd3lm(tmp_path_factory, golden_folder):
    config = settings(golden_folder, "bd3lm_hf")["config"]
    special = dict(t47="<mask>", t1="<bos>")
    folder = tmp_path_factory.mktemp("bd3lm")
    return checkpoint(folder, golden_folder, "interop_bd3lm_hf", config, special)


@pytest.fixture(scope="module")
def llama(tmp_path_factory, golden_folder):
    config = settings(golden_folder, "ar")["configs"]["llama"]
    return checkpoint(tmp_path_factory.mktemp("llama"), golden_folder, "interop_ar_llama", config)
