"""Weights in the layout of the public MDLM code (github.com/kuleshov-group/mdlm), in and out.

There a network is a flat set of tensors named by PyTorch module path, `blocks.3.attn_qkv.weight`
and so on, with the weights of linear layers `(out, in)`. Here kernels are `(in, out)` and the
blocks are stacked along a first axis. Only names and axes differ, so conversion both ways is exact.
The diffusion transformer and the autoregressive baseline are covered.
"""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mdlm.errors import InputError
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.network import Params, shapes
from mdlm.models.rotary import ROTARY_BASE
from mdlm.runs.weights import DTYPES, WeightsDtype, cast

Tensors = dict[str, np.ndarray]

_WRAPPERS = ("backbone.", "module.", "model.", "_orig_mod.")
_ROTARY = "rotary_emb.inv_freq"

_BLOCK = {
    "norm1.weight": "norm1.scale",
    "attn_qkv.weight": "qkv.kernel",
    "attn_out.weight": "attn_out.kernel",
    "norm2.weight": "norm2.scale",
    "mlp.0.weight": "mlp.inner.kernel",
    "mlp.0.bias": "mlp.inner.bias",
    "mlp.2.weight": "mlp.outer.kernel",
    "mlp.2.bias": "mlp.outer.bias",
}
_BLOCK_CONDITIONED = {
    "adaLN_modulation.weight": "modulation.kernel",
    "adaLN_modulation.bias": "modulation.bias",
}
_OUTSIDE = {
    "vocab_embed.embedding": "embed.table",
    "output_layer.norm_final.weight": "norm.scale",
    "output_layer.linear.weight": "head.kernel",
    "output_layer.linear.bias": "head.bias",
}
_OUTSIDE_CONDITIONED = {
    "sigma_map.mlp.0.weight": "noise_level.inner.kernel",
    "sigma_map.mlp.0.bias": "noise_level.inner.bias",
    "sigma_map.mlp.2.weight": "noise_level.outer.kernel",
    "sigma_map.mlp.2.bias": "noise_level.outer.bias",
    "output_layer.adaLN_modulation.weight": "modulation.kernel",
    "output_layer.adaLN_modulation.bias": "modulation.bias",
}


def read(path: str | Path, dtype: WeightsDtype | None = None) -> Tensors:
    """Returns the tensors of a file by their names without wrappers' prefixes, in `dtype`, by
    default each in its own.

    `.safetensors` files are read directly. PyTorch's own formats (`.bin`, `.ckpt`, `.pt`, `.pth`)
    need torch installed and are read with `weights_only=True`. From a training checkpoint the
    `state_dict` is read, which holds the last weights and not their EMA. Raises
    InputError if the file is missing, unreadable or of another kind, or if a value is too large
    for the dtype.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        raw = _read_safetensors(path)
    elif path.suffix in (".bin", ".ckpt", ".pt", ".pth"):
        raw = _read_torch(path)
    else:
        raise InputError(f"{path}: the name must end in .safetensors, .bin, .ckpt, .pt or .pth")
    if dtype is None:
        return _unwrapped(dict(raw))
    wanted = np.dtype(dtype)
    return _unwrapped({name: cast(name, value, wanted) for name, value in raw})


def _read_safetensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and tensors, one after the other."""
    try:
        with safe_open(path, "numpy") as file:
            for name in file.keys():
                dtype = file.get_slice(name).get_dtype()
                if dtype not in (*DTYPES, "F64"):
                    raise InputError(
                        f"{path}: {name} is {dtype}, not {', '.join(DTYPES)}: convert it first"
                    )
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error


def _read_torch(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and tensors of a PyTorch pickle."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise InputError(
            f"{path} is a PyTorch pickle and torch is not installed:"
            " install torch, or give the weights as .safetensors"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own kind
        raise InputError(
            f"torch cannot load {path} as plain weights ({type(error).__name__}):"
            " give the weights as .safetensors"
        ) from error
    for name, value in content.get("state_dict", content).items():
        if not isinstance(value, torch.Tensor):
            continue
        if value.dtype == torch.bfloat16:  # a dtype that NumPy lacks
            yield name, value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            yield name, value.numpy()


def _unwrapped(tensors: Tensors) -> Tensors:
    """Removes wrappers' prefixes. If there is a `backbone`, only its tensors are returned."""
    if any("backbone." in name for name in tensors):
        tensors = {k: v for k, v in tensors.items() if "backbone." in k}
    plain = {}
    for name, value in tensors.items():
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        plain[name] = value
    return plain


def infer(tensors: Tensors) -> dict[str, Any]:
    """Returns the network's sizes from the tensors' shapes: kind ("dit" or "causal"), width, depth,
    columns (the vocabulary size), cond_dim of a DiT.

    The number of heads is known only from the rotary buffer: `head_width` and `heads` are returned
    if the file has it. Raises InputError if the tensors are not those of such a network.
    """
    table = tensors.get("vocab_embed.embedding")
    if table is None or table.ndim != 2:
        raise InputError("no tensor `vocab_embed.embedding`: not weights of an MDLM transformer")
    blocks = {int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))}
    vocab_size, width = table.shape
    cond = tensors.get("sigma_map.mlp.0.bias")
    found: dict[str, Any] = {
        "kind": "causal" if cond is None else "dit",
        "width": width,
        "depth": max(blocks, default=-1) + 1,
        "columns": vocab_size,
    }
    if cond is not None:
        found["cond_dim"] = cond.shape[0]
    if _ROTARY in tensors:
        found["head_width"] = 2 * tensors[_ROTARY].shape[0]
        found["heads"] = width // found["head_width"]
    return found


def params_from(tensors: Tensors, network: DiT | CausalTransformer, vocab_size: int) -> Params:
    """Returns parameters of `network` from tensors in the reference layout, see `stacked`."""
    return jax.tree.map(jnp.asarray, stacked(tensors, network, vocab_size))


def stacked(tensors: Tensors, network: DiT | CausalTransformer, vocab_size: int) -> Params:
    """Returns parameters from tensors in the reference layout, as NumPy arrays of the same dtypes.

    Raises InputError, with the name of the first such tensor, if one is missing, unexpected or of
    another shape than the network's.
    """
    _check_kind(network)
    names = _names(isinstance(network, DiT), network.depth)
    expected = shapes(network, vocab_size)
    for name in names:
        if name not in tensors:
            raise InputError(f"the weights lack the tensor {name}")
    for name in tensors:
        if name not in names and name != _ROTARY:
            raise InputError(f"the weights have a tensor {name}, which {network} does not have")
    for name, (path, _) in names.items():
        shape = _get(expected, path).shape
        shape = shape[1:] if path.startswith("blocks.") else shape
        _check_shape(name, tensors[name], shape[::-1] if _is_kernel(path) else shape, network)
    if _ROTARY in tensors:
        _check_shape(_ROTARY, tensors[_ROTARY], (network.width // network.heads // 2,), network)

    layers: dict[str, list[np.ndarray]] = {}
    for name, (path, _) in names.items():  # `names` has the blocks in order
        value = np.asarray(tensors[name])
        layers.setdefault(path, []).append(value.T if _is_kernel(path) else value)
    params: Params = {}
    for path, values in layers.items():
        _set(params, path, np.stack(values) if path.startswith("blocks.") else values[0])
    return params


def to_reference(params: Params, network: DiT | CausalTransformer) -> Tensors:
    """Returns the parameters in the reference layout, with the rotary buffer that it includes.

    Raises InputError if the network's architecture differs from the published ones.
    """
    _check_kind(network)
    tensors = {}
    for name, (path, layer) in _names(isinstance(network, DiT), network.depth).items():
        value = np.asarray(_get(params, path))
        value = value if layer is None else value[layer]
        tensors[name] = np.ascontiguousarray(value.T if _is_kernel(path) else value)
    half = network.width // network.heads // 2
    exponent = np.arange(half, dtype=np.float32) / np.float32(half)
    tensors[_ROTARY] = (1 / np.float32(ROTARY_BASE) ** exponent).astype(np.float32)
    return tensors


def _check_kind(network: DiT | CausalTransformer) -> None:
    published = dict(norm="layer", qk_norm=False, mlp="gelu", use_bias=True)
    for name, value in published.items():
        if getattr(network, name) != value:
            raise InputError(
                f"{name}={getattr(network, name)!r}: the published layout supports only"
                f" {name}={value!r}"
            )
    if isinstance(network, DiT) and network.cond_dim == 0:
        raise InputError("cond_dim=0: the published layout needs a DiT with cond_dim of at least 1")


def _names(conditioned: bool, depth: int) -> dict[str, tuple[str, int | None]]:
    """Returns `{reference name: (path here, index of the block or None)}`."""
    outside = _OUTSIDE | (_OUTSIDE_CONDITIONED if conditioned else {})
    block = _BLOCK | (_BLOCK_CONDITIONED if conditioned else {})
    names: dict[str, tuple[str, int | None]] = {k: (path, None) for k, path in outside.items()}
    for i in range(depth):
        names |= {f"blocks.{i}.{k}": (f"blocks.{path}", i) for k, path in block.items()}
    return names


def _is_kernel(path: str) -> bool:
    return path.endswith(".kernel")


def _check_shape(name: str, tensor: np.ndarray, shape: tuple[int, ...], network) -> None:
    if tensor.shape != shape:
        raise InputError(f"the tensor {name} has shape {tensor.shape}; {network} needs {shape}")


def _get(tree: Params, path: str) -> Any:
    for part in path.split("."):
        tree = tree[part]
    return tree


def _set(tree: Params, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value
