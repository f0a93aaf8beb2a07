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
    times = harness.alternate(cases, rounds=4, seconds=0.05)
    assert {name: len(values) for name, values in times.items()} == {"slow": 4, "fast": 4}
    assert min(times["slow"]) >= 0.02 and min(times["fast"]) >= 0.005
    # Not of all the calls of a turn, which last 0.05.
    assert min(times["fast"]) < 0.03
    # After two calls each to warm up, every round has both; the second goes backwards.
    turns = [
        name for name, before in zip(order[4:], [None, *order[4:]], strict=False) if name != before
    ]
    assert turns == ["slow", "fast", "slow", "fast", "slow"]
    assert order.count("fast") > order.count("slow")


def test_alternate_calls_long_cases_as_often_as_told():
    order = []
    cases = {name: lambda name=name: order.append(name) for name in "ab"}
    times = harness.alternate(cases, rounds=2, calls=1)
    assert order == ["a", "b", "b", "a"]
    assert len(times["a"]) == 2


def test_alternate_notices_other_processes(monkeypatch, capsys):
    readings = iter([(10.0, 100.0), (10.1, 104.0), (10.0, 100.0), (12.0, 104.0)])
    monkeypatch.setattr(harness, "_busy", lambda: next(readings))
    alone = harness.alternate({"a": lambda: None}, rounds=1, calls=1)
    assert alone.others == pytest.approx(0.025) and not capsys.readouterr().err
    disturbed = harness.alternate({"a": lambda: None}, rounds=1, calls=1)
    assert disturbed.others == pytest.approx(0.5) and "50%" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_alternate_waits_for_results(monkeypatch, backend):
    """After each call on a CPU, after the last of a turn elsewhere."""
    x = jnp.ones((512, 512))
    step = harness.build(lambda x: x @ x @ x @ x, x)
    waited = []
    monkeypatch.setattr(harness.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(
        harness.jax, "block_until_ready", lambda y: waited.append(y.block_until_ready())
    )
    times = harness.alternate({"product": lambda: step.call(x)}, rounds=1, calls=1)
    # 0.8 GFLOP: no machine of today returns them in 20 microseconds.
    assert min(times["product"]) > 2e-5
    assert len(waited) == (2 if backend == "cpu" else 1)


def test_ratio_is_that_of_the_rounds():
    """A machine ten times slower in two of five rounds: the ratio stays, that of medians not."""
    ours, theirs = [1.0, 1.0, 10.0, 10.0, 10.0], [2.0, 2.0, 20.0, 20.0, 2.0]
    assert harness.ratio(theirs, ours) == 2.0
    assert harness.median(theirs) / harness.median(ours) != 2.0
    assert harness.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0


def test_report_prints_a_table_and_writes_json(tmp_path, capsys):
    rows = [
        {"case": "ours", "tokens/s": 12345.6, "peak MiB": 1.25, "seconds": [0.1, 0.2]},
        {"case": "reference", "tokens/s": 7, "peak MiB": None, "MFU": 0.00012},
    ]
    out = tmp_path / "deep" / "table.json"
    harness.report("A table", rows, out, sizes={"width": 8})
    title, heading, ours, reference, where = capsys.readouterr().out.splitlines()
    assert title == "A table" and str(out) in where
    assert heading.split() == ["case", "tokens/s", "peak", "MiB", "MFU"]
    assert ours.split() == ["ours", "12,346", "1.250", "-"]
    assert reference.split() == ["reference", "7", "-", "1.2e-04"]
    assert ours.index("12,346") + 6 == reference.index("7") + 1
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
