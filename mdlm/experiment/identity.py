"""The identity of a run: the values of its experiment that must not change on resume."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mdlm.config.component_text import to_text
from mdlm.config.field_types import default_of
from mdlm.config.records import read_fields, with_defaults
from mdlm.data.mixture import Mixture
from mdlm.experiment.experiment import Experiment

FREE = ("name", "sampler", "evaluation", "mesh", "train")
FREE_NETWORK = ("attention", "remat", "logits_chunk")
FIXED_OPTIMIZER = ("momentum_dtype", "weight_decay")
"""Fields of an optimizer on which the form of its state depends."""
FIXED = {f.name: f for f in dataclasses.fields(Experiment) if f.name not in FREE}


def without_stores(data: Any) -> Any:
    """Returns data without the paths of their stores; the same tokens follow from the source."""
    if isinstance(data, Mixture):
        return dataclasses.replace(data, parts=tuple(map(without_stores, data.parts)))
    return with_defaults(data, ("store",))


def identity(experiment: Experiment) -> dict[str, Any]:
    """Returns the values that must not change when a run is resumed. Left out or set to their
    defaults are those that may: name, sampler, evaluation, mesh, train, stores, choices between
    equal computations, and the optimizer's values (not its class, and not those on which its state
    depends)."""
    return _fixed({name: getattr(experiment, name) for name in FIXED})


def recorded(experiment: Experiment) -> dict[str, str]:
    """Returns the identity as text, as files record it."""
    values = identity(experiment)
    return {n: to_text(v) for n, v in values.items() if v != default_of(FIXED[n])}


def identity_of(
    record: Mapping[str, Any], title: str, known: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """Returns the identity of a recorded experiment, recorded in full or by `recorded`.

    Raises InputError if it cannot be read; `title` begins the error.
    """
    record = {name: value for name, value in record.items() if name not in FREE}
    found = read_fields(record, Experiment, title, known)
    defaults = {name: default_of(field) for name, field in FIXED.items()}
    return _fixed({**defaults, **found})


def fingerprint(experiment: Experiment) -> str:
    """Returns twelve hexadecimal digits of a hash of the identity."""
    text = json.dumps(recorded(experiment), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _fixed(values: dict[str, Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(values["network"]):
        values["network"] = with_defaults(values["network"], FREE_NETWORK)
    optimizer = values["optimizer"]
    if dataclasses.is_dataclass(optimizer):
        free = [
            f.name
            for f in dataclasses.fields(optimizer)
            if f.name not in FIXED_OPTIMIZER and default_of(f) is not dataclasses.MISSING
        ]
        values["optimizer"] = with_defaults(optimizer, tuple(free))
    if dataclasses.is_dataclass(values["data"]):
        values["data"] = without_stores(values["data"])
    return values
