"""Results of `mdlm eval` are kept, and the earlier one is found."""

import json

from mdlm.evals.nll import Metric
from mdlm.runs.evaluations import FILE, beside, earlier, record

ONE = vars(Metric("nats per token", 2.5, 0.01, 0.02, 100, "valid, rows of 32"))
KEY = ONE["name"], ONE["protocol"]


def test_results_are_kept_and_the_newest_of_a_protocol_is_found(tmp_path):
    assert earlier(tmp_path).get(KEY) is None and beside(tmp_path, 10, [ONE]) == []
    record(tmp_path, 10, [ONE, dict(ONE, protocol="test", value=9.0)])
    record(tmp_path, 20, [dict(ONE, value=2.25, stderr=None)])
    found = earlier(tmp_path).get(KEY)
    assert found is not None and (found["value"], found["step"], found["stderr"]) == (
        2.25,
        20,
        None,
    )
    assert {"mdlm", "jax"} == set(found["versions"]) and found["stderr_rows"] == 0.02
    date = found["date"][:10]
    assert beside(tmp_path, 20, [ONE]) == [f"nats per token: 2.2500 on {date}"]
    assert beside(tmp_path, 30, [ONE]) == [f"nats per token: 2.2500 on {date}, step 20"]
    other = dict(ONE, protocol="test")
    assert beside(tmp_path, 10, [other]) == [f"nats per token: 9.0000 +- 0.0100 on {date}"]


def test_lines_that_cannot_be_read_are_passed_over(tmp_path):
    record(tmp_path, 10, [ONE])
    with open(tmp_path / FILE, "a") as file:
        file.write('{"name": "nats per token"\n[]\n' + json.dumps({"name": "x"}) + "\n")
    assert (earlier(tmp_path).get(KEY) or {})["value"] == 2.5
