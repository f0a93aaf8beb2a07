"""The page as text: it holds the whole trace, and no token can end it early."""

import json
import re
from dataclasses import replace

import made_trace
import pytest

from mdlm.view.document import dumps
from mdlm.view.page import page


def test_the_page_holds_the_trace_with_any_tokens():
    trace = made_trace.trace()
    html = page(trace, row=2, fps=12)
    (block,) = re.findall(r'<script id="trace" type="application/json">(.*?)</script>', html, re.S)
    assert json.loads(block) == json.loads(dumps(trace))
    assert html.count("</script>") == 2 and "<b>&amp;" not in html
    assert '<body data-row="2" data-fps="12" ' in html


def test_the_title_names_the_run_its_step_and_the_seed():
    html = page(made_trace.trace())
    title = "<title>runs/&lt;made&gt;, step 7, seed 3: denoising step by step</title>"
    assert title in html
    unknown = page(replace(made_trace.trace(), origin=""))
    assert "<title>mdlm: denoising step by step</title>" in unknown


def test_the_page_needs_no_other_file():
    html = page(made_trace.trace())
    assert not re.search(r"https?:|//[a-z]|\bsrc=|\bhref=|url\(|@import|\bfetch\(", html)
    assert "default-src 'none'" in html


@pytest.mark.parametrize("theme", ["", "@media (prefers-color-scheme: dark)"])
def test_both_themes_define_every_colour(theme):
    html = page(made_trace.trace())
    block = html.partition(theme)[2].partition("}")[0] if theme else html.partition("}")[0]
    defined = set(re.findall(r"--([a-z0-9-]+):", block))
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", html)) == defined
