"""A report of runs as one HTML page that needs no network and no other file.

It shows what the run folders keep, and differences and samples that were made for it. Where
something is not kept, it names the command that adds it.
"""

import html as escaping
import pkgutil
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mdlm.evals.paired import Difference
from mdlm.generation.trace import Trace
from mdlm.runs.kept import KeptRun
from mdlm.view import html
from mdlm.view.page import page
from mdlm.view.report_curves import curves, legend
from mdlm.view.report_evaluations import blanks, evaluations, levels
from mdlm.view.report_generated import generated


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two runs, by their numbers, with the difference of their nats per token and the protocol of
    each, or the reason why there is none."""

    first: int
    second: int
    found: Difference | str
    protocols: tuple[str, str] = ("", "")


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of a page. `command` made it, on the day `made`; `differences` is None if they
    were not asked for, and `traces` has those of samples by the number of the run."""

    runs: Sequence[KeptRun]
    command: str = ""
    made: str = ""
    differences: Sequence[Compared] | None = None
    traces: Mapping[int, Trace] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return ", ".join(run.name for run in self.runs)


def report(content: Report) -> str:
    """Returns the page."""
    sections: dict[str, Callable[[Report], str]] = {
        "Runs": _summary,
        "Curves": lambda content: curves(content.runs),
        "Evaluations": lambda content: evaluations(content.runs),
        "Differences": _differences,
        "Noise levels": lambda content: levels(content.runs),
        "Blanks": lambda content: blanks(content.runs),
        "Generated text": lambda content: generated(content.runs),
        "Samples": _samples,
        "Settings and data": _settings,
        "Environment": _environment,
    }
    parts = {name: section(content) for name, section in sections.items()}
    links = "".join(f'<a href="#{_id(name)}">{name}</a>' for name, part in parts.items() if part)
    body = [
        f"<header><h1>{html.text(content.title)}</h1>",
        f'<p class="faint">{html.text(content.made)} <code>{html.text(content.command)}</code></p>',
        f"<nav>{links}</nav></header><main>",
        *(
            f'<section id="{_id(name)}"><h2>{name}</h2>{part}</section>'
            for name, part in parts.items()
            if part
        ),
        "</main>",
    ]
    template = (pkgutil.get_data("mdlm.view", "report.html") or b"").decode()
    title = html.text(f"{content.title}: mdlm report")
    before, after = template.split("{{body}}")
    return before.replace("{{title}}", title) + "\n".join(body) + after


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")


def _summary(content: Report) -> str:
    heads = [
        "run",
        "steps",
        "network",
        "objective",
        "nats per token",
        "bits per byte",
        "perplexity",
    ]
    rows = []
    for number, run in enumerate(content.runs):
        last = (run.lines("valid") or run.lines("test") or [{}])[-1]
        cells = [f"<td>{legend(run.name, number)}</td><td>{run.step:,}</td>"]
        cells += [html.cell(run.settings.get(name, "default")) for name in ("network", "objective")]
        for name in heads[4:]:
            digits, error = 2 if name == "perplexity" else 4, last.get(f"{name} stderr_rows")
            is_known = name in last
            value = html.number(last.get(name), ("", error), digits=digits)
            cells.append(value if is_known else "<td></td>")
        rows.append("".join(cells))
    note = (
        '<p class="faint">The numbers are those of the newest evaluation in training, with the '
        "standard error over sequences; Evaluations has their protocols.</p>"
    )
    return html.table(heads, rows) + note


def _differences(content: Report) -> str:
    if len(content.runs) < 2:
        return ""
    if content.differences is None:
        return html.missing(
            "Differences of these runs on the same rows, with the same noise",
            f"{content.command} --paired",
        )
    rows, reasons = [], []
    for one in content.differences:
        names = [content.runs[i].name for i in (one.first, one.second)]
        title = f"{html.text(names[0])} &minus; {html.text(names[1])}"
        if isinstance(one.found, str):
            reasons.append(f"<p>{title}: not comparable, {html.text(one.found)}.</p>")
            continue
        found = one.found
        errors = "".join(map(html.number, (found.stderr_rows, found.unpaired)))
        noise = "<td></td>" if found.stderr is None else html.number(found.stderr)
        rows.append(
            f"<td>{title}</td>{html.number(found.value)}{errors}{noise}"
            f'<td class="number">{found.rows:,}</td>'
        )
        reasons.append(_protocols(names, one))
    heads = [
        "nats per token",
        "difference",
        "&plusmn; paired",
        "&plusmn; if unpaired",
        "&plusmn; noise",
        "rows",
    ]
    note = (
        '<p class="faint">Below 0 the first run is better. Both runs are given the same rows and '
        "the same noise: &ldquo;paired&rdquo; is the standard error of the difference over "
        "sequences, &ldquo;if unpaired&rdquo; that of two separate evaluations.</p>"
    )
    return (html.table(heads, rows, numbers=True) + note if rows else "") + "".join(reasons)


def _protocols(names: Sequence[str], one: Compared) -> str:
    """The protocols of a difference; one line if both runs have the same."""
    first, second = one.protocols
    assert isinstance(one.found, Difference)
    counts = one.found.tokens
    if first == second and counts[0] == counts[1]:
        return f'<p class="protocol">{html.text(first)}</p>'
    lines = zip(names, one.protocols, counts, strict=True)
    return (
        '<p class="protocol">Bounds of different kinds: '
        + "; ".join(
            f"{html.text(name)}: {html.text(protocol)}, {count:,} tokens"
            for name, protocol, count in lines
        )
        + "</p>"
    )


def _samples(content: Report) -> str:
    parts, without = [], []
    for number, run in enumerate(content.runs):
        trace = content.traces.get(number)
        if trace is not None:
            inner = escaping.escape(page(trace).encode("utf-8", "replace").decode())
            parts.append(f"<h3>{legend(run.name, number)}, denoising step by step</h3>")
            parts.append(f'<iframe sandbox="allow-scripts" title="{html.text(run.name)}"')
            parts.append(f' srcdoc="{inner}"></iframe>')
        else:
            without.append(run.name)
        if run.samples:
            parts.append(f"<details{'' if trace else ' open'}><summary>")
            parts.append(f"{html.text(run.name)}: samples of training</summary>")
            for heading, body in run.samples:
                parts.append(f"<h3>{html.text(heading)}</h3>")
                parts.append(f'<pre class="sample">{html.text(body)}</pre>')
            parts.append("</details>")
    if without:
        what = f"Samples with their denoising ({', '.join(without)})"
        parts.append(html.missing(what, f"{content.command} --samples 2"))
    return "".join(parts)


def _settings(content: Report) -> str:
    """Settings that differ from the defaults, as the run folders record them."""
    names = dict.fromkeys(name for run in content.runs for name in run.settings)
    rows = []
    for name in names:
        values = [run.settings.get(name, "default") for run in content.runs]
        differs = len(set(values)) > 1
        row = '<tr class="differs">' if differs else "<tr>"
        rows.append(f"{row}<th>{html.text(name)}</th>{''.join(map(html.cell, values))}</tr>")
    heads = ["setting", *(legend(run.name, i) for i, run in enumerate(content.runs))]
    note = '<p class="faint">Settings at their defaults are left out.</p>'
    return html.table(heads, rows) + note


ENVIRONMENT = (
    "started",
    "mdlm",
    "python",
    "platform",
    "device_kind",
    "devices",
    "processes",
    "cpu_count",
    "command",
    "git",
    "packages",
)


def _environment(content: Report) -> str:
    rows = []
    for name in ENVIRONMENT:
        values = [
            _said(name, run.starts[-1].get(name) if run.starts else None) for run in content.runs
        ]
        if any(values):
            rows.append(f"<th>{html.text(name)}</th>" + "".join(map(html.cell, values)))
    rows.append("<th>starts</th>" + "".join(html.cell(len(run.starts)) for run in content.runs))
    heads = ["newest start", *(legend(run.name, i) for i, run in enumerate(content.runs))]
    return html.table(heads, rows)


def _said(name: str, value: object) -> str:
    """A value of env.json in words."""
    if value is None:
        return ""
    if name == "command" and isinstance(value, list):
        return shlex.join(map(str, value))
    if name == "git" and isinstance(value, dict):
        changed = value.get("changed_files")
        more = f", {len(changed)} files changed" if isinstance(changed, list) and changed else ""
        return f"{value.get('commit', '')}{more}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
