"""What an installation holds: built from a copy of this tree, with the setuptools that is here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).parent.parent
PARTS = ("mdlm", "experiments", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what a package is made of."""
    folder = tmp_path_factory.mktemp("clone")
    for name in PARTS:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        (shutil.copytree if source.is_dir() else shutil.copy)(
            source, folder / name, **({"ignore": ignored} if source.is_dir() else {})
        )
    return folder


def built(tree: Path, out: Path, what: str) -> Path:
    """The archive that a build of that kind leaves in `out`, unpacked beside it."""
    code = f"from setuptools import build_meta; build_meta.build_{what}({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (archive,) = out.iterdir()
    shutil.unpack_archive(archive, out / "files", "zip" if what != "sdist" else "gztar")
    return out / "files"


def python(code: str, *, cwd: Path, site: Path) -> str:
    """What Python prints where `site` is a folder of installed packages."""
    # The checkout that the environment of the tests has on its path is not among them.
    without = (
        "import os, sys; sys.path[:] = [p for p in sys.path"
        " if not os.path.isfile(os.path.join(p, 'mdlm', '__init__.py'))]"
    )
    code = f"{without}; import site; site.addsitedir({str(site)!r}); {code}"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def files(folder: Path, pattern: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob(pattern)}


def test_a_wheel_has_the_experiments_and_the_types(tree, tmp_path):
    wheel = built(tree, tmp_path, "wheel")
    assert files(wheel / "mdlm" / "experiments", "*.py") == files(ROOT / "experiments", "*.py")
    assert not files(wheel, "*.md") and {path.name for path in wheel.iterdir()} == {
        "mdlm",
        *(path.name for path in wheel.glob("*.dist-info")),
    }
    assert (wheel / "mdlm" / "py.typed").is_file()
    assert (wheel / "mdlm" / "view" / "page.html").is_file()
    faces = files(ROOT / "mdlm", "*.pyi")
    assert len(faces) >= 9 and files(wheel / "mdlm", "*.pyi") == faces
    modules = files(ROOT / "mdlm", "*.py")
    assert files(wheel / "mdlm", "*.py") - modules == {
        f"experiments/{name}" for name in files(ROOT / "experiments", "*.py")
    }


def test_the_distribution_has_a_name_of_our_own(tree, tmp_path):
    (info,) = built(tree, tmp_path, "wheel").glob("*.dist-info")
    assert info.name.startswith("mdlm_jax-")


def test_no_text_tells_to_install_the_other_program_of_that_name():
    """`mdlm` of the public index is not ours: messages name the clone, or the missing library."""
    wrong = re.compile(r"\b(?:install|add|uvx|run) (?:-\S+ )*['\"]?mdlm(?![\w/-]|\.\w)")
    texts = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")]
    for folder in ("mdlm", "docs", "experiments", "benchmarks"):
        texts += [p for e in ("py", "md", "pyi") for p in (ROOT / folder).rglob(f"*.{e}")]
    assert wrong.search("pip install 'mdlm[tpu]'") and wrong.search("pip install mdlm")
    assert not wrong.search("pip install -e '.[tpu]'")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in texts
        for line in path.read_text(encoding="utf-8").splitlines()
        if wrong.search(line) or re.search(r"mdlm\[(tpu|cuda|wandb|tensorboard|dev|bench)", line)
    ]
    assert not found, "\n".join(found)


def test_a_source_archive_has_the_experiments(tree, tmp_path):
    (source,) = built(tree, tmp_path, "sdist").iterdir()
    assert files(source / "experiments", "*.py") == files(ROOT / "experiments", "*.py")
    assert (source / "setup.py").is_file() and (source / "mdlm" / "py.typed").is_file()


def test_an_editable_installation_works_from_any_folder(tree, tmp_path):
    """Also above the clone, and beside a folder of the same name, which would be a package."""
    site = built(tree, tmp_path, "editable")
    (tmp_path / "elsewhere" / "mdlm").mkdir(parents=True)
    code = "import mdlm, mdlm.experiment.shipped as s; print(mdlm.__file__, len(s.names()))"
    expected = f"{tree / 'mdlm' / '__init__.py'} {len(files(ROOT / 'experiments', '*.py'))}"
    for folder in (tree.parent, tmp_path / "elsewhere", tree):
        assert python(code, cwd=folder, site=site) == expected
