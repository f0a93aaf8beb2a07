"""The results of `mdlm frontier`, as a table of text and as a LaTeX table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mdlm.foreign.shown import for_latex

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.evals.generated.measures import Measure

SHORT = {
    "nats per token": "NLL",
    "perplexity": "PPL",
    "bits per byte": "bits/B",
    "entropy": "entropy",
    "distinct-2": "dist-2",
    "repetition-4": "rep-4",
    "self-BLEU": "sBLEU",
    "MAUVE": "MAUVE",
}
"""The measures of the table of text, by their headings. --json and --latex have all."""
REAL = "real text"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The results of one setting of the sampler, or of real text (without settings and costs).

    `settings` are those that the sweep varies, by name.
    """

    measures: "Mapping[str, Measure]"
    texts: int
    settings: Mapping[str, str] = field(default_factory=dict)
    nfe: float | None = None
    tokens_per_second: float | None = None
    unknown: float = 0.0

    def as_json(self) -> dict[str, Any]:
        values = {name: vars(measure) for name, measure in self.measures.items()}
        costs = {"nfe": self.nfe, "tokens_per_second": self.tokens_per_second}
        label = {"settings": dict(self.settings)} if self.settings else {"real": True}
        costs["unknown_tokens"] = self.unknown
        return {**label, "texts": self.texts, **costs, "measures": values}


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as text, the standard errors below the values."""
    names = _known(rows, SHORT)
    lines = [labels_of(rows) + [SHORT[name] for name in names] + ["NFE", "tok/s"]]
    for row in rows:
        costs = [_cost(row.nfe), _cost(row.tokens_per_second)]
        own = [row.measures[name] for name in names]
        lines.append(_label(row, rows) + [_value(m) for m in own] + costs)
        errors = ["" if m.stderr is None else _number(m.stderr, _digits(m)) for m in own]
        lines.append(["+-"] + [""] * (len(labels_of(rows)) - 1) + errors + ["", ""])
    return _aligned(lines, len(labels_of(rows)))


def latex(rows: Sequence[Row]) -> str:
    """Returns the rows as a LaTeX table with all measures."""
    names = _known(rows, list(rows[0].measures))
    labels = labels_of(rows)
    out = [rf"\begin{{tabular}}{{{'l' * len(labels)}{'r' * (len(names) + 2)}}}", r"\hline"]
    heads = [*labels, *names, "NFE", "tokens/s"]
    out += [" & ".join(map(for_latex, heads)) + r" \\", r"\hline"]
    for row in rows:
        cells = [for_latex(cell) for cell in _label(row, rows)]
        for measure in (row.measures[name] for name in names):
            error = measure.stderr
            more = "" if error is None else rf" \pm {_number(error, _digits(measure))}"
            cells.append("" if measure.value is None else f"${_value(measure)}{more}$")
        cells += [_cost(row.nfe), _cost(row.tokens_per_second)]
        out.append(" & ".join(cells) + r" \\")
    return "\n".join([*out, r"\hline", r"\end{tabular}"])


def labels_of(rows: Sequence[Row]) -> list[str]:
    """Returns the names of the settings."""
    return list(next((row.settings for row in rows if row.settings), {REAL: ""}))


def _label(row: Row, rows: Sequence[Row]) -> list[str]:
    names = labels_of(rows)
    return list(row.settings.values()) if row.settings else [REAL] + [""] * (len(names) - 1)


def _known(rows: Sequence[Row], names: Any) -> list[str]:
    """The measures that at least one row has."""
    return [name for name in names if any(row.measures[name].value is not None for row in rows)]


def _digits(measure: "Measure") -> int:
    """The decimal places of a value and its error."""
    size = abs(measure.value or 0)
    return 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0


def _value(measure: "Measure") -> str:
    return "" if measure.value is None else _number(measure.value, _digits(measure))


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if abs(value) < 1e7 else f"{value:.1e}"


def _cost(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _aligned(lines: Sequence[Sequence[str]], labels: int) -> str:
    """The cells in columns: labels to the left, numbers to the right."""
    # The label of real text may reach into the columns of the settings.
    own = [[cell for cell in column if cell != REAL] for column in zip(*lines, strict=True)]
    wide = [max(map(len, column)) for column in own]
    wide[labels - 1] += max(0, len(REAL) - sum(wide[:labels]) - labels + 1)
    out = []
    for line in lines:
        left = " ".join(c.ljust(w) for c, w in zip(line, wide[:labels], strict=False))
        if line[0] == REAL:
            left = REAL.ljust(len(" ".join("x" * w for w in wide[:labels])))
        right = (c.rjust(w) for c, w in zip(line[labels:], wide[labels:], strict=True))
        out.append(" ".join([left, *right]).rstrip())
    return "\n".join(out)
