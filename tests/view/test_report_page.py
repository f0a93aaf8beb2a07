"""The report as text: what it shows, what it says is missing, and that no text becomes markup."""

import re
from html.parser import HTMLParser
from typing import Any

import made_trace
import pytest
from made_kept import HOSTILE, evaluation, hostile, kept

from mdlm.evals.paired import Difference
from mdlm.view.report import Compared, Report, report

PAIR = Difference(
    value=-0.25, stderr_rows=0.0625, unpaired=0.5, stderr=0.03125, rows=64, tokens=(100, 100)
)


class Page(HTMLParser):
    """The text of a page by section, the tags in it, and the attributes of frames."""

    def __init__(self, page: str):
        super().__init__()
        self.sections, self.tags, self.frames, self.heads = {}, [], [], []
        self._section = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        if tag == "section":
            self._section = given["id"]
        if tag == "iframe":
            self.frames.append(given)
        assert not any(name.startswith("on") for name in given), given

    def handle_data(self, data):
        self.sections[self._section] = self.sections.get(self._section, "") + " " + data.strip()


def test_each_section_shows_what_is_kept():
    blank = "blank of 4, middle: "
    one = kept(
        evaluations=[
            evaluation("nats per token", 5.125),
            evaluation(blank + "nats per token, both sides", 2.5, "blanks"),
            evaluation(blank + "exact match", 0.75, "blanks", stderr=None),
        ]
    )
    other = kept("runs/two", settings={"network": "DiT(depth=4)", "seed": "1"}, evaluations=[])
    differences = [
        Compared(first=0, second=1, found=PAIR, protocols=("valid, NELBO", "valid, NELBO"))
    ]
    page = Page(report(Report(runs=[one, other], differences=differences)))
    found = page.sections
    assert {"runs", "curves", "evaluations", "differences", "blanks", "samples"} <= set(found)
    assert "DiT(depth=3)" in found["runs"] and "5.2500 ± 0.1250" in found["runs"]
    assert page.tags.count("svg") == 2 * 4  # each chart has its plot inside
    assert "5.1250 ± noise 0.0100, sequences 0.5000" in found["evaluations"]
    assert "5.2500 ± sequences 0.1250" in found["evaluations"]  # of the other run, in training
    assert "-0.2500 0.0625 0.5000 0.0312 64 " in found["differences"]
    assert "Bounds of different kinds" not in found["differences"]
    assert "4, middle 2.500 ± 0.500 0.750 ± 0.500" in found["blanks"]
    assert "mdlm blanks runs/two adds them" in found["blanks"]
    assert "The cat\nsat." in found["samples"]
    assert "DiT(depth=3) DiT(depth=4)" in found["settings-and-data"]
    assert "default" in found["settings-and-data"]  # the name, which the other does not give
    assert "cpu:0 cpu:0" in found["environment"]


def test_what_is_missing_is_named_with_its_command():
    empty = kept(metrics=[], evaluations=[], samples=[], starts=[])
    found = Page(report(Report(runs=[empty, empty], command="mdlm report a b --html r"))).sections
    assert "Curves of runs/one: mdlm train adds them." in found["curves"]
    assert "mdlm eval runs/one adds them." in found["evaluations"]
    assert "mdlm report a b --html r --paired adds them." in found["differences"]
    assert "mdlm report a b --html r --samples 2 adds them." in found["samples"]
    assert "differences" not in Page(report(Report(runs=[empty]))).sections


def test_levels_and_generated_text():
    ratio = "nats per token added"
    parts = [
        evaluation(f"times (0.5, 1]: {ratio}", 3.0, "levels"),
        evaluation(f"times (0, 0.5]: {ratio}", 2.0, "levels"),
    ]
    measures = {
        "entropy": {"value": 5.0, "stderr": 0.1},
        "perplexity": {"value": 40.0, "stderr": 2.0},
        "MAUVE": {"value": None, "stderr": None},
    }
    rows: list = [
        {"texts": 9, "measures": measures, "settings": {"steps": "64"}, "nfe": 64.0},
        {"texts": 9, "measures": {**measures, "perplexity": {"value": 30.0, "stderr": None}}},
    ]
    frontier: Any = {"step": 7, "protocol": ["judge: 5-grams"], "rows": rows}
    page = report(Report(runs=[kept(evaluations=parts, frontier=frontier), kept("runs/two")]))
    found = Page(page).sections
    assert "times (" not in found["evaluations"]
    [points] = re.findall(r'<polyline class="s0 line" points="([\d., ]+)"/><path', page)
    (x, low), (end, high) = (map(float, point.split(",")) for point in points.split())
    assert x < end and low > high  # by level, whatever the order of the lines
    assert "levels" in found["noise-levels"] and "--levels adds them" in found["noise-levels"]
    assert "step 7 judge: 5-grams" in found["generated-text"]
    assert "steps 64 5.000 ± 0.100 40.000 ± 2.000 64" in found["generated-text"]
    assert "real text 5.000 ± 0.100 30.000" in found["generated-text"]
    assert "MAUVE" not in found["generated-text"] and page.count('<circle class="sreal"') == 1
    assert "mdlm frontier runs/two adds them" in found["generated-text"]


def test_runs_that_cannot_be_compared_have_no_difference():
    differences = [Compared(first=0, second=1, found="their tokenizers differ")]
    text = Page(report(Report(runs=[kept(), kept()], differences=differences))).sections
    assert "not comparable, their tokenizers differ." in text["differences"]
    assert not re.search(r"\d\.\d", text["differences"])


def test_other_bounds_and_token_counts_are_named():
    other = Difference(value=1.0, stderr_rows=1.0, unpaired=2.0, stderr=None, rows=3, tokens=(6, 5))
    pair = Compared(first=0, second=1, found=other, protocols=("NELBO", "exact"))
    text = Page(report(Report(runs=[kept("a"), kept("b")], differences=[pair]))).sections
    assert (
        "Bounds of different kinds: a: NELBO, 6 tokens; b: exact, 5 tokens" in (text["differences"])
    )


def test_denoising_is_in_a_frame_of_its_own():
    page = Page(report(Report(runs=[kept(), kept()], traces={1: made_trace.trace()})))
    [frame] = page.frames
    assert frame["sandbox"] == "allow-scripts"  # not allowed: the page around, the network
    assert frame["srcdoc"].startswith("<!DOCTYPE html>") and '"mdlm_trace":1' in frame["srcdoc"]
    assert "Samples with their denoising (runs/one)" in page.sections["samples"]


def test_no_text_becomes_markup():
    pair = Compared(first=0, second=1, found=PAIR, protocols=(HOSTILE, HOSTILE))
    reason = Compared(first=1, second=0, found=HOSTILE)
    page = report(
        Report(
            runs=[hostile(), kept()],
            command=HOSTILE,
            made=HOSTILE,
            differences=[pair, reason],
            traces={1: made_trace.trace()},
        )
    )
    assert page.encode("utf-8") and "\x1b" not in page and "\u202e" not in page
    found = Page(page)
    assert "img" not in found.tags and "script" not in found.tags
    assert found.sections["settings-and-data"].count("onerror=alert(1)") > 2
    assert "not finite" in found.sections["runs"] and "not finite" in found.sections["blanks"]


def test_the_page_needs_no_other_file():
    page = report(Report(runs=[kept()], traces={0: made_trace.trace()}))
    assert not re.search(r"https?:|//[a-z]|\bsrc=|url\(|@import|\bfetch\(", page)
    assert set(re.findall(r'href="(.)', page)) == {"#"} and "default-src 'none'" in page


@pytest.mark.parametrize("theme", ["", "@media (prefers-color-scheme: dark)"])
def test_both_themes_define_every_colour(theme):
    page = report(Report(runs=[kept()]))
    block = page.partition(theme)[2].partition("}")[0] if theme else page.partition("}")[0]
    defined = set(re.findall(r"--([a-z0-9-]+):", block))
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", page)) == defined
