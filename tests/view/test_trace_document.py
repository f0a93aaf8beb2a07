"""The file of a trace: what is written is read again, and anything else is refused in a line."""

import json

import made_trace
import numpy as np
import pytest

from mdlm.errors import InputError
from mdlm.view.document import dumps, loads


def test_what_is_written_is_read_again():
    trace = made_trace.trace()
    again = loads(dumps(trace).encode(), "x")
    assert (again.sampler, again.mask_id, again.pieces) == (
        trace.sampler,
        trace.mask_id,
        trace.pieces,
    )
    assert (again.nfe == trace.nfe).all() and len(again.rows) == 2
    for own, other in zip(trace.rows, again.rows, strict=True):
        for name, values in vars(own).items():
            np.testing.assert_array_equal(values, vars(other)[name], name)


def test_the_format_is_the_documented_one():
    found = json.loads(dumps(made_trace.trace()))
    assert found["mdlm_trace"] == 1 and found["mask"] == made_trace.MASK and found["steps"] == 5
    assert found["pieces"]["1"] == " cat" and found["nfe"] == [0, 1, 2, 3, 4, 5]
    assert found["rows"][0]["start"] == [0, 9, 9, 9, 9, 9]
    assert found["rows"][0]["events"][3] == [3, 1, 9, 0.0]


def changed(**fields):
    return json.dumps({**json.loads(dumps(made_trace.trace())), **fields}).encode()


def events(*values):
    return changed(rows=[{"start": [0, 9], "events": list(values)}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no trace: mdlm sample --trace"),
        (b"\x89PNG\xff\x00", "is no trace"),
        (b'{"loss": 3}', "is no trace"),
        (b"[1, 2]", "is no trace"),
        (dumps(made_trace.trace())[:-40].encode(), "cut short or damaged"),
        (changed(mdlm_trace=2), "of version 2; this mdlm reads 1"),
        (changed(pieces={"0": "The"}), "no text for token 1"),
        (changed(pieces=[]), "is a damaged trace"),
        (changed(steps=7), "one number for each step"),
        (changed(rows=[]), "has no rows"),
        (changed(rows=[{"start": [0]}]), "it has no 'events'"),
        (changed(mask="m"), "'m' is no whole number"),
        (events([1, 2, 0, 0.5]), "not in the text"),
        (events([1, -1, 0, 0.5]), "not in the text"),
        (events([6, 1, 0, 0.5]), "beyond the last step"),
        (events([2, 1, 0, 0.5], [1, 1, 1, 0.5]), "out of order"),
        (events([1, 1, 0, 1.5]), "a probability that is none"),
        (events([1, 1, 0, float("nan")]), "a probability that is none"),
        (events([1, 1, 0]), "is a damaged trace"),
        (events([1, 1, 0.5, 0.5]), "no whole number"),
    ],
)
def test_anything_else_is_refused_in_one_line(content, message):
    with pytest.raises(InputError, match="^some.file ") as refusal:
        loads(content, "some.file")
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
