"""What `mdlm eval` measures beside one number: by noise level, by steps, from both sides, and the
texts of the literature in one table."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdlm.cli.progress import Progress
from mdlm.cluster import process_group
from mdlm.errors import InputError

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.data.dataset import TextData
    from mdlm.evals.bracket import Bracket
    from mdlm.evals.nll import Metric
    from mdlm.experiment.evaluation import Perplexity
    from mdlm.run import Run


OWN = "as the run reports it"
"""The name of a run's own bound beside those of discrete processes."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a mode found: metrics, which are kept in the run folder, all of it as values of JSON,
    and as text. `parts` are kept too, and not compared with earlier ones."""

    metrics: "list[Metric]"
    json: Any
    text: str
    parts: "Sequence[Metric]" = ()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A run and what of it is evaluated: its settings, and data other than its own, if any."""

    run: "Run"
    how: "Perplexity"
    data: "TextData | None"
    progress: Progress

    def metrics(self) -> Result:
        from mdlm.evals.nll import table

        report = self.progress.bar("evaluating", "rows")
        found = self.run.perplexity(self.how, data=self.data, report=report)
        return Result(metrics=found, json=[vars(m) for m in found], text=table(found))

    def by_level(self, levels: int, plot: Path | None) -> Result:
        """The bound in `levels` equal parts of the times, also as a picture."""
        from mdlm.cli.level_plot import draw
        from mdlm.evals.levels import metrics_of, table_of
        from mdlm.evals.nll import table

        report = self.progress.bar("evaluating", "rows")
        found, parts = self.run.by_level(self.how, levels=levels, data=self.data, report=report)
        if plot is not None and process_group.is_main():
            draw(parts, plot, title=f"{self.run.folder.path.name}: {found[0].protocol}")
        levels_json = [one.as_json() for one in parts]
        return Result(
            metrics=found,
            json={"metrics": [vars(m) for m in found], "levels": levels_json},
            text=f"{table(found)}\nby noise level:\n{table_of(parts)}",
            parts=metrics_of(parts, found[0].protocol),
        )

    def by_steps(self, steps: Sequence[int]) -> Result:
        """The bound of the discrete process of each number of steps, and what the run reports."""
        from mdlm.objectives import DiscreteNelbo

        found: list[tuple[str, list[Metric]]] = []
        for many in [*steps, None]:
            how = replace(self.how, ngrams=False)
            if many is not None:
                how = replace(how, objective=DiscreteNelbo(steps=many))
            name = f"{many} steps" if many is not None else OWN
            report = self.progress.bar(f"evaluating {name}", "rows")
            found.append((name, self.run.perplexity(how, data=self.data, report=report)))
        return Result(
            metrics=[metric for _, metrics in found for metric in metrics],
            json=[
                {"steps": many, "metrics": [vars(m) for m in metrics]}
                for many, (_, metrics) in zip([*steps, None], found, strict=True)
            ],
            text=steps_table(found),
        )

    def both_sides(self, paths: int, rows: int) -> Result:
        """Bounds of the likelihood from both sides, from `paths` orders of each row."""
        from mdlm.evals.nll import table

        report = self.progress.bar("bounding", "rows")
        found = self.run.bracket(self.how, paths=paths, rows=rows, data=self.data, report=report)
        values = {**vars(found), "metrics": [vars(m) for m in found.metrics]}
        text = f"{table(found.metrics)}\n{bracket_words(found)}"
        return Result(metrics=found.metrics, json=values, text=text)

    def seven(self, folder: str | None, *, latex: bool) -> Result:
        """The texts of the literature. Those that cannot be read are named.

        Raises InputError if none can.
        """
        from mdlm.evals import zero_shot_table as tables
        from mdlm.evals.zero_shot import zero_shot

        data, found = self.run.experiment.data, []
        here = None if folder is None else tables.copies(Path(folder))
        for name in tables.SEVEN:
            try:
                if here is not None and name not in here:
                    raise InputError(f"{folder} has no folder {name} and no file {name}.*")
                paths = () if here is None else here[name]
                text, split = zero_shot(name, data.tokenizer, data.packing, paths)
                how = replace(self.how, split=split, ngrams=False)
                report = self.progress.bar(f"evaluating {name}", "rows")
                metrics = self.run.perplexity(how, data=text, report=report)
                found.append(tables.Scored(name=name, metrics=metrics))
            except InputError as error:
                found.append(tables.Scored(name=name, error=str(error)))
        if not any(one.metrics for one in found):
            raise InputError(
                f"--on all: no text can be evaluated; {found[0].name}: {found[0].error}"
            )
        length = data.packing.length
        text = tables.table(found, length=length)
        if latex:
            text = tables.latex(
                found,
                self.run.folder.path.name,
                is_exact=self.run.model.reported.is_exact,
                length=length,
            )
        return Result(
            metrics=[metric for one in found for metric in one.metrics],
            json=[one.as_json() for one in found],
            text=text,
        )


def steps_table(found: "Sequence[tuple[str, list[Metric]]]") -> str:
    """Returns bounds by their name, one in a line, under the protocol of the last."""
    last = found[-1][1][0].protocol
    lines = textwrap.wrap(f"{last}; and the bound of the process of so many steps:", 80)
    lines.append(f"{'nats per token':>40}{'+- noise':>10}{'+- sequences':>14}{'perplexity':>12}")
    for name, metrics in found:
        of = {metric.name: metric for metric in metrics}
        nats = of["nats per token"]
        errors = ("" if x is None else f"{x:.4f}" for x in (nats.stderr, nats.stderr_rows))
        noise, rows = errors
        perplexity = of["perplexity"].value
        lines.append(f"  {name:24s}{nats.value:14.4f}{noise:>10}{rows:>14}{perplexity:12.2f}")
    return "\n".join(lines)


def bracket_words(found: "Bracket") -> str:
    """Returns what the bounds say together."""
    upper, *rest = (m.value for m in found.metrics if m.name == "nats per token")
    carried = f"{found.effective:.1f} of {found.paths} orders carry the mean probability"
    if found.loose is None:
        words = (
            f"No lower bound of the NLL: {carried} of a row, so that it is in likelier orders that"
            f" are rarer than 1 in {found.paths}. The NLL is below the NELBO by at least"
            f" {upper - rest[0]:.4f} nats per token, in expectation."
        )
    else:
        words = (
            f"The NLL is between {rest[-1]:.4f} and {rest[0]:.4f} nats per token, in expectation"
            f" over the orders; the NELBO is loose by at most {found.loose:.4f}. {carried}."
        )
    return textwrap.fill(words, 80)
