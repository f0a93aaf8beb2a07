"""The first commands that a newcomer pastes work one after the other, as they stand on the page."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[2]
SHORT = "--train.steps 2 --train.eval_every 0 --train.eval_rows 8 --train.sample_length 8".split()
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def first_commands(page: str, heading: str) -> list[list[str]]:
    """The words of the commands below a heading, up to the next."""
    section = re.split(rf"(?m)^## {heading}$", page)[1].split("\n## ")[0].replace("\\\n", "")
    lines = re.findall(r"(?m)^    mdlm (?:train|sample|tokenizer|eval) .*", section)
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize(
    "page, heading, count",
    [("docs/launch/one_gpu.md", "A first run", 4), ("README.md", "Start", 2)],
)
def test_they_belong_together(page, heading, count, tmp_path):
    tiny.write_text(tmp_path / "my.txt", words=20_000)
    commands = first_commands((ROOT / page).read_text(), heading)
    assert len(commands) == count
    for words in commands:
        out = subprocess.run(
            [sys.executable, "-m", "mdlm", *words, *(SHORT if words[0] == "train" else [])],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
            timeout=600,
        )
        assert out.returncode == 0, (words, out.stderr[-2000:])
