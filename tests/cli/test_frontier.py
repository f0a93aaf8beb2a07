"""`mdlm frontier`: sweeps, kept texts, judges, refusals, the table and the picture."""

import io
import json
import re

import pytest
import tiny
from made_run import made
from PIL import Image

import mdlm
from mdlm.cli.frontier_picture import picture
from mdlm.cli.frontier_sweep import points_of
from mdlm.cli.frontier_table import Row, latex, table
from mdlm.cli.main import main, parser
from mdlm.data import Bytes, Dna, NoText, TextData, TextFiles, Wrap
from mdlm.evals.generated.measures import Measure
from mdlm.models import CausalTransformer, DiT
from mdlm.objectives import Autoregressive
from mdlm.samplers import LeftToRight

WORDS = ["frontier", "run", "--steps", "2", "4", "--temperature", "0.8", "--num", "6"]
SMALL = dict(width=16, depth=1, heads=2)
CAUSAL = dict(network=CausalTransformer(**SMALL), objective=Autoregressive(), sampler=LeftToRight())


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a run and a judge, which have random parameters."""
    folder = tmp_path_factory.mktemp("work")
    text = tiny.write_text(folder / "text.txt", words=1500)
    data = TextData(
        source=TextFiles(train=str(text)),
        tokenizer=Bytes(),
        packing=Wrap(length=32, row_specials=False),
    )
    network = DiT(**SMALL, cond_dim=16, dropout=0.0)
    made(folder / "run", tiny.experiment(text, data=data, network=network))
    judges = TextData(source=NoText(), tokenizer=Bytes(), packing=Wrap(length=48))
    made(folder / "judge", tiny.experiment(text, data=judges, **CAUSAL))
    return folder


@pytest.fixture(autouse=True)
def inside(work, monkeypatch):
    monkeypatch.chdir(work)


def results(capsys, *words):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def untimed(found):
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in found["rows"]]


def test_a_sweep_its_kept_texts_and_a_kill(work, capsys):
    found = results(capsys, *WORDS)
    grid = [{"steps": steps, "temperature": "0.8"} for steps in ("2", "4")]
    assert [row.get("settings") for row in found["rows"]] == [*grid, None]
    assert [row["nfe"] for row in found["rows"]] == [2, 4, None]
    assert found["rows"][-1]["real"] is True and all(row["texts"] == 6 for row in found["rows"])
    values = found["rows"][0]["measures"]
    assert values["nats per token"]["value"] > 0 < values["nats per token"]["stderr"]
    assert values["MAUVE"]["value"] is None
    # Random bytes against n-grams of a text of fifteen words.
    assert values["perplexity"]["value"] > 3 * found["rows"][-1]["measures"]["perplexity"]["value"]
    assert any("Kneser-Ney 5-gram of the " in line for line in found["protocol"])
    assert json.loads((work / "run/frontier/results.json").read_text()) == found
    with Image.open(work / "run/frontier.png") as image:
        assert image.size[0] > 500

    files = sorted((work / "run/frontier").glob("texts-*.jsonl"))
    assert len(files) == 2 and all(file.read_bytes().count(b"\n") == 6 for file in files)
    # A kill: one file has a torn line, another is not there yet.
    lines = files[0].read_bytes().splitlines(keepends=True)
    files[0].write_bytes(b"".join(lines[:3]) + lines[3][:20])
    files[1].unlink()
    assert main([*WORDS, "--json"]) == 0
    out, said = capsys.readouterr()
    assert said.count("3 of them new") == 1 and said.count("6 of them new") == 1
    assert untimed(json.loads(out)) == untimed(found)
    # Fewer texts are the first of those that are there; other settings have files of their own.
    assert main([*WORDS[:-1], "3", "--json"]) == 0
    out, said = capsys.readouterr()
    assert [row["texts"] for row in json.loads(out)["rows"]] == [3] * 3
    assert said.count("6 texts, 0 of them new") == 2
    assert main(["frontier", "run", "--steps", "2", "--num", "2", "--seed", "1"]) == 0
    assert len(list((work / "run/frontier").glob("texts-*.jsonl"))) == 3


def test_the_grid(work):
    """All combinations, each once, in the order of the options."""
    words = [
        "frontier",
        "run",
        "--top-p",
        "0.9",
        "--temperature",
        "1",
        "0.5",
        "1",
        "--steps",
        "2",
        "4",
    ]
    run = mdlm.load(work / "run")
    points = points_of(parser().parse_args(words), run)
    assert [(p.sampler.steps, p.sampler.temperature, p.sampler.top_p) for p in points] == [
        (2, 1.0, 0.9),
        (2, 0.5, 0.9),
        (4, 1.0, 0.9),
        (4, 0.5, 0.9),
    ]
    assert points[0].settings == {"steps": "2", "temperature": "1", "top_p": "0.9"}
    [alone] = points_of(parser().parse_args(words[:2]), run)
    assert alone.settings == {"sampler": "Ancestral(steps=16)"}


def test_a_network_judges(work, capsys):
    asked = ["frontier", "run", "--steps", "2", "--num", "6", "--judge", "judge"]
    assert main([*asked, "--plot", "other.png"]) == 0
    said = capsys.readouterr()
    assert "judge: judge, step 0; windows of 48 tokens, 24 new, first token scored" in said.out
    assert "MAUVE" in said.out.splitlines()[-5] and max(map(len, said.out.splitlines())) <= 80
    assert (work / "other.png").is_file() and "other.png: perplexity" in said.err
    short = results(capsys, *asked, "--context", "8", "--ends", "all", "--units", "tokens")
    assert "windows of 8 tokens, 4 new" in " ".join(short["protocol"])
    assert "end tokens read, scored" in " ".join(short["protocol"])
    assert 0 <= short["rows"][0]["measures"]["MAUVE"]["value"] <= 1


def test_longer_texts_and_latex(capsys):
    asked = ["frontier", "run", "--sampler", "Ancestral(steps=2)", "FirstHitting()", "--num", "2"]
    assert main([*asked, "--length", "40", "--latex"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("\\begin{tabular}{lrrr") and out.rstrip().endswith("\\end{tabular}")
    assert "FirstHitting()" in out and "distinct-3" in out and "\\pm" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num", "1"], "--num 1: must be from 2 to"),
        (["--batch", "0"], "--batch 0: must be from 1 to"),
        (["--length", "0"], "--length 0: must be from 1 to"),
        (["--json", "--latex"], "--json: not allowed with --latex"),
        (["--context", "8"], "--context 8: allowed with --judge RUN"),
        (["--sampler", "Nothing()"], "--sampler Nothing(): there is no Nothing"),
        (["--sampler", "FirstHitting()", "--steps", "4"], "FirstHitting(...) has no number of"),
        (["--steps", "0"], "steps=0: must be at least 1"),
        (["--temperature", "hot"], "--temperature hot: expected a number"),
        (["--heat", "1"], "--heat: mdlm frontier has no such option"),
        (["--plot", "nowhere/x.png"], "nowhere/x.png: cannot be written"),
        (["--judge", "none"], "none"),
        (["--judge", "run"], "run, step 0: its network does not go from left to right"),
        (["--judge", "judge", "--context", "99"], "context=99: judge, step 0 reads at most 48"),
    ],
)
def test_refusals(work, words, message, capsys):
    assert main(["frontier", "run", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


def test_a_judge_that_cannot_read_the_texts(work, tmp_path, capsys):
    data = TextData(source=NoText(), tokenizer=Dna(), packing=Wrap(length=48))
    made(tmp_path / "letters", tiny.experiment(tmp_path, data=data, **CAUSAL))
    asked = ["frontier", "run", "--steps", "2", "--num", "4", "--judge", str(tmp_path / "letters")]
    assert main(asked) == 2
    said = capsys.readouterr().err.splitlines()
    assert re.search(
        r"real text, text 0: the judge has no tokens for it: .*; take another", said[0]
    )
    assert len(said) == 1  # before a text is generated


def test_without_training_text(work, capsys):
    asked = ["frontier", "judge", "--num", "2"]
    assert main(asked) == 2
    assert "no n-grams of the training text: " in capsys.readouterr().err
    assert main([*asked, "--judge", "judge"]) == 0
    said = capsys.readouterr()
    assert "no real text to compare with" in said.err and "real text" not in said.out.split("+-")[1]


def rows():
    def row(perplexity, entropy, **settings):
        names = (
            "nats per token bits per byte distinct-1 distinct-2 distinct-3 repetition-4 self-BLEU"
        )
        numbers = {name: Measure(0.1234, 0.01) for name in names.replace(" per ", "_").split()}
        numbers = {name.replace("_", " per "): m for name, m in numbers.items()}
        numbers |= {"perplexity": perplexity, "entropy": entropy, "MAUVE": Measure(None)}
        costs = dict(nfe=16.0, tokens_per_second=1234.5) if settings else {}
        return Row(measures=numbers, texts=8, settings=settings, **costs)

    return [
        row(Measure(123.456, 7.89), Measure(4.2, 0.1), steps="16", temperature="0.8"),
        row(Measure(23.456, 0.5), Measure(4.4, None), steps="16", temperature="1.0"),
        row(Measure(12.0, 0.25), Measure(4.3, 0.1)),
    ]


def test_the_table_has_errors_below_and_numbers_below_their_headings():
    head, first, errors, *_, real, _ = table(rows()).splitlines()
    for word, value, error in (("PPL", "123.5", "7.9"), ("entropy", "4.200", "0.100")):
        at = head.index(word) + len(word)
        assert first[:at].endswith(value) and errors[:at].endswith(error)
    assert first.startswith("16 ") and first.endswith(" 16  1234") or first.endswith(" 16  1235")
    assert "MAUVE" not in head and real.startswith("real text ")
    assert real.index("12.00") + 5 == head.index("PPL") + 3


def test_latex_escapes():
    [one, *_] = rows()
    text = latex([one, *rows()[2:]])
    assert r"$123.5 \pm 7.9$" in text and "temperature" in text
    named = Row(measures=one.measures, texts=2, settings={"top_p": "50%"})
    assert r"top\_p" in latex([named]) and r"50\%" in latex([named])


def test_the_picture_marks_the_real_text():
    """Without it there is no star: the picture differs, and is a PNG of the same size."""
    whole, alone = picture(rows(), "a title"), picture(rows()[:2], "a title")
    assert Image.open(io.BytesIO(whole)).size == Image.open(io.BytesIO(alone)).size
    assert whole != alone
