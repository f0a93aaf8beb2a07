"""The report in a real browser without a window: its frames run, and it fits any screen."""

import html
import re
import subprocess

import made_trace
import pytest
from made_kept import evaluation, hostile, kept
from test_browser import BROWSER, Shown

from mdlm.view.report import Report, report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no browser found"),
]
SAYS = "<script>parent.postMessage(document.getElementById('status').textContent, '*')</script>"


@pytest.fixture
def browse(tmp_path):
    def browse(content: Report, *, then: str = "", dark=False, width=800) -> Shown:
        """The page after a script, and what the denoising in it says, in the element `said`."""
        page = report(content).replace(html.escape("</body>"), html.escape(SAYS + "</body>"))
        policy = re.compile(r"script-src 'unsafe-inline'")
        assert policy.search(page)
        acts = (
            "<p id='said'></p><script>addEventListener('error', e => document.title = e.message);"
            "addEventListener('message', e => said.textContent += e.data);"
            f"addEventListener('load', () => {{ {then} }})</script>"
        )
        (tmp_path / "report.html").write_text(page.replace("</body>", acts + "</body>"), "utf-8")
        command = [
            BROWSER,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}"),
            f"--window-size={width},600",
            *(["--force-dark-mode"] if dark else []),
            (tmp_path / "report.html").as_uri(),
        ]
        out = subprocess.run(command, capture_output=True, timeout=120)
        assert out.returncode == 0, out.stderr[-2000:]
        assert "mdlm report</title>" in out.stdout.decode()  # no error has replaced the title
        return Shown(out.stdout.decode())

    return browse


def content():
    evaluations = [evaluation(f"blank of 4, middle: value {i}", 1.5, "b") for i in range(12)]
    runs = [kept("runs/" + "a" * 200, evaluations=evaluations), hostile()]
    return Report(runs=runs, traces={0: made_trace.trace()})


def test_the_denoising_runs_in_its_frame(browse):
    assert browse(content()).ids["said"].startswith("step 5/5 · NFE 5")


@pytest.mark.parametrize(("width", "zoom"), [(500, 1.5), (1400, 1.0)])
def test_the_page_is_as_wide_as_the_screen(browse, width, zoom):
    wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    script = f"document.body.style.zoom = {zoom}; said.textContent = 'by ' + ({wider}) + ' ';"
    assert browse(content(), then=script, width=width).ids["said"].startswith("by 0 ")


def test_charts_are_beside_each_other_where_there_is_room(browse):
    script = (
        "const tops = [...document.querySelectorAll('figure')].map(f => f.offsetTop);"
        "said.textContent = 'rows ' + new Set(tops).size + ' ';"
    )
    for width, rows in ((1300, 2), (500, 4)):
        shown = browse(Report(runs=[kept()]), then=script, width=width)
        assert shown.ids["said"] == f"rows {rows} "


def test_the_theme_follows_the_system(browse):
    script = (
        "const of = (e, what) => getComputedStyle(document.querySelector(e))[what];"
        "said.textContent = [of('body', 'backgroundColor'), of('polyline.s0', 'stroke'),"
        " of('.swatch', 'backgroundColor')].join(' ');"
    )
    light, dark = (
        browse(Report(runs=[kept()]), then=script, dark=dark).ids["said"] for dark in (False, True)
    )
    assert light == "rgb(255, 255, 255) rgb(37, 99, 168) rgb(37, 99, 168)"
    assert dark == "rgb(20, 22, 26) rgb(121, 179, 245) rgb(121, 179, 245)"
