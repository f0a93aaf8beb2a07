"""Runs as folders of other layouts: the same parameters back, and the same logits elsewhere."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_maker import GOLDENS
from safetensors.numpy import load_file

import mdlm
from mdlm.cli.main import main
from mdlm.errors import InputError
from mdlm.interop.exporting import export, layout_for
from mdlm.interop.importing import import_folder
from mdlm.models.network import denoiser
from mdlm.parameterizations import Score
from mdlm.run import Run
from mdlm.types import NetInput

EXPORTED = [name for name in GOLDENS if name != "sedd"]  # which can be imported only


def source_of(tmp_path, golden_folder, name):
    return GOLDENS[name].source(tmp_path / "source", golden_folder)


@pytest.mark.golden
@pytest.mark.parametrize("name", EXPORTED)
def test_an_import_of_an_export_has_the_same_parameters_bit_by_bit(tmp_path, golden_folder, name):
    source = source_of(tmp_path, golden_folder, name)
    import_folder(source, tmp_path / "run", overrides=list(GOLDENS[name].changes))
    run = mdlm.load(tmp_path / "run")
    layout, _ = export(run, tmp_path / "out", shard=4000)
    import_folder(tmp_path / "out", tmp_path / "again", overrides=[])
    again = mdlm.load(tmp_path / "again")
    assert again.experiment.network == run.experiment.network
    assert again.model.vocab == run.model.vocab
    jax.tree.map(np.testing.assert_array_equal, again.params, run.params)
    there = load_file(source / "model.safetensors")
    there = {layout.wrapper + layout.plain(tensor): value for tensor, value in there.items()}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    found = {}
    for file in set(index["weight_map"].values()):
        found |= load_file(tmp_path / "out" / file)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())
    for tensor in found.keys() | there.keys():
        if "inv_freq" not in tensor and "sampling_eps" not in tensor:
            np.testing.assert_array_equal(found[tensor], there[tensor], err_msg=tensor)
    config = json.loads((source / "config.json").read_text())
    # A layout with another's tensors has that one's architecture in its configuration.
    ours = {"architectures"} if "model_type" in GOLDENS[name].more else set()
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert layout.name == run.experiment.name
    for key in written.keys() & config.keys() - {"torch_dtype", "model_length", *ours}:
        if not key.endswith("_token_id") and "max_" not in key:
            assert written[key] == config[key], key


def both_logits(tmp_path, golden_folder, name, kind, tokens):
    """The run of an import, and the logits of the network here and of its export elsewhere."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    import_folder(source_of(tmp_path, golden_folder, name), tmp_path / "run", overrides=[])
    run = mdlm.load(tmp_path / "run")
    export(run, tmp_path / "out")
    loaded = getattr(transformers, kind).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        theirs = loaded(torch.tensor(tokens)).logits.numpy()
    denoise = denoiser(run.experiment.network, run.model.columns, run.params["network"])
    ours = jax.jit(lambda tokens: denoise(NetInput(tokens=tokens)).logits())(jnp.asarray(tokens))
    return run, ours, theirs


@pytest.mark.golden
@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_transformers_loads_an_export_and_gives_the_same_logits(tmp_path, golden_folder, name):
    tokens = np.random.default_rng(0).integers(0, 60, (2, 9))
    run, ours, theirs = both_logits(tmp_path, golden_folder, name, "AutoModelForCausalLM", tokens)
    np.testing.assert_allclose(ours[:, 1:], theirs[:, :-1], rtol=1e-5, atol=1e-4)
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        tokenizer.encode("hello", add_special_tokens=False)
        == run.tokenizer.encode(["hello"])[0].tolist()
    )
    assert len(tokenizer) == run.model.columns


@pytest.mark.golden
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_transformers_loads_an_encoder_and_gives_the_same_logits(tmp_path, golden_folder, name):
    tokens = np.random.default_rng(0).integers(0, 80, (2, 19))
    _, ours, theirs = both_logits(tmp_path, golden_folder, name, "AutoModelForMaskedLM", tokens)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.golden
def test_the_commands(tmp_path, golden_folder, capsys):
    source = str(source_of(tmp_path, golden_folder, "llada"))
    run, out = str(tmp_path / "run"), tmp_path / "out"
    assert main(["import", source, "--out", run, "--data.packing.length", "32"]) == 0
    assert "layout llada" in capsys.readouterr().out
    text = tmp_path / "text.txt"
    text.write_text("some words to read again and again " * 40)
    assert main(["eval", run, "--data", str(text), "--passes", "1"]) == 0
    capsys.readouterr()
    assert main(["sample", run, "--prompt", "hello", "--length", "16"]) == 0
    assert capsys.readouterr().out.startswith("hello")
    assert main(["export", run, "--to", str(out), "--dtype", "bfloat16"]) == 0
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "license" in card and "Masked" in card and "| perplexity" in card
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert main(["export", run, "--to", str(out)]) == 2  # not overwritten
    assert main(["eval", run]) == 2
    assert "has no text of its own" in capsys.readouterr().err


@pytest.mark.golden
def test_a_layout_that_has_no_such_network_says_why(tmp_path, golden_folder):
    import_folder(source_of(tmp_path, golden_folder, "sdar"), tmp_path / "run", overrides=[])
    run = mdlm.load(tmp_path / "run")
    with pytest.raises(InputError, match="LLaDA is a Decoder with attends='all'"):
        export(run, tmp_path / "out", layout="llada")
    with pytest.raises(InputError, match="--layout nowhere: allowed are mdlm"):
        export(run, tmp_path / "out", layout="nowhere")
    assert not (tmp_path / "out").exists()


def test_scores_are_not_exported_as_logits():
    run = object.__new__(Run)
    vars(run)["experiment"] = SimpleNamespace(parameterization=Score())
    with pytest.raises(InputError, match=r"parameterization=Score\(\): no layout is written"):
        layout_for(run)
