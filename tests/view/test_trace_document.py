"""The file format of a trace: a round trip; other content is refused in one line."""

import json

import made_trace
import numpy as np
import pytest

from mdlm.errors import InputError
from mdlm.view.document import dumps, loads


def test_a_trace_is_the_same_after_a_round_trip():
    trace = made_trace.trace()
    again = loads(dumps(trace).encode(), "x")
    for name in ("sampler", "mask_id", "pieces", "origin"):
        assert getattr(again, name) == getattr(trace, name)
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


def test_a_trace_without_its_origin_is_read():
    document = json.loads(dumps(made_trace.trace()))
    del document["origin"]
    assert loads(json.dumps(document).encode(), "x").origin == ""


def changed(**fields):
    return json.dumps({**json.loads(dumps(made_trace.trace())), **fields}).encode()


def events(*values):
    return changed(rows=[{"start": [0, 9], "events": list(values)}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a trace: `mdlm sample --trace"),
        (b"\x89PNG\xff\x00", "is not a trace"),
        (b'{"loss": 3}', "is not a trace"),
        (b"[1, 2]", "is not a trace"),
        (dumps(made_trace.trace())[:-40].encode(), "is a truncated or damaged trace"),
        (changed(mdlm_trace=2), "of version 2: this mdlm reads version 1"),
        (changed(pieces={"0": "The"}), "pieces lacks the text of token 1"),
        (changed(pieces=[]), "is a damaged trace"),
        (changed(steps=7), "one number for each step"),
        (changed(rows=[]), "length >= 1 - at `$.rows`"),
        (changed(rows=[{"start": [0]}]), "missing required field `events`"),
        (changed(mask="m"), "Expected `int`, got `str` - at `$.mask`"),
        (events([1, 2, 0, 0.5]), "the position must be from 0 to 1"),
        (events([1, -1, 0, 0.5]), "the position must be from 0 to 1"),
        (events([6, 1, 0, 0.5]), "the step must be from 0"),
        (events([2, 1, 0, 0.5], [1, 1, 1, 0.5]), "the step must be from 2"),
        (events([1, 1, 0, 1.5]), "Expected `float` <= 1.0"),
        (events([1, 1, 0, float("nan")]), "JSON is malformed"),
        (events([1, 1, 0]), "is a damaged trace"),
        (events([1, 1, 0.5, 0.5]), "Expected `int`, got `float`"),
    ],
)
def test_anything_else_is_refused_in_one_line(content, message):
    with pytest.raises(InputError, match="^some.file ") as refusal:
        loads(content, "some.file")
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
