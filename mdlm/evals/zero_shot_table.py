"""The seven texts of the literature in one table, beside the published numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mdlm.errors import InputError
from mdlm.evals.nll import Metric
from mdlm.evals.zero_shot import TEXTS
from mdlm.foreign.shown import for_latex

SEVEN = {
    "ptb": "PTB",
    "wikitext2": "Wikitext",
    "lm1b": "LM1B",
    "lambada": "Lambada",
    "ag_news": "AG News",
    "pubmed": "Pubmed",
    "arxiv": "Arxiv",
}
"""The texts of MDLM's table 3, in its order, with its headings. The valid split of wikitext2 is
that of wikitext103."""
PUBLISHED = {"ar": "AR", "sedd": "SEDD", "mdlm": "MDLM"}
"""The published models, by their field of `ZeroShot`."""
SOURCE = "arXiv:2406.07524, table 3: OpenWebText, GPT-2's tokens, rows of 1024"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The metrics of one text, or why there are none."""

    name: str
    metrics: list[Metric] = field(default_factory=list)
    error: str | None = None

    def of(self, name: str) -> Metric | None:
        """Returns a metric by its name."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    def as_json(self) -> dict[str, Any]:
        text = TEXTS[self.name]
        return {
            "name": self.name,
            "split": text.split,
            "error": self.error,
            "metrics": [vars(metric) for metric in self.metrics],
            "published": {name: getattr(text, name) for name in PUBLISHED},
        }


def copies(folder: Path) -> dict[str, tuple[str, ...]]:
    """Returns the paths in a folder of copies: for each text its folder NAME, or its files NAME.*.

    Raises InputError if there is none for any text.
    """
    found = {}
    for name in SEVEN:
        files = sorted(str(path) for path in folder.glob(f"{name}.*"))
        if (folder / name).is_dir():
            found[name] = (str(folder / name),)
        elif files:
            found[name] = tuple(files)
    if not found:
        names = ", ".join(SEVEN)
        raise InputError(
            f"--data {folder}: no folder or file of a text; give it folders or files named {names}"
        )
    return found


def table(found: Sequence[Scored], *, length: int) -> str:
    """Returns the texts, one in a line, with errors and published numbers, at most 80 columns."""
    lines = [
        f"zero-shot perplexities, rows of {length}:",
        "                          +- noise   +- sequences          published",
        "  text       perplexity                         bits/byte      AR    SEDD    MDLM",
    ]
    for one in found:
        perplexity, bits = one.of("perplexity"), one.of("bits per byte")
        if perplexity is None:
            lines.append(f"  {one.name:10s} not evaluated, see below")
            continue
        errors = (perplexity.stderr, perplexity.stderr_rows)
        noise, rows = ("" if error is None else f"{error:.2f}" for error in errors)
        text = TEXTS[one.name]
        published = "".join(f"{getattr(text, name):8.2f}" for name in PUBLISHED)
        size = "" if bits is None else f"{bits.value:.4f}"
        lines.append(
            f"  {one.name:10s} {perplexity.value:10.2f} {noise:>9}{rows:>12}{size:>12}{published}"
        )
    lines.append(f"published: {SOURCE}")
    lines += [f"{one.name}: {one.error}" for one in found if one.error is not None]
    return "\n".join(line.rstrip() for line in lines)


def latex(found: Sequence[Scored], name: str, *, is_exact: bool, length: int) -> str:
    """Returns a LaTeX table: a line for each published model, and one for the run `name`.

    The error beside a number of the run is over sequences. Comments have the protocols.
    """
    lines = [f"% perplexities; published: {SOURCE}; {for_latex(name)}: rows of {length}"]
    lines += [
        f"% {one.name}: {one.metrics[0].protocol if one.metrics else one.error}" for one in found
    ]
    lines += [r"\begin{tabular}{l" + "r" * len(found) + "}", r"\hline"]
    lines += [" & ".join(["", *(SEVEN[one.name] for one in found)]) + r" \\", r"\hline"]
    for model, title in PUBLISHED.items():
        sign = "" if model == "ar" else r"$\leq$ "
        cells = (f"{sign}{getattr(TEXTS[one.name], model):.2f}" for one in found)
        lines.append(" & ".join([f"{title} (published)", *cells]) + r" \\")
    lines.append(r"\hline")
    own = (cell(one.of("perplexity"), "" if is_exact else r"$\leq$ ") for one in found)
    lines.append(" & ".join([for_latex(name), *own]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}"])


def cell(metric: Metric | None, sign: str) -> str:
    """Returns a perplexity with its error over sequences, as LaTeX; a dash if there is none."""
    if metric is None:
        return "--"
    error = "" if metric.stderr_rows is None else rf" $\pm$ {metric.stderr_rows:.2f}"
    return f"{sign}{metric.value:.2f}{error}"
