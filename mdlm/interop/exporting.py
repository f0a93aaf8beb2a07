"""Writes a run as a folder in another layout: config.json, safetensors, tokenizer, model card."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mdlm.errors import InputError
from mdlm.files import replaced
from mdlm.interop import table
from mdlm.interop.card import model_card
from mdlm.interop.layout import Layout
from mdlm.interop.layouts import ALL, layout_named
from mdlm.parameterizations import Score
from mdlm.run import Run
from mdlm.runs.weights import WeightsDtype, cast, named
from mdlm.vocab import Vocab

SHARD = 2 * 10**9
"""Most bytes of a file of tensors, unless one tensor is larger."""
Report = Callable[[str, int, int], None]


def layout_for(run: Run, name: str | None = None) -> Layout:
    """Returns the layout of a name; by default that which the run was imported from, or the first
    that has such a network. Raises InputError, with the reasons, if there is none, or if what the
    network returns are no logits of clean tokens, as which the programs of others read it."""
    outputs = run.experiment.parameterization
    if isinstance(outputs, Score):
        raise InputError(
            f"parameterization={type(outputs).__name__}(): no layout is written for networks that"
            " return scores; other programs would read them as logits of clean tokens"
        )
    length = run.experiment.data.packing.length
    if name is not None:
        layout = layout_named(name)
        if layout.config is None:
            raise InputError(f"--layout {name}: can be imported only")
        layout.config(run.experiment.network, length)
        return layout
    own = [layout for layout in ALL if layout.name == run.experiment.name]
    reasons = {}
    for layout in [*own, *ALL]:
        try:
            if layout.config is not None:
                layout.config(run.experiment.network, length)
                return layout
        except InputError as error:
            reasons[layout.name] = str(error)
    raise InputError(
        "no public code has such a network: " + "; ".join(f"{n}: {r}" for n, r in reasons.items())
    )


def check_new(out: Path) -> None:
    """Raises InputError if there is something where a folder is to be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists: choose a new or empty folder")


def export(
    run: Run,
    out: Path,
    *,
    layout: str | None = None,
    dtype: WeightsDtype | None = None,
    shard: int = SHARD,
    report: Report = lambda *_: None,
) -> tuple[Layout, list[str]]:
    """Writes the parameters of a run into a new folder that other people's programs load.

    `dtype` is that of the tensors (None: as they are), `shard` the most bytes of a file. Returns
    the layout and the names of the files. Raises InputError, before anything is written, if the
    folder exists, or no layout has such a network.
    """
    check_new(out)
    chosen, network = layout_for(run, layout), run.experiment.network
    assert chosen.config is not None
    config = chosen.config(network, run.experiment.data.packing.length)
    places = list(table.slots(chosen.table(network), network, run.model.columns))
    arrays = named(run.params["network"])
    dtypes = {np.dtype(dtype or arrays[place.path].dtype).name for place in places}
    config |= _ids(run.model.vocab, chosen, run.model.columns)
    config["torch_dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"

    out.mkdir(parents=True, exist_ok=True)
    total = sum(int(np.prod(place.shape)) for place in places)
    done = 0

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        nonlocal done
        for name, value in table.tensors_of(places, arrays):
            value = value if dtype is None else cast(name, value, np.dtype(dtype))
            done += value.size
            report("exporting, parameters", done, total)
            yield chosen.wrapper + name, value
        yield from chosen.buffers(network).items()

    files = _write_tensors(out, tensors(), shard)
    texts = {
        "config.json": _json(config),
        "generation_config.json": _json(_generation(run)),
        **_tokenizer(run),
        "README.md": model_card(run, chosen),
    }
    for name, text in texts.items():
        with replaced(out / name) as new:
            new.write_text(text, encoding="utf-8")
    return chosen, [*files, *texts]


def _write_tensors(out: Path, tensors: Iterator[tuple[str, np.ndarray]], most: int) -> list[str]:
    """Writes tensors in files of at most `most` bytes; several have an index. Returns the names."""
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    size = total = 0

    def write() -> None:
        nonlocal held, size
        with replaced(out / f"shard-{len(shards)}") as new:
            save_file(held, new, {"format": "pt"})
        shards.append(list(held))
        held, size = {}, 0

    for name, value in tensors:
        if held and size + value.nbytes > most:
            write()
        held[name] = value
        size, total = size + value.nbytes, total + value.nbytes
    write()
    count = len(shards)
    names = ["model.safetensors"]
    if count > 1:
        names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for i, name in enumerate(names):
        (out / f"shard-{i}").rename(out / name)
    if count == 1:
        return names
    where = {name: file for file, own in zip(names, shards, strict=True) for name in own}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (out / "model.safetensors.index.json").write_text(_json(index), encoding="utf-8")
    return [*names, "model.safetensors.index.json"]


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


def _ids(vocab: Vocab, layout: Layout, columns: int) -> dict[str, Any]:
    sizes = {"vocab_size": columns}
    if layout.name == "llada":
        sizes = {"vocab_size": min(vocab.size, columns), "embedding_size": columns}
    roles = dict(bos=vocab.bos_id, eos=vocab.eos_id, pad=vocab.pad_id)
    if vocab.mask_id < columns:
        roles["mask"] = vocab.mask_id
    return sizes | {f"{role}_token_id": number for role, number in roles.items()}


def _generation(run: Run) -> dict[str, Any]:
    """Returns what generation_config.json says: the ends of texts, and how tokens are drawn."""
    sampler, vocab = run.experiment.sampler, run.model.vocab
    ends = run.tokenizer.chat.ends
    eos = list(ends) if len(ends) > 1 else vocab.eos_id
    values: dict[str, Any] = dict(bos_token_id=vocab.bos_id, eos_token_id=eos)
    values["pad_token_id"] = vocab.pad_id
    temperature = sampler.temperature
    if isinstance(temperature, int | float):  # others change with time, which has no name there
        values["do_sample"] = temperature > 0
        if temperature > 0:
            values |= {"temperature": temperature, "top_p": sampler.top_p}
    return {name: value for name, value in values.items() if value is not None}


def _tokenizer(run: Run) -> dict[str, str]:
    """Returns the tokenizer's files by name."""
    tokenizer, vocab = run.tokenizer, run.model.vocab
    roles = dict(mask=vocab.mask_id, bos=vocab.bos_id, eos=vocab.eos_id, pad=vocab.pad_id)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for role, number in roles.items():
        if number is None or number >= run.model.columns:
            continue
        if tokenizer.backend.id_to_token(number) is not None:
            config[f"{role}_token"] = tokenizer.backend.id_to_token(number)
    backend = json.loads(tokenizer.backend.to_str())
    # A causal network has no column for the mask that its vocabulary got here.
    added = [token for token in backend["added_tokens"] if token["id"] < run.model.columns]
    files = {"tokenizer.json": json.dumps({**backend, "added_tokens": added}, indent=2) + "\n"}
    if tokenizer.chat.template is not None:
        files["chat_template.jinja"] = tokenizer.chat.template
    return {**files, "tokenizer_config.json": _json(config)}
