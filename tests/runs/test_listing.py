"""The table of run folders."""

import json

from made_kept import HOSTILE, evaluation, hostile, kept

from mdlm.cli.main import main
from mdlm.cli.runs import table
from mdlm.runs.listing import differences, folders_in, listed


def test_settings_that_differ_are_named_one_by_one():
    muon = "Muon(learning_rate=0.01, schedule='wsd')"
    first = {"name": "'a'", "network": "DiT(width=64, depth=2)", "optimizer": muon, "seed": "1"}
    second = {"name": "'b'", "network": "DiT(width=32, depth=2)", "optimizer": muon}
    third = {"name": "'c'", "network": "Decoder(width=32)", "optimizer": muon, "seed": "1"}
    assert differences([first, second]) == [
        {"network.width": "64", "seed": "1"},
        {"network.width": "32", "seed": "default"},
    ]
    assert differences([first, third])[1] == {"network": "Decoder(width=32)"}
    assert differences([first]) == [{}]
    inner = [{"data": f"TextData(packing=Wrap(length={n}))"} for n in (8, 16)]
    assert differences(inner) == [{"data.packing.length": "8"}, {"data.packing.length": "16"}]


def test_numbers_are_the_newest_and_name_their_protocol():
    trained = kept("a")
    other = "valid, rows of 16, NELBO"
    imported = kept(
        "b",
        metrics=[],
        evaluations=[
            evaluation("nats per token", 4.0, other, step=7),
            evaluation("perplexity", 54.6, other, step=9),
        ],
    )
    one, two = listed([trained, imported])
    assert (one.step, one.value, one.stderr, one.tokens_per_second) == (100, 5.25, 0.125, 5000.0)
    assert (two.step, two.value, two.stderr, two.tokens_per_second) == (9, 4.0, 0.5, None)
    text = table([one, two])
    assert "5.2500 [1]" in text and "4.0000 [2]" in text and f"[2] {other}" in text
    assert "[1]" not in table([one]) and table([one]).endswith("valid, rows of 8, NELBO")


def test_numbers_and_settings_that_are_none_are_left_empty():
    (row,) = listed([hostile()])
    assert row.value is None and row.tokens_per_second is None and row.name == HOSTILE
    assert differences([{"network": HOSTILE}, {"network": "DiT("}])[1] == {"network": "DiT("}


def test_command(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        experiment = {"name": f"'{name}'", "seed": "1" if name == "a" else "2"}
        config = {
            "fingerprint": "0",
            "overrides": [],
            "checkpoints": None,
            "experiment": experiment,
        }
        (tmp_path / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text("{}", encoding="utf-8")
    assert [folder.name for folder in folders_in(tmp_path)] == ["a", "b", "c"]
    assert main(["runs", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [row["differs"] for row in json.loads(out)] == [{"seed": "1"}, {"seed": "2"}]
    assert "left out" in err and "/c/config.json" in err
    assert main(["runs", str(tmp_path / "a" / "config.json")]) == 2
    assert "folder not found" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["runs", str(tmp_path / "empty")]) == 2
    assert "no run folder" in capsys.readouterr().err
