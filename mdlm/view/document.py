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
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from mdlm.errors import InputError
from mdlm.foreign.limits import check_within
from mdlm.foreign.typed_json import Meta, decoded
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


Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the document."""

    start: list[Token]
    events: list[tuple[int, int, Token, Annotated[float, Meta(ge=0, le=1)]]]


@dataclass(frozen=True, kw_only=True)
class Document:
    """The document, with the version read already."""

    sampler: str
    mask: Token
    pieces: dict[Token, str]
    steps: int
    nfe: list[Annotated[int, Meta(ge=0, le=2**62)]]
    rows: Annotated[list[Row], Meta(min_length=1)]
    origin: str = ""  # older traces have none


def loads(content: bytes, name: str) -> Trace:
    """Reads a trace from the `content` of the file `name`. Raises InputError if it is not one."""
    try:
        document = decoded(content)
    except ValueError as error:
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
        return _trace(decoded(content, Document), name)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{name} is a damaged trace: {error}") from error


def _trace(document: Document, name: str) -> Trace:
    if len(document.nfe) != document.steps + 1:
        raise ValueError("nfe must have one number for each step from 0 to steps")
    for token, text in document.pieces.items():
        check_within("MDLM_MAX_PIECE", len(text), f"{name}: the text of token {token}")
    rows = tuple(_row(row, name, steps=document.steps) for row in document.rows)
    used = {document.mask}.union(*(ids.tolist() for row in rows for ids in (row.start, row.token)))
    if not used <= document.pieces.keys():
        raise ValueError(f"pieces lacks the text of token {min(used - document.pieces.keys())}")
    return Trace(
        sampler=document.sampler,
        mask_id=document.mask,
        pieces=document.pieces,
        nfe=np.array(document.nfe, np.int64),
        rows=rows,
        origin=document.origin,
    )


def _row(row: Row, name: str, *, steps: int) -> RowTrace:
    check_within("MDLM_MAX_LENGTH", len(row.start), f"{name}: a text")
    last = 0
    for event in row.events:
        step, position, *_ = event
        if not last <= step <= steps:
            raise ValueError(
                f"event {event}: the step must be from {last}, that of the event before, to {steps}"
            )
        if not 0 <= position < len(row.start):
            raise ValueError(f"event {event}: the position must be from 0 to {len(row.start) - 1}")
        last = step
    fields = np.array(row.events, np.float64).reshape(-1, 4).T
    step, position, token = fields[:3].astype(np.int64)
    start = np.array(row.start, np.int64)
    return RowTrace(start=start, step=step, position=position, token=token, confidence=fields[3])
