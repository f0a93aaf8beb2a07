"""The page in a real browser without a window: its script runs and shows the right state."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import made_trace
import pytest

from mdlm.view.frames import COVERS, frames, shade_of
from mdlm.view.page import page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser found: none of {', '.join(NAMES)}"),
]


class Shown(HTMLParser):
    """The tokens of a page (text, classes), the texts of elements with an id, and attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.tokens, self.ids, self.attributes, self._open = [], {}, {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in ("meta", "input", "br", "link"):
            self._open.append((tag, given.get("id")))
        self.attributes[given.get("id", tag)] = given
        if given.get("id"):
            self.ids[given["id"]] = ""
        if "data-position" in given:
            self.tokens.append(("", set(given["class"].split())))

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for _, name in self._open:
            if name:
                self.ids[name] += data
        if self._open and self._open[-1][0] == "span" and ("main", "text") in self._open:
            text, classes = self.tokens[-1]
            self.tokens[-1] = (text + data, classes)


@pytest.fixture
def browse(tmp_path):
    def browse(
        fragment: str = "", *, then: str = "", dark: bool = False, width: int = 800
    ) -> Shown:
        """The page at a fragment of its address, after a script that acts on it."""
        html = page(made_trace.trace(), fps=20)
        catch = "<script>addEventListener('error', e => document.title = e.message)</script>"
        acts = f"<script>{then}</script>"
        html = html.replace("<body", catch + "<body", 1).replace("</body>", acts + "</body>")
        (tmp_path / "page.html").write_text(html, "utf-8")
        command = [
            BROWSER,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}"),
            f"--window-size={width},600",
            *(["--force-dark-mode"] if dark else []),
            f"{(tmp_path / 'page.html').as_uri()}{fragment}",
        ]
        out = subprocess.run(command, capture_output=True, timeout=120)
        assert out.returncode == 0, out.stderr[-2000:]
        shown = Shown(out.stdout.decode())
        assert shown.ids["status"].startswith("step "), "the script did not run to its end"
        assert "denoising step by step" in out.stdout.decode()  # no error has replaced the title
        return shown

    return browse


def press(key: str, times: int = 1) -> str:
    event = f"new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}})"
    return f"for (let i = 0; i < {times}; i++) document.body.dispatchEvent({event});"


@pytest.mark.parametrize(("row", "step"), [(1, 0), (1, 1), (1, 3), (1, 4), (1, 5), (2, 0), (2, 2)])
def test_a_step_shows_the_tokens_with_their_marks_and_colours(browse, row, step):
    shown = browse(f"#row={row}&step={step}")
    trace = made_trace.trace()
    own, frame = trace.rows[row - 1], list(frames(trace, trace.rows[row - 1], 500))[step]
    end, now = own.after(5), own.after(step)
    latest = {}
    for at, position, p in zip(own.step, own.position, own.confidence, strict=True):
        if at <= step:
            latest[position] = (at, p)
    spans = {}
    for span in (span for line in frame.lines for span in line):
        spans.setdefault(span.text, span)  # each text occurs once, except the covers
    assert len(shown.tokens) == len(now)
    for position, (text, classes) in enumerate(shown.tokens):
        at, p = latest.get(position, (0, 0.0))
        is_open = now[position] == made_trace.MASK
        kind = next(
            k
            for k in ("given", "open", "remasked", "noise", "written", "rewritten")
            if k in classes
        )
        piece = made_trace.PIECES[end[position] if is_open else now[position]]
        if is_open:
            assert kind == ("remasked" if position in latest else "open")
            assert set(text.strip()) <= {COVERS[kind], "\n"} and COVERS[kind] in text
            assert len(text) == len(piece.replace("\n", "·\n"))
        else:
            assert text == piece.replace("\n", "↵\n").replace("\x1b", "\ufffd")
            first = text.replace("↵\n", "↵")
            assert kind == spans[first].kind
        assert ("new" in classes) == (position in latest and at == step)
        if kind in ("written", "rewritten"):
            assert f"c{shade_of(p)}" in classes and f"a{int((step - at) / 6 * 10)}" in classes
        else:
            assert not any(re.fullmatch(r"[ac]\d", name) for name in classes)
    counts = f"{frame.written} written, {frame.remasked} remasked, {frame.open} open"
    assert shown.ids["status"] == f"step {step}/5 · NFE {step} · {counts}"
    assert shown.ids["sampler"] == "Made(by='hand')"


def test_remasked_and_rewritten_tokens_are_marked(browse):
    text, classes = browse("#step=3").tokens[1]
    assert {"remasked", "new"} <= classes and text == "××"
    assert "new" not in browse("#step=4").tokens[1][1]
    last = browse("")  # without a fragment: the last step
    assert "rewritten" in last.tokens[1][1] and last.tokens[1][0] == "日本"
    assert last.ids["status"].startswith("step 5/5")


def test_keys_and_buttons(browse):
    shown = browse("#step=2", then=press("ArrowRight", 2) + press("ArrowLeft") + press("c"))
    assert (
        shown.ids["status"].startswith("step 3/5")
        and shown.attributes["body"]["data-color"] == "age"
    )
    shown = browse("#step=2&color=age", then=press("ArrowRight", 99) + press("ArrowDown"))
    assert shown.ids["status"].startswith("step 5/5") and len(shown.tokens) == 2
    shown = browse("#step=2", then=press("Home") + "colors[1].click(); colors[0].click();")
    assert shown.ids["status"].startswith("step 0/5")
    assert shown.attributes["body"]["data-color"] == "confidence"
    drag = "const s = $('step'); s.value = 4; s.dispatchEvent(new Event('input'))"
    assert browse("#step=1", then=drag).ids["status"].startswith("step 4/5")
    over = "cells[1].dispatchEvent(new Event('mouseover', {bubbles: true}))"
    assert browse(then=over).ids["detail"] == (
        'position 1 · step 1: " cat", confidence 0.9 · step 3: remasked'
        ' · step 5: "日本", confidence 0.05'
    )


def test_play_runs_to_the_end_and_pauses(browse):
    shown = browse("#step=1", then=press(" "))
    assert shown.ids["status"].startswith("step 5/5") and shown.ids["play"] == "Play"
    shown = browse("#step=1", then=press(" ") + press(" "))
    assert shown.ids["status"].startswith("step 1/5") and shown.ids["play"] == "Play"


def test_the_theme_follows_the_system_and_shades_are_painted(browse):
    ask = (
        "const of = (e) => getComputedStyle(e).backgroundColor;"
        "const first = document.querySelector('[data-position=\"1\"]');"
        "document.getElementById('detail').textContent = [of(document.body), of(first)].join(' ');"
    )
    light, dark = (browse("#step=1", then=ask, dark=dark).ids["detail"] for dark in (False, True))
    assert light == "rgb(255, 255, 255) rgb(122, 178, 240)"  # --paper, --c9
    assert dark == "rgb(20, 22, 26) rgb(23, 105, 179)"
    age = browse("#step=1&color=age", then=ask).ids["detail"]
    assert age == "rgb(255, 255, 255) rgb(195, 150, 242)"  # --a0


@pytest.mark.parametrize("width, zoom", [(500, 1.5), (1000, 1.0)])
def test_the_page_is_as_wide_as_the_screen(browse, width, zoom):
    """Also on a telephone: a window cannot be as narrow, so what is in it is larger."""
    wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    script = f"document.body.style.zoom = {zoom}; $('detail').textContent = 'by ' + ({wider});"
    shown = browse(then=script, width=width)
    assert shown.ids["detail"] == "by 0"
    assert shown.ids["origin"] == "runs/<made>, step 7, seed 3"
