"""Pieces of HTML. All text, which may come from files of others, enters a page through `text`."""

import html
from collections.abc import Iterable, Sequence

from mdlm.foreign.shown import visible


def text(value: object) -> str:
    """Returns a text as HTML that shows it, its control characters as `\\x1b`."""
    shown = visible(str(value)).encode("utf-8", "replace").decode()
    return html.escape(shown)


def number(value: object, *errors: tuple[str, object], digits: int = 4) -> str:
    """Returns a cell with a number and its errors by name, without errors that are no numbers."""
    shown = real(value)
    if shown is None:
        return '<td class="number">not finite</td>'
    known = [(name, e) for name, error in errors if (e := real(error)) is not None]
    said = ", ".join(f"{name} {e:.{digits}f}".strip() for name, e in known)
    more = f"<br><i>&plusmn; {text(said)}</i>" if known else ""
    return f'<td class="number">{shown:,.{digits}f}{more}</td>'


def real(value: object) -> float | None:
    """Returns a number that was read as JSON; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def cell(value: object) -> str:
    return f'<td class="text">{text(value)}</td>'


def table(heads: Sequence[str], rows: Iterable[str], *, numbers: bool = False) -> str:
    """Returns a table; `heads` and `rows` are HTML, each row with its cells."""
    kind = ' class="number"' if numbers else ""
    top = "".join(f"<th{kind if i else ''}>{head}</th>" for i, head in enumerate(heads))
    body = "".join(row if row.startswith("<tr") else f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def missing(what: str, command: str) -> str:
    """Returns a line that says what is not there (a plural), and which command adds it."""
    return f'<p class="missing">{text(what)}: <code>{text(command)}</code> adds them.</p>'
