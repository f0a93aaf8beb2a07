"""Published checkpoints, imported from folders, against the outputs of the public code."""

import dataclasses
import json

import checkpoint_maker
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdlm
from mdlm.interop.importing import import_folder
from mdlm.models.network import denoiser
from mdlm.types import NetInput

pytestmark = pytest.mark.golden
CLOSE = dict(rtol=1e-5, atol=1e-4)
MASK = dict(t63="<mask>", t62="<eot>", t61="<eos>", t60="<bos>")


def settings(golden_folder, name):
    return json.loads((golden_folder / f"interop_{name}.json").read_text())


def imported(tmp_path, golden_folder, weights, config, special=MASK, **options):
    """The run of a folder with these weights, opened from disk."""
    size = config["vocab_size"]
    tokens = checkpoint_maker.tokenizer(size, **special)
    source = checkpoint_maker.folder(
        tmp_path / "source", config, golden_folder / f"{weights}.safetensors", tokens
    )
    import_folder(source, tmp_path / "run", overrides=options.pop("overrides", []), **options)
    return mdlm.load(tmp_path / "run")


def logits(run, tokens, network=None, **inputs):
    """Logits at all positions; `network` replaces options of the run's."""
    chosen = dataclasses.replace(run.experiment.network, dtype="float32", **(network or {}))
    inputs = {k: v if v is None else jnp.asarray(v) for k, v in inputs.items()}
    asked = NetInput(tokens=jnp.asarray(tokens), **inputs)
    params = jax.tree.map(lambda a: a.astype(jnp.float32), run.params["network"])
    denoise = jax.jit(lambda p, q: denoiser(chosen, run.model.columns, p)(q).logits())
    return np.asarray(denoise(params, asked))


def agree(found, due, **tolerance):
    """Compares where the reference is finite (NaN: not computed there)."""
    is_known = np.isfinite(due)
    assert is_known.any()
    np.testing.assert_allclose(found[is_known], due[is_known], **(tolerance or CLOSE))


@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_llada(tmp_path, golden_folder, golden, kind):
    config = settings(golden_folder, "llada")["configs"][kind]
    values = golden("interop_llada.npz")
    run = imported(tmp_path, golden_folder, f"interop_llada_{kind}", config)
    vocab = run.model.vocab
    assert (vocab.mask_id, vocab.eos_id, vocab.size) == (63, 61, 64)
    agree(logits(run, values["x"]), values[f"{kind}__logits"])
    is_valid = values["attention_mask"].astype(bool)
    found = logits(run, values["x"], is_valid=is_valid)
    agree(found[is_valid], values[f"{kind}__logits_masked"][is_valid])


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_dream(tmp_path, golden_folder, golden, kind):
    config = settings(golden_folder, "dream")["configs"][kind]
    values = golden("interop_dream.npz")
    run = imported(tmp_path, golden_folder, f"interop_dream_{kind}", config)
    raw = values[f"{kind}__logits"]
    agree(logits(run, values["x"], dict(shift=False)), raw)
    # Position i is about token i: its logits are those of the position before.
    agree(logits(run, values["x"]), np.concatenate([raw[:, :1], raw[:, :-1]], axis=1))
    is_valid = values["attention_mask"].astype(bool)
    place = dict(is_valid=is_valid, positions=values["position_ids_masked"])
    found = logits(run, values["x"], dict(shift=False), **place)
    agree(found, np.where(is_valid[..., None], values[f"{kind}__logits_masked"], np.nan))


def test_sdar(tmp_path, golden_folder, golden):
    config = settings(golden_folder, "sdar")["config"]
    values = golden("interop_sdar.npz")
    run = imported(tmp_path, golden_folder, "interop_sdar", config)
    assert run.experiment.network.block_size == 4
    full = dict(attends="all", block_size=0)
    agree(logits(run, values["x"], full), values["logits_full"])
    agree(logits(run, values["x"], clean=values["x"]), values["logits_block_causal"])
    found = logits(run, values["train__xt"], clean=values["train__x0"])
    agree(found, values["train__logits"])


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("is_diffusion", [False, True], ids=["causal", "a2d"])
def test_causal_networks_and_those_made_of_them(
    tmp_path, golden_folder, golden, kind, is_diffusion
):
    config = settings(golden_folder, "ar")["configs"][kind]
    values = golden("interop_ar.npz")
    if is_diffusion:
        config |= {"model_type": f"a2d-{kind}", "mask_token_id": 63}
    run = imported(tmp_path, golden_folder, f"interop_ar_{kind}", config)
    x, is_valid = values["x"], values["attention_mask"].astype(bool)
    if is_diffusion:
        agree(logits(run, x), values[f"{kind}__logits_full"])
        found = logits(run, x, is_valid=is_valid)
        masked = values[f"{kind}__logits_full_masked"]
        agree(found, np.where(is_valid[..., None], masked, np.nan))
        blocks = dict(attends="blocks", block_size=4)
        longer = np.pad(x, ((0, 0), (0, -x.shape[1] % 4)))
        there = np.broadcast_to(np.arange(longer.shape[1]) < x.shape[1], longer.shape)
        found = logits(run, longer, blocks, clean=longer, is_valid=there)
        agree(found[:, : x.shape[1]], values[f"{kind}__logits_block4"])
    else:
        agree(logits(run, x)[:, 1:], values[f"{kind}__logits_causal"][:, :-1])
        place = dict(is_valid=is_valid, positions=values["position_ids"])
        found = logits(run, x, **place)[:, 1:]
        both = is_valid[:, 1:] & is_valid[:, :-1]
        due = values[f"{kind}__logits_causal_masked"][:, :-1]
        agree(found, np.where(both[..., None], due, np.nan))


@pytest.mark.parametrize("kind", ["mdlm", "duo"])
def test_mdlm_and_duo(tmp_path, golden_folder, golden, kind):
    config = settings(golden_folder, "duo")[f"{kind}_config"]
    values = golden("mdlm_dit.npz")
    run = imported(tmp_path, golden_folder, "mdlm_dit", config, special=dict(t66="<mask>"))
    assert run.model.vocab.mask_id == 66
    # Duo's network always reads the noise level, MDLM's only if its configuration says so.
    time = "notime" if kind == "mdlm" else "time"
    assert run.experiment.time_condition == {"mdlm": "none", "duo": "sigma"}[kind]
    sigma = jnp.asarray(values["sigma"], jnp.float32)[:, None]
    denoise = denoiser(
        dataclasses.replace(run.experiment.network, dtype="float32"),
        run.model.columns,
        run.params["network"],
        condition=None if kind == "mdlm" else lambda t: t,
    )
    asked = NetInput(tokens=jnp.asarray(values["x"]), t=None if kind == "mdlm" else sigma)
    found = jax.jit(lambda asked: denoise(asked).logits())(asked)
    agree(np.asarray(found), values[f"logits_{time}"])


def test_bd3lm(tmp_path, golden_folder, golden):
    config = settings(golden_folder, "bd3lm_hf")["config"]
    values = golden("interop_bd3lm_hf.npz")
    special = dict(t47="<mask>", t1="<bos>")
    run = imported(tmp_path, golden_folder, "interop_bd3lm_hf", config, special=special)
    assert run.experiment.network.block_size == run.experiment.sampler.block_size == 4
    found = logits(run, values["train__xt"], clean=values["train__x0"])
    agree(found, values["train__logits"])


ENCODER = dict(t0="[PAD]", t1="[UNK]", t2="[CLS]", t3="[SEP]", t4="[MASK]")


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_encoders(tmp_path, golden_folder, golden, kind):
    config = settings(golden_folder, "bert")["configs"][f"{kind}_mlm"]
    values = golden("interop_bert.npz")
    run = imported(tmp_path, golden_folder, f"interop_{kind}_mlm", config, special=ENCODER)
    vocab = run.model.vocab
    assert (vocab.mask_id, vocab.pad_id, vocab.bos_id, vocab.eos_id) == (4, 0, 2, 3)
    is_valid = values["attention_mask"].astype(bool)
    types = {} if kind == "modernbert" else dict(token_types=values["token_type_ids"])
    found = logits(run, values["x"], is_valid=is_valid, **types)
    agree(found[is_valid], values[f"{kind}__logits"][is_valid])
    plain = f"{kind}__logits_nomask" + ("_type0" if kind == "bert" else "")
    agree(logits(run, values["x"]), values[plain])


def test_names_of_older_bert_files(tmp_path, golden_folder):
    from safetensors.numpy import load_file, save_file

    found = load_file(golden_folder / "interop_bert_mlm.safetensors")
    older = {}
    for name, value in found.items():
        norm = name.removesuffix(".weight") + ".gamma", name.removesuffix(".bias") + ".beta"
        is_norm = "LayerNorm" in name
        older[(norm[0] if name.endswith("weight") else norm[1]) if is_norm else name] = value
    older["bert.embeddings.position_ids"] = np.arange(24, dtype=np.int64)
    older["cls.predictions.decoder.bias"] = found["cls.predictions.bias"].copy()
    assert "bert.embeddings.LayerNorm.gamma" in older
    save_file(older, tmp_path / "older.safetensors")
    config = settings(golden_folder, "bert")["configs"]["bert_mlm"]
    both = [imported(tmp_path / "new", golden_folder, "interop_bert_mlm", config, ENCODER)]
    both.append(imported(tmp_path / "old", tmp_path, "older", config, ENCODER))
    jax.tree.map(np.testing.assert_array_equal, both[0].params, both[1].params)


def test_llada2(tmp_path, golden_folder, golden):
    config = settings(golden_folder, "llada2moe")["config"]
    values = golden("interop_llada2moe.npz")
    blocks = [(f"{part}.block_size", "4") for part in ("network", "objective", "sampler")]
    run = imported(tmp_path, golden_folder, "interop_llada2moe", config, overrides=blocks)
    assert run.experiment.network.experts.dense == 1
    agree(logits(run, values["x"], clean=values["x"]), values["logits_block_causal"])
    agree(logits(run, values["x"], dict(attends="all", block_size=0)), values["logits_full"])
