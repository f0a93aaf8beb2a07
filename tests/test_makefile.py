"""`make install` with the Pythons that are found: stubs that only say their version."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

STUB = """\
#!/bin/sh
# {version}
case "$1 $2" in
-c*) exec {python} -c "import sys; sys.version_info = {version}; $2" ;;
"-m venv") mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile; `python3.10` and so on are beside it."""
    shutil.copy(Path(__file__).parent.parent / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    for minor in (10, 11, 12):
        path = tmp_path / f"python3.{minor}"
        path.write_text(STUB.format(version=f"(3, {minor})", python=sys.executable))
        path.chmod(0o755)
    return tmp_path


def install(clone: Path, *words: str) -> tuple[int, str, str]:
    """What `make install` returns, says, and the version of `.venv` afterwards."""
    out = subprocess.run(
        ["make", "-C", str(clone), "install", *words], capture_output=True, text=True
    )
    made = clone / ".venv" / "bin" / "python"
    version = made.read_text().splitlines()[1].strip("# ") if made.exists() else ""
    return out.returncode, out.stdout + out.stderr, version


def test_an_old_environment_is_made_anew(clone):
    (clone / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(clone / "python3.10", clone / ".venv" / "bin" / "python")
    (clone / ".venv" / ".installed").touch()
    assert install(clone, "PYTHON=./python3.11")[::2] == (0, "(3, 11)")


def test_the_python_that_is_named_is_taken(clone):
    assert install(clone, "PYTHON=./python3.11")[::2] == (0, "(3, 11)")
    assert install(clone, "PYTHON=./python3.12")[::2] == (0, "(3, 12)")
    assert install(clone)[::2] == (0, "(3, 12)")  # none is named: what is there stays


@pytest.mark.parametrize("named", ["./python3.10", "./python3.99"])
def test_too_old_or_missing_is_said(clone, named):
    code, said, version = install(clone, f"PYTHON={named}")
    assert code == 2 and version == ""
    assert f"{named}: Python 3.11 or newer is needed; name one" in said
