"""Text of unknown origin as it may be shown on a terminal, or in a message of one line."""

import re

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that a terminal obeys, but for tab and line break."""
LONGEST = 1200
"""Characters of a message; of a longer one, the middle is left out."""


def visible(text: str) -> str:
    """Returns a text with control characters written as `\\x1b`."""
    return CONTROL.sub(lambda found: escaped(found[0]), text)


def one_line(text: str, most: int = LONGEST) -> str:
    """Returns a message in one line of at most about `most` characters."""
    if len(text) > most:
        text = f"{text[: most // 2]} [...] {text[-most // 2 :]}"
    return escaped(text) if not text.isprintable() else text


def escaped(text: str) -> str:
    """Returns a text with all that cannot be printed written as `\\x1b`."""
    return "".join(
        c if c.isprintable() or "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()
        for c in text
    )


def for_latex(text: str) -> str:
    """Returns a text with the characters escaped that LaTeX reads as commands."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "#$%&_{}" else c) for c in text)
