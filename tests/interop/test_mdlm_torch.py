"""Weights of the public MDLM code, in and out."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mdlm.errors import InputError
from mdlm.interop.mdlm_torch import infer, params_from, read, to_reference
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.network import shapes

COLUMNS = 11
DIT = DiT(width=16, depth=2, heads=2, cond_dim=6)
CAUSAL = CausalTransformer(width=16, depth=2, heads=2)
both = pytest.mark.parametrize("network", [DIT, CAUSAL], ids=["dit", "causal"])


def some_params(network):
    random = np.random.default_rng(0)
    draw = lambda array: jnp.asarray(random.normal(size=array.shape), jnp.float32)
    return jax.tree.map(draw, shapes(network, COLUMNS))


@both
def test_there_and_back(network):
    params = some_params(network)
    back = params_from(to_reference(params, network), network, COLUMNS)
    jax.tree.map(np.testing.assert_array_equal, params, back)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["mdlm_dit", "mdlm_ar"])
def test_public_weights_here_and_back(golden_folder, name):
    tensors = read(golden_folder / f"{name}.safetensors")
    sizes = infer(tensors)
    expected = dict(width=64, depth=2, columns=67, head_width=16, heads=4)
    expected |= dict(kind="dit", cond_dim=32) if name == "mdlm_dit" else dict(kind="causal")
    assert sizes == expected
    common = dict(width=64, depth=2, heads=4)
    network = DiT(**common, cond_dim=32) if name == "mdlm_dit" else CausalTransformer(**common)
    back = to_reference(params_from(tensors, network, 67), network)
    assert set(back) == set(tensors)
    buffer = "rotary_emb.inv_freq"
    np.testing.assert_allclose(back.pop(buffer), tensors[buffer], rtol=1e-6)
    for tensor, value in back.items():
        np.testing.assert_array_equal(value, tensors[tensor], err_msg=tensor)


@both
@pytest.mark.parametrize("prefix", ["", "backbone.", "module.", "module.backbone._orig_mod."])
def test_prefixes_are_taken_off(tmp_path, network, prefix):
    tensors = to_reference(some_params(network), network)
    content = {prefix + name: value for name, value in tensors.items()}
    if "backbone" in prefix:
        content["noise.sigmas"] = np.zeros(2, np.float32)
    save_file(content, tmp_path / "weights.safetensors")
    found = read(tmp_path / "weights.safetensors")
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)


def test_precision_is_kept_unless_another_is_asked_for(tmp_path):
    path = tmp_path / "weights.safetensors"
    values = {"a": np.array([0.5, 1e5], np.float32), "b": np.array([1.5], ml_dtypes.bfloat16)}
    save_file(values, path)
    for asked in (None, "float32", "bfloat16"):
        for name, value in read(path, asked).items():
            assert value.dtype == (asked or values[name].dtype)
            np.testing.assert_array_equal(value, values[name].astype(value.dtype))
    with pytest.raises(
        InputError, match=r"^a has a value of 1e\+05, above float16.*: use bfloat16"
    ):
        read(path, "float16")


def test_pickles_keep_their_precision(tmp_path):
    torch = pytest.importorskip("torch")
    values = {"model.a": torch.tensor([0.5, 3.0]), "b": torch.tensor([[1.5]], dtype=torch.bfloat16)}
    torch.save({"state_dict": values, "step": 3}, tmp_path / "a.ckpt")
    found = read(tmp_path / "a.ckpt")
    assert {name: value.dtype.name for name, value in found.items()} == {
        "a": "float32",
        "b": "bfloat16",
    }
    np.testing.assert_array_equal(found["a"], [0.5, 3.0])
    np.testing.assert_array_equal(found["b"].astype(np.float32), [[1.5]])


@both
def test_sizes_from_shapes(network):
    tensors = to_reference(some_params(network), network)
    del tensors["rotary_emb.inv_freq"]
    expected = dict(kind="causal", width=16, depth=2, columns=COLUMNS)
    if network is DIT:
        expected |= dict(kind="dit", cond_dim=6)
    assert infer(tensors) == expected
    with pytest.raises(InputError, match="vocab_embed"):
        infer({"weight": np.zeros((2, 2))})


def test_what_does_not_fit_is_named():
    tensors = to_reference(some_params(DIT), DIT)
    without = {k: v for k, v in tensors.items() if k != "blocks.1.mlp.2.bias"}
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.2\.bias is missing"):
        params_from(without, DIT, COLUMNS)
    with pytest.raises(InputError, match=r"blocks\.2\.norm1\.weight"):
        params_from(tensors | {"blocks.2.norm1.weight": np.ones(16)}, DIT, COLUMNS)
    with pytest.raises(InputError, match=r"output_layer\.linear\.weight.*\(11, 16\).*\(12, 16\)"):
        enough = tensors | {"vocab_embed.embedding": np.zeros((12, 16))}
        params_from(enough, DIT, 12)
    with pytest.raises(InputError, match=r"rotary_emb\.inv_freq"):
        params_from(tensors, DiT(width=16, depth=2, heads=4, cond_dim=6), COLUMNS)
    with pytest.raises(InputError, match="adaLN_modulation.* is left over"):
        params_from(tensors, CAUSAL, COLUMNS)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.safetensors")
    for name, says in (("a.txt", "must end in .safetensors"), ("a.safetensors", "not a readable")):
        (tmp_path / name).write_text("not weights")
        with pytest.raises(InputError, match=says):
            read(tmp_path / name)


def test_pickles_without_torch_point_to_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "a.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match="safetensors"):
        read(tmp_path / "a.ckpt")
