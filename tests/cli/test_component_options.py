"""`--process` is a number of a process or the noise process; components in the other commands."""

import json
from pathlib import Path

import pytest
from shipped_files import causal

from mdlm.cli.main import main, parser
from mdlm.cli.settings import said_of
from mdlm.config.overrides import names
from mdlm.experiment import load_file, shipped

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
QUICK = str(EXPERIMENTS / "quickstart.py")


@pytest.mark.parametrize(
    ("words", "number", "components"),
    [
        (["--process", "3"], 3, ()),
        (["--process=0"], 0, ()),
        (["--process", "Masked()"], None, [("process", "Masked()")]),
        (["--process", "1", "--process", "Uniform"], 1, [("process", "Uniform")]),
    ],
)
def test_a_number_is_which_process_and_anything_else_the_noise(words, number, components):
    args, rest = parser().parse_known_args(["train", QUICK, *words])
    assert args.process == number and not rest
    assert list(getattr(args, "components", ())) == list(components)


def test_settings_take_components_and_list_them(capsys):
    words = ["--process", "Masked(schedule=Cosine)", "--network", "DiT(width=64, depth=2, heads=2)"]
    assert main(["settings", QUICK, *words]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--")]
    found = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert found["--process"].startswith("Masked(schedule=Cosine())")
    assert found["--process.schedule"].startswith("Cosine()")
    assert found["--network.width"].startswith("64")
    assert found["--network"].endswith("Network")


@pytest.mark.parametrize("name", shipped.names())
def test_every_setting_has_a_sentence(name):
    base = causal if name == "ar_to_diffusion" else lambda: load_file("quickstart")
    experiment = load_file(name, base=base)
    missing = [n for n, _, value in names(experiment) if not said_of(experiment, n, value)]
    assert not missing


def test_every_kind_of_component_is_listed_with_sentences(capsys):
    for kind in ("networks", "schedules", "objectives", "sources", "samplers"):
        assert main(["components", kind]) == 0
    assert main(["samplers"]) == 0
    said = capsys.readouterr().out
    assert "    top_p: " in said and "    temperature: " in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tran", "quickstart"], "tran: no such command; did you mean train?"),
        (["zzz"], "zzz: no such command; choose one of experiments, new,"),
        (
            ["sample", "x", "--topp", "1"],
            "--topp: mdlm sample has no such option; did you mean --top-p?",
        ),
        (["sample", "x", "--top_p", "1"], "x: not a run folder"),
        (
            ["sample", "x", "--top_p=1", "--no_such", "3"],
            "--no_such: mdlm sample has no such option;",
        ),
    ],
)
def test_the_nearest_command_or_option_is_named(words, message, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"mdlm: {message}")


def test_a_plan_takes_components(capsys):
    words = ["plan", QUICK, "--topology", "gpu:1xH100", "--vocab", "70", "--json"]
    network = ["--network", "DiT(width=64, depth=2, heads=2)", "--optimizer", "AdamW"]
    assert main([*words, *network]) == 0
    small = json.loads(capsys.readouterr().out)["parameters"]
    assert main([*words, *network, "--network.depth", "3"]) == 0
    assert small < json.loads(capsys.readouterr().out)["parameters"]


def test_prepare_takes_components(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("a line of text\n" * 200)
    words = ["prepare", QUICK, "--out", str(tmp_path / "store"), "--workers", "1"]
    words += ["--data.source", f"TextFiles(train={str(tmp_path / 'text.txt')!r})"]
    words += ["--data.tokenizer", "Characters", "--data.packing", "Wrap(length=8)"]
    assert main(words) == 0
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["source"] == f"TextFiles(train={str(tmp_path / 'text.txt')!r})"
    assert manifest["tokenizer"] == "Characters()"
    assert main(words) == 0  # the store is known again
    assert "was complete" in capsys.readouterr().out

    # A store from before texts left defaults out.
    manifest["source"] = manifest["source"].replace("(", "(clean=None, valid=None, ")
    manifest["tokenizer"] = "Characters(lowercase=False)"
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest))
    special = json.loads((tmp_path / "store" / "special_tokens.json").read_text())
    special["made_by"] = "Characters(lowercase=False)"
    (tmp_path / "store" / "special_tokens.json").write_text(json.dumps(special))
    assert main(words) == 0
    words[words.index("Characters")] = "Characters(lowercase=True)"
    capsys.readouterr()
    assert main(words) == 2
    assert "this experiment has Characters(lowercase=True)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["settings", QUICK, "--network", "DiT(widht=3)"], "did you mean width?"),
        (["settings", QUICK, "--process", "Cosine()"], "expected Hybrid(...)"),
        (["settings", QUICK, "--objective", "Autoregressive()"], "needs a network that"),
        (
            ["view", str(EXPERIMENTS)],
            "is a folder; give a file that `mdlm sample RUN",
        ),
        (["view", "nothing"], "nothing: no such file; give a file that"),
        (["components", "nothing"], "nothing: no kind of component"),
        (["eval", "run", "--process", "Masked()"], "--process: mdlm eval has no such option"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mdlm: ") and message in line


def test_components_are_listed(capsys):
    assert main(["components"]) == 0
    assert "LogLinear" in capsys.readouterr().out
    assert main(["components", "schedules"]) == 0
    assert "Cosine(eps=0.001)\n    alpha = eps" in capsys.readouterr().out
    assert main(["samplers"]) == 0
    listed = capsys.readouterr().out
    assert "BlockByBlock(block_size, steps=128" in listed  # required settings come first
    assert main(["samplers"]) == 0
    assert "Threshold(tau=0.9, least=1)" in capsys.readouterr().out
