"""`mdlm eval` by noise level, by steps, from both sides, and on all texts of the literature."""

import json
from dataclasses import replace

import pytest
import tiny
from made_run import made

from mdlm.cli.main import main
from mdlm.evals.zero_shot_table import SEVEN, Scored, latex, table
from mdlm.models import CausalTransformer, DiT
from mdlm.objectives import Autoregressive, DiscreteNelbo
from mdlm.runs.evaluations import FILE
from mdlm.samplers import LeftToRight

SIZES = dict(width=16, depth=1, heads=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modes")
    text = tiny.write_text(folder / "text.txt", words=900)
    return made(folder / "tiny_run", tiny.experiment(text, network=DiT(**SIZES, cond_dim=16)))


@pytest.fixture
def said(run, capsys):
    def call(*words, code=0):
        assert main(["eval", str(run.folder.path), *map(str, words)]) == code
        out = capsys.readouterr()
        return out.out if code == 0 else out.err

    return call


def nats(metrics) -> float:
    return next(m["value"] for m in metrics if m["name"] == "nats per token")


def kept(run) -> list[dict]:
    return [json.loads(line) for line in (run.folder.path / FILE).read_text().splitlines()]


def test_by_noise_level(run, said, tmp_path):
    picture = tmp_path / "levels.png"
    found = json.loads(said("--levels", 4, "--passes", 2, "--plot", picture, "--json"))
    parts = found["levels"]
    assert [(one["low"], one["high"]) for one in parts] == [(i / 4, (i + 1) / 4) for i in range(4)]
    added = sum(one["nats"]["value"] for one in parts)
    assert added == pytest.approx(nats(found["metrics"]), rel=1e-6)
    assert all(one["cross_entropy"]["stderr"] > 0 for one in parts)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    text = said("--levels", "--passes", 2)
    assert len([line for line in text.splitlines() if line.startswith("  (0.")]) == 9
    assert "by noise level:" in text and "before: nats per token" in text
    assert max(map(len, text.splitlines()[1:])) <= 80


def test_by_steps(run, said):
    found = json.loads(said("--steps", 2, 8, "--passes", 2, "--json"))
    assert [one["steps"] for one in found] == [2, 8, None]
    how = run.experiment.evaluation
    for one in found:
        objective = None if one["steps"] is None else DiscreteNelbo(steps=one["steps"])
        again = run.perplexity(replace(how, passes=2, objective=objective))
        assert nats(one["metrics"]) == pytest.approx(again[0].value)
    protocols = {line["protocol"] for line in kept(run)}
    assert any("discrete time, 2 steps," in one for one in protocols)
    assert any("discrete time, 8 steps," in one for one in protocols)
    text = said("--steps", 2, "--passes", 1)
    assert "  2 steps  " in text and "  as the run reports it" in text
    assert max(map(len, text.splitlines()[1:])) <= 80


def test_from_both_sides(run, said):
    found = json.loads(said("--bracket", 4, "--rows", 3, "--json"))
    upper, together, lower = (m for m in found["metrics"] if m["name"] == "nats per token")
    assert upper["value"] >= together["value"] > lower["value"]
    assert found["loose"] == pytest.approx(upper["value"] - lower["value"])
    assert 1 <= found["effective"] <= 4 == found["paths"]
    for metric, words in (
        (upper, "NELBO over random orders, 4 for each row"),
        (lower, "TUBE of 4"),
    ):
        assert metric["protocol"].startswith("valid, first 3 rows, wrapped rows of 32, ")
        assert words in metric["protocol"] and metric["n"] == 3 * 32
        assert metric["stderr"] > 0 and metric["stderr_rows"] > 0
    # The mean over orders is the bound that the run reports, of the same rows.
    again = run.bracket(paths=64, rows=3)
    assert again.metrics[0].value == pytest.approx(upper["value"], abs=5 * upper["stderr"])
    assert run.bracket(paths=4, rows=3).metrics[0].value == pytest.approx(upper["value"])
    text = said("--bracket", 4, "--rows", 3)
    assert "The NLL is between" in text and "of 4 orders carry the mean" in " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--levels", "3", "--steps", "4"], "--levels: not allowed with --steps"),
        (["--bracket", "4", "--on", "all"], "--bracket: not allowed with --on all"),
        (["--bracket", "1"], "--bracket 1: must be at least 2"),
        (["--steps", "4", "0"], "--steps 0: must be at least 1"),
        (["--levels", "0"], "--levels 0: must be at least 1 and at most 1000"),
        (["--levels", "1000000"], "--levels 1000000: must be at least 1 and at most 1000"),
        (["--bracket", "1000000"], "--bracket 1000000: must be at least 2 and at most 4096"),
        (["--plot", "x.png"], "--plot: allowed with --levels only"),
        (["--rows", "3"], "--rows: allowed with --bracket only"),
        (["--latex"], "--latex: allowed with --on all only"),
        (["--on", "all", "--latex", "--json"], "--latex: not allowed with --json"),
        (["--on", "all", "--data", "a.txt"], "--on all --data a.txt: give one folder"),
        (["--bracket", "4", "--objective", "Nelbo()"], "--objective: not allowed with --bracket"),
        (["--levels", "--plot", "no/x.png"], "no/x.png: cannot be written"),
    ],
)
def test_refusals(said, words, message):
    assert message in said(*words, code=2)


def test_an_exact_likelihood_has_neither_levels_nor_sides(tmp_path, capsys):
    text = tiny.write_text(tmp_path / "text.txt", words=600)
    settings = dict(
        network=CausalTransformer(**SIZES), objective=Autoregressive(), sampler=LeftToRight()
    )
    made(tmp_path / "run", tiny.experiment(text, **settings))
    for mode, message in (
        (["--levels"], "a likelihood without noise: it has no noise levels"),
        (["--bracket", "4"], "the likelihood of this run is exact: there is nothing to bound"),
        (["--steps", "4"], "needs a network that attends to all tokens"),
    ):
        assert main(["eval", str(tmp_path / "run"), *mode]) == 2
        assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "ptb.txt").write_text("no it was n't black monday\n" * 20)
    (folder / "wikitext2.txt").write_text(" = Title = \n a 1 @,@ 000 , b . \n" * 20)
    line = json.dumps({"text": "“one two” three"}, ensure_ascii=False) + "\n"
    (folder / "lambada.jsonl").write_text(line * 20, encoding="utf-8")
    (folder / "arxiv.txt").write_bytes(b"\xff\xfe not utf-8 \xff")
    return folder


def test_all_texts_in_one_table(run, said, texts):
    found = {one["name"]: one for one in json.loads(said("--on", "all", "--data", texts, "--json"))}
    assert list(found) == list(SEVEN)
    alone = json.loads(said("--on", "ptb", "--data", texts / "ptb.txt", "--json"))
    assert found["ptb"]["metrics"] == alone
    assert "cleaned by Lambada(), test, " in found["lambada"]["metrics"][0]["protocol"]
    assert found["ptb"]["published"] == {"ar": 82.05, "sedd": 100.09, "mdlm": 95.26}
    assert f"{texts} has no folder pubmed and no file pubmed.*" in found["pubmed"]["error"]
    assert "arxiv.txt" in found["arxiv"]["error"] and not found["arxiv"]["metrics"]
    text = said("--on", "all", "--data", texts)
    assert len([line for line in text.splitlines() if "not evaluated, see below" in line]) == 4
    assert f"pubmed: {texts} has no" in text
    shown = said("--on", "all", "--data", texts, "--latex").splitlines()
    assert shown[0].startswith("% perplexities") and shown[-1] == r"\end{tabular}"
    [own] = [line for line in shown if line.startswith(r"tiny\_run & $\leq$ ")]
    assert own.count("&") == 7 and own.count("--") == 4 and own.count(r"$\pm$") == 3


def test_if_no_text_can_be_read(said, tmp_path):
    assert "no folder or file of a text" in said("--on", "all", "--data", tmp_path, code=2)
    (tmp_path / "ptb.txt").write_bytes(b"\xff")
    assert "--on all: no text can be evaluated; ptb: " in said(
        "--on", "all", "--data", tmp_path, code=2
    )


def test_published_numbers_stand_in_the_table():
    found = [Scored(name=name, error="not here") for name in SEVEN]
    lines = latex(found, "a_b", is_exact=True, length=1024).splitlines()
    assert " & PTB & Wikitext & LM1B & Lambada & AG News & Pubmed & Arxiv \\\\" in lines
    assert lines[-5].startswith("MDLM (published) & $\\leq$ 95.26 & $\\leq$ 32.83 & $\\leq$ 67.01")
    assert lines[-3] == r"a\_b & -- & -- & -- & -- & -- & -- & -- \\"
    assert "ptb: not here" in table(found, length=1024)
