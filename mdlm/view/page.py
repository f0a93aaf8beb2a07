"""A trace as one HTML page that needs nothing else: no network, no other file."""

import pkgutil

from mdlm.generation.trace import Trace
from mdlm.view.document import dumps

PLACE = "/*trace*/"


def page(trace: Trace, *, row: int = 1, fps: float = 8) -> str:
    """The page, opened at the last step of a row (counted from 1).

    A fragment in the address opens it elsewhere: `#row=2&step=30&color=age`.
    """
    template = (pkgutil.get_data("mdlm.view", "page.html") or b"").decode()
    before, after = template.split(PLACE)
    before = before.replace('data-row="1"', f'data-row="{row}"')
    before = before.replace('data-fps="8"', f'data-fps="{fps:g}"')
    # Without it no end of the script element, and no comment, can begin in the document.
    document = dumps(trace).replace("<", "\\u003c")
    return f"{before}{document}{after}"
