"""The model card of an exported run: what it is, what it was trained on, and how good it is."""

from typing import Any

from mdlm.config.component_text import to_text
from mdlm.data.dataset import TextData
from mdlm.data.text.no_text import NoText
from mdlm.interop.layout import Layout
from mdlm.models.network import count_parameters
from mdlm.run import Run
from mdlm.runs import evaluations
from mdlm.version import __version__


def model_card(run: Run, layout: Layout) -> str:
    """Returns the card as Markdown, with the fields of the Hugging Face hub at its top."""
    e = run.experiment
    count = count_parameters(run.params["network"])
    lines = [
        "---",
        "license: unknown  # fill in",
        "library_name: " + ("transformers" if layout.in_transformers else layout.name),
        "pipeline_tag: " + ("text-generation" if e.network.attends == "causal" else "fill-mask"),
        "tags: [diffusion-language-model, mdlm]",
        "---",
        "",
        f"# {e.name}",
        "",
        f"{count:,} parameters in the layout `{layout.name}`, exported by mdlm {__version__} from"
        f" step {run.step} of a run.",
        "",
        "| | |",
        "|---|---|",
        f"| network | `{to_text(e.network)}` |",
        f"| noise process | `{to_text(e.process)}` |",
        f"| objective | `{to_text(e.objective)}` |",
        f"| sampler | `{to_text(e.sampler)}` |",
        f"| data | `{_data(e.data)}` |",
        f"| steps | {run.step or 'imported, not trained here'} |",
        f"| code | {_code(run)} |",
        "",
        "## Evaluation",
        "",
        *_results(run),
        "",
    ]
    return "\n".join(lines)


def _data(data: Any) -> str:
    """Returns the data as text; of an imported network nothing is known but a folder here."""
    is_unknown = isinstance(data, TextData) and isinstance(data.source, NoText)
    return "unknown, imported" if is_unknown else to_text(data, lenient=True)


def _code(run: Run) -> str:
    """Returns version and commit of the run's last start."""
    starts = run.folder.starts()
    last = starts[-1] if starts else {}
    git = last.get("git") or {}
    commit = git.get("commit") if isinstance(git, dict) else git
    return f"mdlm {last.get('mdlm', __version__)}" + (f", commit {commit}" if commit else "")


def _results(run: Run) -> list[str]:
    """Returns a table of what `mdlm eval` found, with standard errors and protocols."""
    found = [v for v in evaluations.earlier(run.folder.path).values() if v.get("step") == run.step]
    if not found:
        return ["Not evaluated: `mdlm eval RUN` before the export puts its results here."]
    lines = [
        "| metric | value | standard error of the estimate / over sequences | protocol |",
        "|---|---|---|---|",
    ]
    for values in found:
        errors = [values.get("stderr"), values.get("stderr_rows")]
        said = " / ".join("-" if error is None else f"{error:.4f}" for error in errors)
        lines.append(
            f"| {values['name']} | {values['value']:.4f} | {said} | {values['protocol']} |"
        )
    return lines
