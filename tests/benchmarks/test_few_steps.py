"""Losses that promise fewer calls, measured on a known distribution."""

import numpy as np
import pytest

from benchmarks import few_steps
from mdlm.errors import InputError
from mdlm.models import Decoder


def test_unknown_methods_are_refused():
    with pytest.raises(InputError, match="--methods stpped: choose from plain, "):
        few_steps.run(["--methods", "stpped"])


def test_a_collapse_is_seen():
    """One row for all is likely, and has no entropy."""
    law = few_steps.ORACLE
    rows = law.draw(200, seed=0)
    true = few_steps.measured(rows)
    same = few_steps.measured(np.repeat(rows[law.log_p(rows).argmax()][None], 200, axis=0))
    assert same["nll"] < true["nll"] and same["h2"] < 0.8 * true["h2"]
    assert same["distance"] > 5 * true["distance"]


def test_the_control_is_credited_with_no_fewer_calls_than_it_takes():
    row = {"method": "plain", "seed": 0}
    rows = [
        {**row, "sampler": "random", "calls": 2.0, "distance": 0.4},
        {**row, "sampler": "random", "calls": 8.0, "distance": 0.2},
        {**row, "sampler": "bound", "calls": 6.0, "distance": 0.1},
    ]
    assert few_steps.best_of_control(rows, 0, 4.0) == pytest.approx(0.3)
    assert few_steps.best_of_control(rows, 0, 6.0) == pytest.approx(0.1)
    assert np.isnan(few_steps.best_of_control(rows, 0, 1.0))


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(monkeypatch, tmp_path):
    monkeypatch.setattr(few_steps, "NETWORK", Decoder(width=16, depth=1, heads=2))
    own = {name: ("random",) for name in ("exact", "plain", "coupled")}
    monkeypatch.setattr(few_steps, "OWN", own)
    monkeypatch.setattr(few_steps, "SAMPLERS", {"random": (few_steps.SAMPLERS["random"][0], (2,))})
    asked = ["--rows", "16", "--seeds", "1", "--base-steps", "2", "--steps", "3"]
    asked += ["--methods", "coupled", "--json", str(tmp_path / "few.json")]
    first = few_steps.run(asked)
    assert [r["method"] for r in first] == ["true rows", "exact", "coupled"]
    assert first[2]["calls"] == 2.0
    monkeypatch.setattr(few_steps, "trained", None)
    assert few_steps.run(asked)[2] == pytest.approx(first[2], nan_ok=True)
