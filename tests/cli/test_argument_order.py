"""Options, settings and arguments of a command in any order."""

import itertools

import pytest

from mdlm.cli.arguments import overrides
from mdlm.cli.main import main, parser

IMPORT = (["weights.pt"], ["tiny.py"], ["--out", "run"], ["--dtype=bfloat16"])
SETTING = ["--data.packing.length", "32"]


def parsed(*groups):
    words = [word for group in groups for word in group]
    args, rest = parser().parse_known_args(words)
    return vars(args), overrides(rest)


@pytest.mark.parametrize("order", [*itertools.permutations(range(5))][::7])
def test_import(order):
    groups = [*IMPORT, SETTING]
    # Two arguments are told apart by their order alone.
    args, settings = parsed(["import"], *(groups[i] for i in order))
    names = ["weights.pt", "tiny.py"]
    if order.index(1) < order.index(0):
        names.reverse()
    assert [args["checkpoint"], args["experiment"]] == names
    assert (args["out"], args["dtype"]) == ("run", "bfloat16")
    assert settings == [("data.packing.length", "32")]


@pytest.mark.parametrize("setting", [["--name", "7"], ["--train.steps=7"], ["--train.steps", "7"]])
def test_settings_before_the_experiment(setting):
    args, settings = parsed(["train"], setting, ["quick"], ["--out", "run"])
    assert (args["experiment"], args["out"]) == ("quick", "run")
    assert [value for _, value in settings] == ["7"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("import --out run", "the following arguments are required: checkpoint"),
        ("import folder", "the following arguments are required: --out"),
        ("import a.pt b.py c --out run", "c: not an option or setting"),
        ("import folder --out run --data.packing.length", "a value is missing"),
        ("export run --to out --shards 3", "--shards: mdlm export has no such option"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, words, says):
    try:
        code = main(words.split())
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1 and says in err, err
