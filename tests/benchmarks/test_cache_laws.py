"""Caches on a known distribution, and timed on made-up networks."""

from dataclasses import replace

import pytest

from benchmarks import cache_speed, oracle_caches
from mdlm.models import Decoder
from mdlm.samplers import Dual


@pytest.mark.slow
def test_distances_of_caches_that_read_all_are_those_of_none(monkeypatch):
    monkeypatch.setattr(oracle_caches, "NETWORK", Decoder(width=16, depth=2, heads=2))
    asked = ["--rows", "64", "--train-steps", "2", "--caches", "Dual(refresh=1)", "Dual()"]
    none, always, dual = oracle_caches.run(asked)
    assert (
        none["passes"] == always["passes"] == 1.0 and none["no cache"] == always["no cache"] == 0.0
    )
    assert always["distribution"] == none["distribution"] > 0
    # In each of four blocks one full call and seven of the block.
    assert dual["passes"] == pytest.approx((4 * 32 + 28 * 8) / 32 / 32)


@pytest.mark.slow
def test_calls_are_counted_from_the_prompt_on():
    tiny = dict(width=16, depth=1, heads=2, dtype="float32")
    blocks = replace(cache_speed.BLOCKS, length=64, prompt=32, rows=2)
    network = replace(blocks.network, cond_dim=8, **tiny)
    for cache in blocks.caches:
        shape = replace(blocks, network=network)
        assert cache_speed.timed(shape, replace(shape.sampler, cache=cache), 5)() == 5
    whole = replace(
        cache_speed.SHAPES["decoder"], network=Decoder(**tiny), length=48, prompt=16, caches=()
    )
    assert cache_speed.timed(whole, replace(whole.sampler, cache=Dual()), 99)() == 32
