"""The table of caches: what it says of a cache that changes nothing, and of one that does."""

import pytest
import tiny

import mdlm
from benchmarks import caches
from mdlm.experiment import Training
from mdlm.models import BlockDiT, Decoder
from mdlm.objectives import BlockNelbo
from mdlm.samplers import BlockByBlock


def made(folder, **parts):
    text = tiny.write_text(folder / "text.txt")
    mdlm.train(
        tiny.experiment(text, train=Training(steps=3, batch_size=8), **parts), folder / "run"
    )
    return str(folder / "run")


@pytest.mark.slow
def test_a_network_that_attends_to_everything(tmp_path):
    run = made(tmp_path, network=Decoder(width=32, depth=2, heads=2))
    asked = ["--num", "2", "--new", "16", "--block-size", "8", "--rounds", "1", "--caches"]
    plot = tmp_path / "caches.png"
    rows = caches.run([run, *asked, "Prefix(refresh=1)", "Dual()", "--plot", str(plot)])
    none, always, dual = rows
    assert [row["cache"] for row in rows] == ["none", "Prefix(refresh=1)", "Dual()"]
    assert none["exact"] and not dual["exact"]
    assert always["same"] == 1.0 and always["largest"] < 1e-4 and none["largest"] < 1e-4
    assert always["passes"] == pytest.approx(none["passes"]) == pytest.approx(1.0)
    # Two full calls of 32 positions, and 14 of 8.
    assert dual["passes"] == pytest.approx((2 * 32 + 14 * 8) / (16 * 32))
    assert dual["KL"] > always["KL"] and dual["MFLOP"] < 0.5 * none["MFLOP"]
    assert plot.stat().st_size > 10_000


@pytest.mark.slow
def test_diffusion_blocks(tmp_path):
    parts = dict(
        network=BlockDiT(width=32, depth=2, heads=2, cond_dim=16, block_size=8),
        objective=BlockNelbo(block_size=8),
        sampler=BlockByBlock(block_size=8, steps=8),
    )
    run = made(tmp_path, **parts)
    none, kept = caches.run([run, "--num", "2", "--new", "16", "--rounds", "1"])
    assert kept["exact"] and kept["same"] == 1.0 and kept["largest"] < 1e-4
    assert none["passes"] == pytest.approx(1.0) and kept["passes"] < 0.4
