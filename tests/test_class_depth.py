"""Class hierarchies of the package are at most three deep: read from the syntax trees."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "mdlm"
MOST = 3


def bases() -> dict[str, list[tuple[str, list[str]]]]:
    """Of each class name: the files that define it, each with the names of its bases."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                plain = (b.value if isinstance(b, ast.Subscript) else b for b in node.bases)
                names = [getattr(b, "attr", getattr(b, "id", "")) for b in plain]
                found.setdefault(node.name, []).append((str(path.relative_to(ROOT)), names))
    return found


def depth(name: str, known: dict[str, list[tuple[str, list[str]]]]) -> int:
    """Classes of the package from `name` up to its own base: 1 for a base, 0 for other classes."""
    if name not in known:
        return 0
    return 1 + max((depth(b, known) for _, names in known[name] for b in names), default=0)


def test_hierarchies_are_at_most_three_deep():
    known = bases()
    assert depth("Sampler", known) == 1 and depth("Ancestral", known) == 3
    deep = {
        name: f"{file}: {name} is {depth(name, known)} deep"
        for name, places in known.items()
        for file, _ in places
        if depth(name, known) > MOST
    }
    assert not deep, "\n".join(deep.values())
