"""Writes what LoRA trained as an adapter of PEFT: adapter_config.json, adapter_model.safetensors.

PEFT adds (lora_alpha / r) B A to the weight of a module, with A [r in] and B [out r]: the A and B
of `mdlm.tuning.lora`, transposed. Where a kernel here is several modules there, each gets its own
pair. Where several matrices with pairs of their own are one module there, its A has their rows one
after another, and its B is block diagonal, with r and lora_alpha as many times as large.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mdlm.config.component_text import to_text
from mdlm.errors import InputError
from mdlm.files import replaced
from mdlm.interop import table
from mdlm.interop.exporting import check_new, layout_for
from mdlm.interop.layout import Layout
from mdlm.interop.table import Slot
from mdlm.run import Run
from mdlm.runs.parameters import restore_trained
from mdlm.runs.weights import WeightsDtype, cast
from mdlm.tuning import LoRA
from mdlm.tuning.lora import ADAPTER

Pair = tuple[np.ndarray, np.ndarray]
PREFIX = "base_model.model."
"""What PEFT calls the module that the adapter is for."""


def export_adapter(
    run: Run, out: Path, *, layout: str | None = None, dtype: WeightsDtype | None = None
) -> tuple[Layout, list[str]]:
    """Writes the adapter of a run into a new folder; its base is what the run began from, exported
    in the same layout. Returns the layout and the names of the files.

    Raises InputError, before anything is written, if the run was not trained with LoRA, the folder
    exists, or no layout has such a network.
    """
    check_new(out)
    tune = run.experiment.tune
    if not isinstance(tune, LoRA):
        found = "none" if tune is None else to_text(tune)
        raise InputError(f"--adapter: the run has tune={found}; only LoRA trains an adapter")
    chosen, network = layout_for(run, layout), run.experiment.network
    places = list(table.slots(chosen.table(network), network, run.model.columns))
    abstract = run.model.abstract_params(run.mesh)
    trained = restore_trained(run.folder, run.model, abstract, run.step)
    pairs: dict[str, Pair] = {}
    for tensor, own in _by_tensor(places, trained[ADAPTER]["network"]):
        pairs[chosen.wrapper + tensor.removesuffix(".weight")] = own
    due = sum(np.prod(a.shape[:-2]) * tune.rank for a in _every_a(trained[ADAPTER]["network"]))
    if sum(a.shape[0] for a, _ in pairs.values()) != due:
        raise InputError(
            f"--adapter: the tensors of layout {chosen.name} cut through the kernels that were"
            " trained; export without --adapter, or give --layout another"
        )
    tensors = {}
    for module, (a, b) in pairs.items():
        for kind, value in (("A", a), ("B", b)):
            name = f"{PREFIX}{module}.lora_{kind}.weight"
            value = value if dtype is None else cast(name, value, np.dtype(dtype))
            tensors[name] = np.ascontiguousarray(value)
    others = {chosen.wrapper + place.tensor.removesuffix(".weight") for place in places}
    config = _config(tune, chosen, pairs, others - pairs.keys())
    out.mkdir(parents=True, exist_ok=True)
    names = ["adapter_model.safetensors", "adapter_config.json"]
    with replaced(out / names[0]) as new:
        save_file(tensors, new, {"format": "pt"})
    with replaced(out / names[1]) as new:
        new.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return chosen, names


def _by_tensor(places: list[Slot], adapter: Mapping[str, Any]) -> Iterator[tuple[str, Pair]]:
    """Yields the tensors of the other layout that have an adapter, with A and B."""
    for tensor, group in itertools.groupby(places, key=lambda place: place.tensor):
        slots = sorted(group, key=lambda place: place.part)
        pairs = [pair for slot in slots for pair in _pairs(slot, _node(adapter, slot.path))]
        if pairs:
            yield tensor, _as_one(pairs)


def _every_a(adapter: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the A of every matrix that was trained."""
    for name, node in adapter.items():
        yield from [node] if name == "a" else [] if name == "b" else _every_a(node)


def _node(adapter: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Returns A and B of the matrices of an array by their numbers; none if it has no adapter."""
    node = adapter
    for name in path.split("."):
        node = node.get(name, {})
    return node


def _pairs(slot: Slot, node: Mapping[str, Any]) -> Iterator[Pair]:
    """Yields A [r in] and B [out r] of each of the matrices that lie in a slot."""
    end = 0
    for i in range(len(node)):
        pair = node[str(i)]
        start, end = end, end + pair["b"].shape[-1]
        if slot.columns.start <= start and end <= slot.columns.stop:
            a, b = (np.asarray(pair[name][slot.index]) for name in ("a", "b"))
            yield a.T, b.T


def _as_one(pairs: list[Pair]) -> Pair:
    """Returns one A and one B for matrices whose rows lie one after another."""
    ranks, heights = ([a.shape[0] for a, _ in pairs], [b.shape[0] for _, b in pairs])
    joined = np.zeros((sum(heights), sum(ranks)), pairs[0][1].dtype)
    row = column = 0
    for _, b in pairs:
        joined[row : row + b.shape[0], column : column + b.shape[1]] = b
        row, column = row + b.shape[0], column + b.shape[1]
    return np.concatenate([a for a, _ in pairs]), joined


def _config(
    tune: LoRA, layout: Layout, pairs: Mapping[str, Pair], others: set[str]
) -> dict[str, Any]:
    """Returns adapter_config.json."""
    ranks = {module: a.shape[0] for module, (a, _) in pairs.items()}
    names = _short(ranks, others)
    wide = {names[module]: rank for module, rank in ranks.items() if rank != tune.rank}
    alpha = lambda rank: tune.alpha * rank / tune.rank
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if layout.in_transformers else None,
        "base_model_name_or_path": None,
        "r": tune.rank,
        "lora_alpha": tune.alpha,
        "target_modules": sorted(set(names.values())),
        "rank_pattern": wide,
        "alpha_pattern": {name: alpha(rank) for name, rank in wide.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def _short(ranks: Mapping[str, int], others: set[str]) -> dict[str, str]:
    """Returns the shortest ends of names of modules that mean these modules and no `others`, and
    of which each means modules of one rank; else the whole names."""

    def end(module: str) -> str:
        parts = module.split(".")
        first = max(i for i, part in enumerate(parts) if not part.isdecimal())
        return ".".join(parts[first:])

    found = {module: end(module) for module in ranks}
    means = lambda name, module: f".{module}".endswith(f".{name}")
    ends = set(found.values())
    is_sharp = not any(means(name, other) for name in ends for other in others)
    of_one = all(len({ranks[m] for m in ranks if means(name, m)}) == 1 for name in ends)
    return found if is_sharp and of_one else {module: module for module in ranks}
