"""The benchmark of attention, at toy sizes."""

import importlib.util
import json

import pytest

from benchmarks import attention
from mdlm.errors import InputError

TINY = ["--batch", "2", "--length", "12", "--heads", "2", "--head-width", "4"]
QUICK = ["--seconds", "0.001", "--rounds", "2"]


@pytest.mark.parametrize("causal", [[], ["--causal"]])
def test_every_implementation_is_measured_and_agrees(tmp_path, capsys, causal):
    torch = importlib.util.find_spec("torch") is not None
    out = tmp_path / "attention.json"
    chosen = [] if torch else ["--no-torch"]
    attention.run([*TINY, *QUICK, *causal, *chosen, "--json", str(out)])
    found = json.loads(out.read_text())
    assert [row["case"] for row in found["rows"]] == ["mdlm xla", "jax.nn xla"] + ["torch"] * torch
    assert found["flops"] == 12 * 2 * 2 * 12 * 12 * 4
    assert max(found["difference"].values()) < 1e-5
    for row in found["rows"]:
        assert row["tokens/s"] > 0 and row["MFU %"] > 0 and len(row["seconds"]) == 2
    assert found["rows"][0]["temp MiB"] is not None and found["rows"][0]["compile s"] > 0
    assert ("causal" if causal else "full") in capsys.readouterr().out


def test_sizes_are_checked():
    with pytest.raises(InputError, match="at least 1"):
        attention.run(["--length", "0"])
