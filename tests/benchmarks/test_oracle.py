"""The table of samplers against distributions that are known."""

import pytest

from benchmarks import oracle


def test_distances_are_printed(capsys):
    words = ["--rows", "500", "--samplers", "Ancestral(steps=1)"]
    assert oracle.main(words) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "Ancestral" in line]
    calls = [row.split("|")[2].strip() for row in rows]
    distances = [float(row.split("|")[3]) for row in rows]
    assert calls == ["1", "1"] and 0.3 < distances[0] < 0.45 and 0.1 < distances[1] < 0.2
    with pytest.raises(SystemExit):
        oracle.main(["--samplers", "Ancestral(steps=0)"])
    assert "steps=0: must be at least 1" in capsys.readouterr().err
