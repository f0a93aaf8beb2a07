"""Folders that are damaged, hostile, or of nobody known: one line, and nothing half-written."""

import json
import shutil

import checkpoint_maker
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mdlm.cli.main import main
from mdlm.errors import InputError
from mdlm.interop.checkpoint import fetched
from mdlm.interop.importing import import_folder
from mdlm.interop.layouts import ALL
from mdlm.interop.table import array_shapes, slots
from mdlm.models import Decoder

NETWORK = Decoder(width=16, depth=2, heads=2, hidden=24)
CONFIG = {
    "model_type": "a2d-llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 20,
    "rms_norm_eps": 1e-6,
    "mask_token_id": 19,
}
LAYOUT = next(layout for layout in ALL if layout.name == "a2d-llama")


def tensors():
    random = np.random.default_rng(0)
    places = slots(LAYOUT.table(NETWORK), NETWORK, 20)
    return {p.tensor: random.normal(size=p.shape).astype(np.float32) for p in places}


@pytest.fixture
def source(tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(tensors(), weights)
    tokens = checkpoint_maker.tokenizer(20, t19="<mask>", t18="<eos>")
    return checkpoint_maker.folder(tmp_path / "source", CONFIG, weights, tokens)


def refused(source, capsys, *options):
    """What one line says when the folder is imported; nothing is left of the run."""
    out = source.parent / "run"
    assert main(["import", str(source), "--out", str(out), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mdlm: ") and said.count("\n") == 1, said
    assert not out.exists() or not any(out.iterdir())
    return said


def change(source, **values):
    config = json.loads((source / "config.json").read_text())
    config.update(values)
    (source / "config.json").write_text(json.dumps(config))


def test_a_sound_folder_is_imported(source):
    experiment, count = import_folder(source, source.parent / "run", overrides=[])
    assert experiment.network == Decoder(
        width=16, depth=2, heads=2, kv_heads=2, hidden=24, columns=20, norm_epsilon=1e-6
    )
    assert count == sum(int(np.prod(s)) for s in array_shapes(NETWORK, 20).values())


@pytest.mark.parametrize(
    "values, says",
    [
        (dict(model_type="mamba"), "model_type='mamba' is not known here; known are .*llada"),
        (dict(model_type="x", auto_map={"AutoModel": "m.X"}), "code of its own, which is never"),
        (dict(model_type=["a2d-llama"]), "model_type=.* is not a text"),
        (dict(hidden_size=None), "hidden_size is missing"),
        (dict(hidden_size="16"), "hidden_size='16' is not a whole number"),
        (dict(hidden_size=True), "hidden_size=True is not a whole number"),
        (dict(hidden_size=15), "config.json: width=15: must be a multiple"),
        (dict(hidden_act="gelu"), "hidden_act='gelu' is not supported, only 'silu'"),
        (
            dict(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
            "rope_scaling: rope_type='yarn' is not supported, only default, linear and llama3",
        ),
        (dict(rope_scaling={"type": "linear"}), "rope_scaling: factor is missing"),
        (dict(rope_scaling={"type": "linear", "factor": 0.5}), "factor=0.5: must be at least 1"),
        (dict(rope_parameters=[1]), r"rope_parameters=\[1\] is not an object"),
        (dict(mask_token_id=-7), "mask_token_id=-7 is not a token id"),
        (dict(mask_token_id=500), "the mask token is 500, and tokenizer .*of 20 tokens"),
        (dict(vocab_size=19), "too few for the 20 tokens|embed_tokens.weight is \\(20, 16\\)"),
        (dict(num_hidden_layers=3), "model.layers.2.input_layernorm.weight is missing"),
        (dict(num_hidden_layers=1), "model.layers.1.* is left over"),
        (
            dict(intermediate_size=32),
            "down_proj.weight is \\(16, 24\\), the network needs \\(16, 32",
        ),
        (dict(tie_word_embeddings=True), "lm_head.weight \\(20, 16\\) is left over"),
    ],
)
def test_configurations(source, capsys, values, says):
    change(source, **values)
    assert pytest.raises(
        InputError, import_folder, source, source.parent / "r", overrides=[]
    ).match(says)
    refused(source, capsys)


def test_files(source, capsys, tmp_path):
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "not a whole safetensors file" in refused(source, capsys)
    weights.unlink()
    assert "has no .safetensors file" in refused(source, capsys)
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    assert "pytorch_model.bin, a PyTorch pickle" in refused(source, capsys)
    (source / "config.json").write_text("[" * 100_000)
    assert "not a readable JSON file" in refused(source, capsys)
    (source / "config.json").write_text("[1]")
    assert "not a readable JSON file (Expected `object`" in refused(source, capsys)
    (source / "config.json").unlink()
    assert "has no config.json" in refused(source, capsys)
    assert "no such file or folder" in refused(tmp_path / "nowhere", capsys)
    with pytest.raises(InputError, match="no such file or folder, and no name on the hub"):
        fetched("a/b/c")


def test_shards(source, capsys):
    found = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(found)
    halves = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, own in halves.items():
        save_file({name: found[name] for name in own}, source / file)
    assert "2 .safetensors files and no" in refused(source, capsys)
    index = source / "model.safetensors.index.json"
    where = {name: file for file, own in halves.items() for name in own}
    index.write_text(json.dumps({"weight_map": where}))
    import_folder(source, source.parent / "sound", overrides=[])
    shutil.move(source / "b.safetensors", source.parent / "b.safetensors")
    assert "the shard b.safetensors is missing" in refused(source, capsys)
    for evil in ("../b.safetensors", "/etc/passwd", 7):
        index.write_text(json.dumps({"weight_map": {**where, names[-1]: evil}}))
        assert "is not the name of a .safetensors file" in refused(source, capsys)
    shutil.move(source.parent / "b.safetensors", source / "b.safetensors")
    index.write_text(json.dumps({"weight_map": {**where, "more": "a.safetensors"}}))
    assert "lacks the tensor more" in refused(source, capsys)


def test_tokenizers(source, capsys, tmp_path):
    (source / "tokenizer.json").unlink()
    assert "name its tokenizer with --tokenizer NAME" in refused(source, capsys)
    other = tmp_path / "other.json"
    checkpoint_maker.tokenizer(20, t18="<eos>").save(str(other))
    change(source, mask_token_id=None)
    assert "names no mask token" in refused(source, capsys, "--tokenizer", str(other))
    checkpoint_maker.tokenizer(25, t24="<mask>").save(str(other))
    assert "too few for the 25 tokens" in refused(source, capsys, "--tokenizer", str(other))
    weights = str(source / "model.safetensors")
    out = ["--out", str(tmp_path / "out")]
    assert main(["import", weights, "quickstart", *out, "--tokenizer", "gpt2"]) == 2
    assert "--tokenizer: the experiment says it" in capsys.readouterr().err
    assert main(["import", weights, *out]) == 2
    assert "name the experiment that does" in capsys.readouterr().err
    assert main(["import", str(source), "quickstart", *out]) == 2
    assert "describes its network itself" in capsys.readouterr().err


def test_the_dtype_is_kept_or_the_one_that_is_asked_for(source):
    found = load_file(source / "model.safetensors")
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in found.items()}
    save_file(half, source / "model.safetensors")
    for asked, due in ((None, "bfloat16"), ("float32", "float32")):
        out = source.parent / due
        import_folder(source, out, overrides=[], dtype=asked)
        stored = load_file(out / "weights.safetensors")
        assert {value.dtype.name for value in stored.values()} == {due}
        table = stored["network.embed.table"].astype(np.float32)
        np.testing.assert_array_equal(table, half["model.embed_tokens.weight"].astype(np.float32))
