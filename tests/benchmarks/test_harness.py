"""Timing in turns, and the table: on toy cases."""

import json
import time

import jax.numpy as jnp
import pytest

from benchmarks import harness


def test_build_compiles_and_measures():
    built = harness.build(lambda x: jnp.sin(x @ x).sum(), jnp.ones((64, 64)))
    assert float(built.call(jnp.zeros((64, 64)))) == 0
    assert built.compile_seconds > 0
    assert built.temp_bytes is not None and built.peak_bytes is not None
    assert built.peak_bytes >= built.temp_bytes + 64 * 64 * 4


def test_donated_memory_counts_once():
    x = jnp.ones((256, 256))
    fresh = harness.build(lambda x: x + 1, x)
    donated = harness.build(lambda x: x + 1, x, donate_argnums=0)
    assert fresh.peak_bytes - donated.peak_bytes == x.nbytes


def test_alternate_takes_turns_and_measures_seconds_per_call():
    order = []

    def case(name, seconds):
        def call():
            order.append(name)
            time.sleep(seconds)

        return call

    cases = {"slow": case("slow", 0.02), "fast": case("fast", 0.005)}
    times = harness.alternate(cases, rounds=4, seconds=0.02)
    assert {name: len(values) for name, values in times.items()} == {"slow": 4, "fast": 4}
    assert min(times["slow"]) >= 0.02 and min(times["fast"]) >= 0.005
    assert harness.median(times["slow"]) < 0.06
    # After three calls each to warm up, every round has both; the second goes backwards.
    turns = [
        name for name, before in zip(order[6:], [None, *order[6:]], strict=False) if name != before
    ]
    assert turns == ["slow", "fast", "slow", "fast", "slow"]
    assert order.count("fast") > order.count("slow")


def test_alternate_waits_for_results():
    x = jnp.ones((512, 512))
    step = harness.build(lambda x: x @ x @ x @ x, x)
    times = harness.alternate({"product": lambda: step.call(x)}, rounds=3, seconds=0.01)
    # 0.8 GFLOP: no machine of today returns them in 20 microseconds.
    assert min(times["product"]) > 2e-5


def test_ratio_is_that_of_the_rounds():
    """A machine ten times slower in two of five rounds: the ratio stays, that of medians not."""
    ours, theirs = [1.0, 1.0, 10.0, 10.0, 10.0], [2.0, 2.0, 20.0, 20.0, 2.0]
    assert harness.ratio(theirs, ours) == 2.0
    assert harness.median(theirs) / harness.median(ours) != 2.0
    assert harness.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0


def test_report_prints_a_table_and_writes_json(tmp_path, capsys):
    rows = [
        {"case": "ours", "tokens/s": 12345.6, "peak MiB": 1.25, "seconds": [0.1, 0.2]},
        {"case": "twin", "tokens/s": 7, "peak MiB": None, "MFU": 0.00012},
    ]
    out = tmp_path / "deep" / "table.json"
    harness.report("A table", rows, out, sizes={"width": 8})
    title, heading, ours, twin, where = capsys.readouterr().out.splitlines()
    assert title == "A table" and str(out) in where
    assert heading.split() == ["case", "tokens/s", "peak", "MiB", "MFU"]
    assert ours.split() == ["ours", "12,346", "1.250", "-"]
    assert twin.split() == ["twin", "7", "-", "1.2e-04"]
    assert ours.index("12,346") + 6 == twin.index("7") + 1
    written = json.loads(out.read_text())
    assert written["rows"] == rows and written["sizes"] == {"width": 8}
    for name in ("date", "command", "commit", "versions", "device_kind", "processor", "cores"):
        assert name in written["environment"], name


def test_parser_reads_sizes_by_the_type_of_their_default():
    parser = harness.parser("toy", "A toy.", width=256, dropout=0.1)
    args = parser.parse_args(["--width", "32", "--json", "x.json"])
    assert (args.width, args.dropout, args.json, args.seconds) == (32, 0.1, "x.json", 1.0)
    with pytest.raises(SystemExit):
        parser.parse_args(["--width", "wide"])


def test_long_work_says_so(monkeypatch, capsys):
    monkeypatch.setattr(harness, "PATIENCE", 0.05)
    with harness.working("short"):
        pass
    with harness.working("long") as say:
        time.sleep(0.2)
        say("second part")
        time.sleep(0.5)
    told = capsys.readouterr().err
    assert "short" not in told and "long (" in told and "second part" in told
