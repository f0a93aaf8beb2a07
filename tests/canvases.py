"""Canvases of a sampler, `[n, b, l]`: the tokens before its first call and after each."""

import numpy as np


def changes(canvases):
    """The canvases of one row, without those equal to the one before."""
    kept = [canvases[0]]
    kept += [b for a, b in zip(canvases, canvases[1:], strict=False) if (a != b).any()]
    return np.stack(kept)


def agree(found, due):
    """Compares canvases `[n, b, l]` row by row."""
    assert found.shape[1:] == due.shape[1:]
    for row in range(due.shape[1]):
        np.testing.assert_array_equal(changes(found[:, row]), changes(due[:, row]))
