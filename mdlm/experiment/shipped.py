"""The experiments that come with the package, found by name.

They are files of `experiments/` in the repository; an installed package holds them as
`mdlm/experiments/`. This module does not execute them.
"""

import ast
from difflib import get_close_matches
from pathlib import Path

from mdlm.errors import InputError

PACKAGE = Path(__file__).parent.parent


def folder() -> Path:
    """Returns their folder: in the installed package, or beside it in the repository."""
    installed = PACKAGE / "experiments"
    return installed if installed.is_dir() else PACKAGE.parent / "experiments"


def names() -> list[str]:
    """Returns their names, in alphabetical order: `quickstart`, `family/gidd`."""
    return sorted(
        path.relative_to(folder()).with_suffix("").as_posix() for path in folder().rglob("*.py")
    )


def summary(name: str) -> str:
    """Returns the first line of an experiment's docstring."""
    text = (folder() / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def is_name(text: str) -> bool:
    """Whether the text is the name of a shipped experiment, and not an existing file."""
    return not Path(text).is_file() and text in names()


def located(experiment: str | Path) -> Path:
    """Returns the file of an experiment, given as its path or name; an existing file comes first.

    Raises InputError if there is no such file and no such name.
    """
    text = str(experiment)
    if Path(text).is_file():
        return Path(text)
    if is_name(text):
        return folder() / f"{text}.py"
    near = nearest(text)
    hint = f"the nearest name is {near}; " if near else ""
    raise InputError(
        f"{text}: no such file, and no experiment of that name; {hint}"
        "`mdlm experiments` lists the names"
    )


def nearest(text: str) -> str | None:
    """Returns the name that is most similar to the text, whole or by its last part, or None."""
    text, known = text.removesuffix(".py"), names()
    if found := get_close_matches(text, known, n=1, cutoff=0.8):
        return found[0]
    last_parts = {name.rpartition("/")[2]: name for name in reversed(known)}
    found = get_close_matches(text.rpartition("/")[2], last_parts, n=1)
    return last_parts[found[0]] if found else None
