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
from mdlm.interop import table
from mdlm.interop.layouts import dit
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.network import Params
from mdlm.runs.weights import DTYPES, WeightsDtype, cast, named

Tensors = dict[str, np.ndarray]

_WRAPPERS = ("backbone.", "module.", "model.", "_orig_mod.")


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
    if dit.ROTARY in tensors:
        found["head_width"] = 2 * tensors[dit.ROTARY].shape[0]
        found["heads"] = width // found["head_width"]
    return found


def params_from(tensors: Tensors, network: DiT | CausalTransformer, columns: int) -> Params:
    """Returns parameters of `network` from tensors in the reference layout, see `stacked`."""
    return jax.tree.map(jnp.asarray, stacked(tensors, network, columns))


def stacked(tensors: Tensors, network: DiT | CausalTransformer, columns: int) -> Params:
    """Returns parameters from tensors in the reference layout, as NumPy arrays of the same dtypes.

    Raises InputError, with names and shapes, if tensors are missing, unexpected or of another shape
    than the network's.
    """
    places = list(table.slots(dit.table(network), network, columns))
    found = {name: np.asarray(value) for name, value in tensors.items()}
    table.check(places, {n: v.shape for n, v in found.items()}, dit.IGNORED, "the weights")
    half = network.heads_shape[2] // 2
    if dit.ROTARY in found and found[dit.ROTARY].shape != (half,):
        raise InputError(
            f"the weights: the tensor {dit.ROTARY} is {found[dit.ROTARY].shape},"
            f" heads={network.heads} needs {(half,)}"
        )
    return table.stacked(places, found, network, columns)


def to_reference(params: Params, network: DiT | CausalTransformer) -> Tensors:
    """Returns the parameters in the reference layout, with the rotary buffer that it includes.

    Raises InputError if the network's architecture differs from the published ones.
    """
    arrays = named(params)
    places = list(table.slots(dit.table(network), network, arrays["embed.table"].shape[0]))
    tensors = dict(table.tensors_of(places, arrays))
    return tensors | {dit.ROTARY: dit.angles(network)}
