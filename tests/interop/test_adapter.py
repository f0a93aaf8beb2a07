"""Adapters of PEFT: names, shapes, and the sum with the exported base, which is the merged export.

What PEFT computes is written out here from its documents: (lora_alpha / r) B A is added to the
weight of the module that the name of the pair gives.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
from made_run import made, made_tuned
from safetensors import safe_open
from safetensors.numpy import load_file

from mdlm.cli.main import main
from mdlm.errors import InputError
from mdlm.interop.adapter import export_adapter
from mdlm.interop.exporting import export
from mdlm.models import Decoder, DiT, Experts, ModernBert
from mdlm.objectives import Autoregressive, BlockNelbo
from mdlm.samplers import BlockByBlock, LeftToRight
from mdlm.tuning import Full, LoRA

SIZES = dict(width=16, depth=2, heads=2)
QWEN = dict(**SIZES, kv_heads=1, hidden=24, qkv_bias=True, norm="rms", mlp="swiglu")
NETWORKS = {
    "qwen2": (Decoder(**QWEN, attends="causal"), LoRA(rank=3, alpha=12.0)),
    "llada": (Decoder(**SIZES, hidden=24), LoRA(rank=2, kernels=("qkv", "mlp.outer"))),
    "mdlm": (DiT(**SIZES, cond_dim=8), LoRA(rank=2, kernels=("blocks.mlp", "qkv"))),
    "llada2": (
        Decoder(
            **SIZES,
            kv_heads=1,
            hidden=24,
            qk_norm="separate",
            attends="blocks",
            block_size=4,
            experts=Experts(count=4, chosen=2, groups=1, kept_groups=1, hidden=8),
        ),
        LoRA(rank=2),
    ),
    "modernbert": (ModernBert(**SIZES), LoRA(rank=2)),
}

METHODS = {
    "causal": dict(objective=Autoregressive(), sampler=LeftToRight()),
    "blocks": dict(objective=BlockNelbo(block_size=4), sampler=BlockByBlock(block_size=4)),
}


def merged(base: dict, folder: Path) -> dict:
    """The base with the adapter, as PEFT merges it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    out, modules = dict(base), set()
    for name in tensors:
        found = re.fullmatch(r"base_model\.model\.(.*)\.lora_A\.weight", name)
        if found is None:
            continue
        module = found[1]
        modules.add(module)

        def of(pattern, usual, module=module):
            fits = (v for k, v in config[pattern].items() if re.match(rf"(.*\.)?({k})$", module))
            return next(fits, config[usual])

        a, b = tensors[name], tensors[name.replace("lora_A", "lora_B")]
        assert a.shape[0] == b.shape[1] == of("rank_pattern", "r")
        scale = of("alpha_pattern", "lora_alpha") / a.shape[0]
        out[f"{module}.weight"] = out[f"{module}.weight"] + scale * (b @ a)
    assert len(tensors) == 2 * len(modules) > 0
    known, targets = {n.removesuffix(".weight") for n in base}, config["target_modules"]
    assert modules == {m for m in known if any(f".{m}".endswith(f".{t}") for t in targets)}
    return out


def both(tmp_path, network, tune):
    """A run, and one that began from it and was trained with `tune`."""
    how = METHODS.get(network.attends, {})
    base = made(tmp_path / "base", tiny.experiment(tmp_path / "none.txt", network=network, **how))
    return base, made_tuned(tmp_path / "run", base, tune)


@pytest.mark.parametrize("name", NETWORKS)
def test_base_and_adapter_are_the_merged_export(tmp_path, name):
    network, tune = NETWORKS[name]
    base, run = both(tmp_path, network, tune)
    export(base, tmp_path / "b", layout=name)
    export(run, tmp_path / "m", layout=name)
    layout, files = export_adapter(run, tmp_path / "a", layout=name)
    assert layout.name == name
    assert files == ["adapter_model.safetensors", "adapter_config.json"]
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("b", "m"))
    sums = merged(before, tmp_path / "a")
    assert sums.keys() == after.keys()
    changed = {n for n in after if not np.array_equal(before[n], after[n])}
    assert len(changed) >= 4
    for tensor, value in after.items():
        np.testing.assert_allclose(sums[tensor], value, rtol=1e-5, atol=1e-6, err_msg=tensor)


def test_of_a_decoder_each_projection_has_a_pair(tmp_path):
    """By the names and shapes that PEFT gives to those of Qwen2; the layers are told apart."""
    network, tune = NETWORKS["qwen2"]
    _, run = both(tmp_path, network, tune)
    export_adapter(run, tmp_path / "a", layout="qwen2", dtype="bfloat16")
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", "numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        assert {file.get_slice(name).get_dtype() for name in shapes} == {"BF16"}
    due = {}
    sizes = dict(q_proj=(16, 16), k_proj=(16, 8), v_proj=(16, 8), o_proj=(16, 16))
    mlp = dict(gate_proj=(16, 24), up_proj=(16, 24), down_proj=(24, 16))
    for part, modules in (("self_attn", sizes), ("mlp", mlp)):
        for module, (i, o) in modules.items():
            for layer in range(2):
                name = f"base_model.model.model.layers.{layer}.{part}.{module}"
                due |= {f"{name}.lora_A.weight": (3, i), f"{name}.lora_B.weight": (o, 3)}
    assert shapes == due
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 12.0, {})
    assert config["target_modules"] == sorted([*sizes, *mlp])


def test_in_transformers_the_merged_network_is_base_and_adapter(tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    base, run = both(tmp_path, *NETWORKS["qwen2"])
    export(base, tmp_path / "b", layout="qwen2")
    export(run, tmp_path / "m", layout="qwen2")
    export_adapter(run, tmp_path / "a", layout="qwen2")
    there = [
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in "bm"
    ]
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    modules = dict(there[0].named_modules())
    tokens = torch.arange(12)[None] % 50
    with torch.no_grad():
        before = there[0](tokens).logits
        for name in (name for name in tensors if "lora_A" in name):
            module = modules[name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")]
            b = tensors[name.replace("lora_A", "lora_B")]
            module.weight += 4.0 * torch.tensor(b @ tensors[name])
        sums, due = (model(tokens).logits.numpy() for model in there)
    assert np.abs(before.numpy() - due).max() > 0.1
    np.testing.assert_allclose(sums, due, rtol=1e-4, atol=1e-4)


def test_the_command_and_what_it_refuses(tmp_path, capsys):
    base, run = both(tmp_path, *NETWORKS["llada"])
    out = str(tmp_path / "a")
    assert main(["export", str(run.folder.path), "--to", out, "--adapter"]) == 0
    assert "adapter_model.safetensors  adapter_config.json" in capsys.readouterr().out
    assert main(["export", str(run.folder.path), "--to", out, "--adapter"]) == 2
    assert "choose a new or empty folder" in capsys.readouterr().err
    new = tmp_path / "new"
    assert main(["export", str(base.folder.path), "--to", str(new), "--adapter"]) == 2
    assert "--adapter: the run has tune=none; only LoRA" in capsys.readouterr().err
    frozen = made_tuned(tmp_path / "frozen", base, Full(frozen=("embed",)))
    with pytest.raises(InputError, match=r"tune=Full\(frozen=\('embed',\)\); only LoRA"):
        export_adapter(frozen, new)
    assert not new.exists()
