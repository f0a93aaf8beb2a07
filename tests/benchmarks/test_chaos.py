"""A run killed and harmed again and again is, in the end, the run that nobody disturbed."""

import os

import pytest

from benchmarks import chaos
from benchmarks.train_process import PHASES

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KILLS = int(os.environ.get("MDLM_CHAOS_KILLS", "4"))


def test_killed_at_random_moments_it_ends_bit_by_bit_as_if_undisturbed(tmp_path):
    seen, different = chaos.compare(KILLS, 1, tmp_path)
    assert different == []
    assert len(seen) == KILLS and {kill.phase for kill in seen} <= {
        *PHASES,
        chaos.HANGUP,
        *chaos.HARMS,
    }
    # Progress is made in spite of them.
    assert seen[-1].kept > 0
    arrays, data = chaos.saved(tmp_path / "killed")
    assert {name.split("'")[1] for name in arrays} == {
        "step",
        "params",
        "opt_state",
        "ema",
        "watch",
    }
    steps = int(arrays["['step']"])
    assert data["position"] == 16 * steps and len(data["losses"]) == min(steps, 50)
    # What differs is seen.
    log = tmp_path / "killed" / "run" / "metrics.jsonl"
    log.write_text(log.read_text() + log.read_text().splitlines()[-1] + "\n")
    assert "twice" in chaos.differences(tmp_path / "undisturbed", tmp_path / "killed")[0]
