"""A trace as one HTML page that needs no network and no other file."""

import html
import pkgutil

from mdlm.generation.trace import Trace
from mdlm.view.document import dumps

PLACEHOLDER = "/*trace*/"


def page(trace: Trace, *, row: int = 1, fps: float = 8) -> str:
    """Returns the page. It opens at the last step of a row (counted from 1).

    A fragment of the address opens another step: `#row=2&step=30&color=age`.
    """
    template = (pkgutil.get_data("mdlm.view", "page.html") or b"").decode()
    before, after = template.split(PLACEHOLDER)
    if trace.origin:
        before = before.replace("<title>mdlm", f"<title>{html.escape(trace.origin)}")
    before = before.replace('data-row="1"', f'data-row="{row}"')
    before = before.replace('data-fps="8"', f'data-fps="{fps:g}"')
    # Without "<" no token can end the script element or begin a comment.
    document = dumps(trace).replace("<", "\\u003c")
    return f"{before}{document}{after}"
