"""The file of a trace: one JSON document.

    {"mdlm_trace": 1, "sampler": "Ancestral(...)", "mask": 259, "pieces": {"65": "A", ...},
     "steps": 126, "nfe": [0, 1, ...], "rows": [{"start": [259, ...], "events": [[1, 17, 65, 0.8],
     ...]}, ...]}

`start` is a text before the first step, the mask where it is open. An event is a change of token:
step (0 for what the prior put there), place in the text, token, the probability that the network
gave it (0 for the mask). `nfe` counts network calls up to the end of each step from 0 to `steps`.
"""

import json
from typing import Any

import numpy as np

from mdlm.errors import InputError
from mdlm.generation.trace import RowTrace, Trace

VERSION = 1


def dumps(trace: Trace) -> str:
    """The document."""
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
        "sampler": trace.sampler,
        "mask": trace.mask_id,
        "pieces": {str(token): text for token, text in trace.pieces.items()},
        "steps": trace.steps,
        "nfe": trace.nfe.tolist(),
        "rows": rows,
    }
    return json.dumps(document, allow_nan=False, separators=(",", ":"))


def loads(content: bytes, name: str) -> Trace:
    """The trace in a file. InputError, which names the file, where it holds none."""
    try:
        document = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        if content.lstrip().startswith(b'{"mdlm_trace"'):
            raise InputError(f"{name} is a trace, but cut short or damaged: {error}") from error
        raise InputError(f"{name} is no trace: mdlm sample --trace FILE writes one") from error
    if not isinstance(document, dict) or "mdlm_trace" not in document:
        raise InputError(f"{name} is no trace: mdlm sample --trace FILE writes one")
    if document["mdlm_trace"] != VERSION:
        raise InputError(
            f"{name} is a trace of version {document['mdlm_trace']}; this mdlm reads {VERSION}"
        )
    try:
        return _read(document)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} is a damaged trace: {_reason(error)}") from error


def _read(document: dict[str, Any]) -> Trace:
    mask_id = _whole(document["mask"])
    pieces = {int(token): str(text) for token, text in document["pieces"].items()}
    nfe = np.array([_whole(calls) for calls in document["nfe"]], np.int64)
    if len(nfe) != _whole(document["steps"]) + 1:
        raise ValueError("nfe does not have one number for each step")
    rows = tuple(_row(row, steps=len(nfe) - 1) for row in document["rows"])
    if not rows:
        raise ValueError("it has no rows")
    used = {mask_id}.union(*(ids.tolist() for row in rows for ids in (row.start, row.token)))
    if not used <= pieces.keys():
        raise ValueError(f"pieces has no text for token {min(used - pieces.keys())}")
    return Trace(
        sampler=str(document["sampler"]), mask_id=mask_id, pieces=pieces, nfe=nfe, rows=rows
    )


def _row(row: dict[str, Any], *, steps: int) -> RowTrace:
    start = np.array([_whole(token) for token in row["start"]], np.int64)
    last = 0
    for event in row["events"]:
        step, position, token, confidence = event
        if not last <= _whole(step) <= steps:
            raise ValueError(f"event {event} is out of order or beyond the last step")
        if not 0 <= _whole(position) < len(start):
            raise ValueError(f"event {event} is not in the text")
        if not 0 <= confidence <= 1:
            raise ValueError(f"event {event} has a probability that is none")
        _whole(token)
        last = step
    columns = np.array(row["events"], np.float64).reshape(-1, 4).T
    step, position, token = columns[:3].astype(np.int64)
    return RowTrace(start=start, step=step, position=position, token=token, confidence=columns[3])


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no whole number")
    return value


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
