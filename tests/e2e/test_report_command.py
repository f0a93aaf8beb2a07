"""`mdlm report` and `mdlm blanks`, as the command line does them."""

import json
import re
from dataclasses import replace

import pytest
import tiny
from made_run import made
from test_cli import mdlm, refused

from mdlm.data import Text8

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    text = tiny.write_text(folder / "text.txt")
    first = tiny.experiment(text)
    letters = replace(first.data, tokenizer=Text8())
    for name, experiment in {
        "one": first,
        "two": replace(first, network=replace(first.network, width=16)),
        "letters": replace(first, data=letters),
    }.items():
        made(folder / name, experiment)
    (folder / "folder").mkdir()
    return folder


def test_blanks_and_a_report_of_them(work):
    asked = ("--blank", 1, 3, "--at", "middle", "end", "--num", 4, "--steps", 4)
    out = mdlm("blanks", "one", *asked, cwd=work)
    assert out.returncode == 0, out.stderr[-2000:]
    assert max(map(len, out.stdout.splitlines())) <= 80
    assert "3 middle" in out.stdout and "unchanged in 100.0% of the fillings" in out.stdout
    assert "filled by Ancestral(temperature=0.0, steps=4)" in out.stdout.replace("\n", " ")
    again = mdlm("blanks", "one", *asked, "--json", cwd=work)
    found = {metric["name"]: metric for metric in json.loads(again.stdout)}
    assert len(found) == 4 * 8 and "blank of 3, end: gain over left side" in found
    assert found["blank of 1, end: given tokens kept"]["value"] == 1
    kept = [json.loads(line) for line in (work / "one/evaluations.jsonl").read_text().splitlines()]
    assert [line["name"] for line in kept] == [*found, *found]

    out = mdlm("eval", "one", "--levels", 4, "--passes", 2, cwd=work)
    assert out.returncode == 0, out.stderr[-2000:]
    out = mdlm(
        *("report", "one", "two", "letters", "--html", "page.html"),
        *("--paired", "--samples", 1, "--rows", 4),
        cwd=work,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    assert out.stdout == "page.html: 3 runs; open it in a browser\n"
    page = (work / "page.html").read_text(encoding="utf-8")
    assert page.count("<iframe") == 3 and page.count("their tokenizers differ") == 2
    [row] = re.findall(r"<td>one &minus; two</td>(.*?)</tr>", page)
    value, paired, unpaired, noise, rows = re.findall(r">(-?[\d.,]+)<", row)
    assert float(paired) < float(unpaired) and float(noise) > 0 and rows == "4"
    assert "valid, first 4 rows, wrapped rows of 32, NELBO" in page
    assert "3, middle" in page and "mdlm blanks two" in page and "mdlm frontier one" in page
    assert page.count("nats per masked token over noise level t: one") == 1
    assert "mdlm eval two --levels" in page and "mdlm eval one" not in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "one", "--html", "folder"], "folder: cannot be written; name a file in an"),
        (["report", "folder", "--html", "p"], "folder: not a run folder (no config.json)"),
        (["report", "none", "--html", "p"], "none: not a run folder (no config.json)"),
        (["report", "one"], "the following arguments are required: --html"),
        (["report", "one", "--html", "p", "--paired"], "--paired: allowed with two runs at least"),
        (["report", "one", "--html", "p", "--samples", "-1"], "--samples -1: must be at least 0"),
        (["blanks", "one", "--blank", "0"], "lengths=0: must be at least 1"),
        (["blanks", "one", "--blank", "33"], "lengths=33: 0 rows of the split have room"),
        (["blanks", "one", "--temperature", "x"], "--temperature x: expected a number"),
    ],
)
def test_refusals(work, words, message):
    assert message in refused(*words, cwd=work)


def test_a_run_without_results(work):
    out = mdlm("report", "letters", "--html", "alone.html", cwd=work)
    assert out.returncode == 0, out.stderr[-2000:]
    page = (work / "alone.html").read_text(encoding="utf-8")
    assert "Curves of letters: <code>mdlm train</code> adds them" in page
    assert "<svg" not in page and "<iframe" not in page
