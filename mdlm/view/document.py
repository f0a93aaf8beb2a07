"""The file format of a trace: one JSON document.

    {"mdlm_trace": 1, "origin": "runs/quickstart, step 1900, seed 0", "sampler": "Ancestral(...)",
     "mask": 259, "pieces": {"65": "A", ...}, "steps": 126, "nfe": [0, 1, ...],
     "rows": [{"start": [259, ...], "events": [[1, 17, 65, 0.8], ...]}, ...]}

`origin` names the run, its step and the seed of the draws. A row is one sequence. `start` is its
tokens before the first step, the mask at open positions. An event is a change of token: step (0 for
tokens of the prior), position, token, and the probability that the network gave the token (0 for
the mask). `nfe` counts the network calls up to the end of each step from 0 to `steps`.
"""

import json
from typing import Any

import numpy as np

from mdlm.errors import InputError
from mdlm.generation.trace import RowTrace, Trace

VERSION = 1


def dumps(trace: Trace) -> str:
    """Returns the document of a trace."""
    rows = [
        {
            "start": row.start.tolist(),
            "events": [
                [int(step), int(position), int(token), float(f"{confidence:.4g}")]
                for step, position, token, confidence in zip(
                    row.step, row.position, row.token, row.confidence, strict=True
                )
            ],
        }
        for row in trace.rows
    ]
    document = {
        "mdlm_trace": VERSION,
        "origin": trace.origin,
        "sampler": trace.sampler,
        "mask": trace.mask_id,
        "pieces": {str(token): text for token, text in trace.pieces.items()},
        "steps": trace.steps,
        "nfe": trace.nfe.tolist(),
        "rows": rows,
    }
    return json.dumps(document, allow_nan=False, separators=(",", ":"))


def loads(content: bytes, name: str) -> Trace:
    """Reads a trace from the `content` of the file `name`. Raises InputError if it is not one."""
    try:
        document = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        if content.lstrip().startswith(b'{"mdlm_trace"'):
            raise InputError(f"{name} is a truncated or damaged trace: {error}") from error
        raise InputError(f"{name} is not a trace: `mdlm sample --trace FILE` writes one") from error
    if not isinstance(document, dict) or "mdlm_trace" not in document:
        raise InputError(f"{name} is not a trace: `mdlm sample --trace FILE` writes one")
    if document["mdlm_trace"] != VERSION:
        raise InputError(
            f"{name} is a trace of version {document['mdlm_trace']}: this mdlm reads version"
            f" {VERSION} only"
        )
    try:
        return _read(document)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} is a damaged trace: {_reason(error)}") from error


def _read(document: dict[str, Any]) -> Trace:
    mask_id = _integer(document["mask"])
    pieces = {int(token): str(text) for token, text in document["pieces"].items()}
    nfe = np.array([_integer(calls) for calls in document["nfe"]], np.int64)
    if len(nfe) != _integer(document["steps"]) + 1:
        raise ValueError("nfe must have one number for each step from 0 to steps")
    rows = tuple(_row(row, steps=len(nfe) - 1) for row in document["rows"])
    if not rows:
        raise ValueError("rows must not be empty")
    used = {mask_id}.union(*(ids.tolist() for row in rows for ids in (row.start, row.token)))
    if not used <= pieces.keys():
        raise ValueError(f"pieces lacks the text of token {min(used - pieces.keys())}")
    return Trace(
        sampler=str(document["sampler"]),
        mask_id=mask_id,
        pieces=pieces,
        nfe=nfe,
        rows=rows,
        origin=str(document.get("origin", "")),  # older traces have none
    )


def _row(row: dict[str, Any], *, steps: int) -> RowTrace:
    start = np.array([_integer(token) for token in row["start"]], np.int64)
    last = 0
    for event in row["events"]:
        step, position, token, confidence = event
        if not last <= _integer(step) <= steps:
            raise ValueError(
                f"event {event}: the step must be from {last}, that of the event before, to {steps}"
            )
        if not 0 <= _integer(position) < len(start):
            raise ValueError(f"event {event}: the position must be from 0 to {len(start) - 1}")
        if not 0 <= confidence <= 1:
            raise ValueError(f"event {event}: the probability must be from 0 to 1")
        _integer(token)
        last = step
    fields = np.array(row["events"], np.float64).reshape(-1, 4).T
    step, position, token = fields[:3].astype(np.int64)
    return RowTrace(start=start, step=step, position=position, token=token, confidence=fields[3])


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} must be an integer")
    return value


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
