"""What makes two experiments the same run: their values, and which of them must not change."""

import dataclasses
import hashlib
import json
from typing import Any

from mdlm.config.describe import describe
from mdlm.experiment.experiment import Experiment, Training

FREE = ("name", "sampler", "evaluation", "mesh")
FREE_NETWORK = ("attention", "remat", "logits_chunk")
FREE_TRAINING = tuple(
    f.name for f in dataclasses.fields(Training) if f.name not in ("batch_size", "ema_decay")
)


def without_stores(data: Any) -> Any:
    """A description of data without where their tokens are kept: they are the source's own."""
    if isinstance(data, dict):
        return {k: without_stores(v) for k, v in data.items() if k != "store"}
    return [without_stores(part) for part in data] if isinstance(data, list) else data


def identity(experiment: Experiment) -> dict:
    """What must not change when a run goes on: all but where, how long, by which of several
    equal computations, and how often it looks."""
    values = {k: v for k, v in describe(experiment).items() if k not in FREE}
    values["data"] = without_stores(values["data"])
    values["network"] = {k: v for k, v in values["network"].items() if k not in FREE_NETWORK}
    values["train"] = {k: v for k, v in values["train"].items() if k not in FREE_TRAINING}
    return values


def recorded(experiment: Experiment) -> dict:
    """The identity as it comes back from a file."""
    return json.loads(json.dumps(identity(experiment), default=str))


def fingerprint(experiment: Experiment) -> str:
    """Twelve hexadecimal digits of the identity."""
    text = json.dumps(recorded(experiment), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
