"""A trace made by hand, with every change that can happen to a token."""

import numpy as np

from mdlm.generation.trace import RowTrace, Trace

MASK = 9
PIECES = {
    0: "The",
    1: " cat",
    2: " sat",
    3: "\n",
    4: "</script><b>&amp;",
    5: "\x1b[2J",
    6: "\u65e5\u672c",
    7: " a very long token",
    MASK: "[MASK]",
}


def row(start: list[int], events: list[tuple[int, int, int, float]]) -> RowTrace:
    columns = [np.array([e[i] for e in events], np.int64) for i in range(3)]
    return RowTrace(
        start=np.array(start),
        step=columns[0],
        position=columns[1],
        token=columns[2],
        confidence=np.array([e[3] for e in events], np.float64),
    )


def trace() -> Trace:
    """Row 1: position 0 given; 1 written, remasked, written again; 2 revised; 3 to 5 written once.
    Row 2: noise at both positions before the first step; position 1 is revised in step 2.
    """
    first = [
        (1, 1, 1, 0.9),
        (1, 2, 7, 0.02),
        (2, 3, 3, 1.0),
        (3, 1, MASK, 0.0),
        (3, 2, 2, 0.5),
        (4, 4, 4, 0.0001),
        (5, 1, 6, 0.05),
        (5, 5, 5, 0.05),
    ]
    second = [(0, 0, 1, 0.0), (0, 1, 2, 0.0), (2, 1, 7, 0.25)]
    return Trace(
        sampler="Made(by='hand')",
        mask_id=MASK,
        pieces=PIECES,
        nfe=np.array([0, 1, 2, 3, 4, 5]),
        origin="runs/<made>, step 7, seed 3",
        rows=(row([0] + [MASK] * 5, first), row([MASK, MASK], second)),
    )
