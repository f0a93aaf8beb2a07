"""Text is UTF-8 whatever the locale: read from the syntax trees, and in a run."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parent.parent
FOLDERS = ("mdlm", "benchmarks", "experiments")


def leaves_encoding_open(call: ast.Call) -> bool:
    """Whether a call opens text in the encoding of the locale."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)
    if name in ("run", "Popen", "check_output"):
        return "text" in given
    if name == "TextIOWrapper":
        return len(call.args) < 2
    if name in ("open", "fdopen") and (isinstance(call.func, ast.Name) or name == "fdopen"):
        mode = given.get("mode", call.args[1] if len(call.args) > 1 else None)
        return not (isinstance(mode, ast.Constant) and "b" in str(mode.value))
    # A method of a path: the mode is the first argument, where it is one.
    modes = [one.value for one in call.args[:1] if isinstance(one, ast.Constant)]
    return name == "open" and any(m in ("r", "w", "a", "x", "r+", "w+", "a+") for m in modes)


def test_every_text_is_opened_as_utf_8():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and leaves_encoding_open(node)
    ]
    assert not wrong, 'give encoding="utf-8":\n' + "\n".join(wrong)


@pytest.mark.e2e
def test_a_run_under_another_locale_has_utf_8_files(tmp_path):
    """Under `LC_ALL=C` with Python's own UTF-8 modes off; also what is printed."""
    text = tiny.write_text(tmp_path / "text.txt").read_text(encoding="utf-8")
    cyrillic = text.translate({code: code + 975 for code in range(97, 123)})
    (tmp_path / "text.txt").write_text(cyrillic, encoding="utf-8")
    (tmp_path / "tiny.py").write_text(tiny.FILE.format(text="text.txt"), encoding="utf-8")
    locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "XLA_FLAGS": ""}
    characters = ("--data.tokenizer", "Characters", "--train.steps", "5")
    out = subprocess.run(
        [sys.executable, "-m", "mdlm", "train", "tiny.py", "--out", "run", *characters],
        cwd=tmp_path,
        env={**os.environ, **locale},
        capture_output=True,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    samples = (tmp_path / "run" / "samples.txt").read_bytes().decode("utf-8")
    assert "| " in out.stdout.decode("utf-8")
    assert any(0x430 <= ord(character) <= 0x449 for character in samples)
