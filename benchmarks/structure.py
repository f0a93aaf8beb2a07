"""Measures the structure: loose modules, files entered on three walks, class depth, long functions.

    python -m benchmarks.structure

The walks are executed: a tiny run is trained first, and then, each in a process of its own,

    open and sample    `mdlm.load(run).generate(...)`
    batch to loss      one batch of the loader, to the loss and its gradient
    mdlm --help        the command line's own help

A file of `mdlm/` is *entered* if one of its functions is called while no module is being imported,
and *imported* if its module was. The lines that something new would touch are counted for an
existing example: the lines outside its own file that name an existing command or sampler.
"""

import argparse
import ast
import contextlib
import importlib
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mdlm"
LONG = 50
"""Lines above which a function counts as long."""

TARGETS = {
    "loose top modules": "<= 12",
    "open a run and sample: files entered": "<= 25",
    "batch to loss: files entered": "<= 20",
    "`mdlm --help`: files entered": "-",
    "depth of class hierarchy": "<= 3",
    f"functions over {LONG} lines": "<= 8",
    "a new command touches": "1 file + 1 line",
    "a new sampler touches": "1 file + face",
}

EXPERIMENT = """\
from mdlm.data import Bytes, TextData, TextFiles, Wrap
from mdlm.experiment import Experiment, Training
from mdlm.models import DiT
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="structure",
    data=TextData(
        source=TextFiles(train="text.txt"),
        tokenizer=Bytes(),
        packing=Wrap(length=16, row_specials=False),
    ),
    network=DiT(width=8, depth=1, heads=2, cond_dim=8),
    sampler=Ancestral(steps=2),
    train=Training(steps=1, batch_size=2),
)
"""


def loose(package: Path = PACKAGE) -> list[str]:
    """Modules directly in the package, without `__init__` and `__main__`."""
    return sorted(path.stem for path in package.glob("*.py") if not path.stem.startswith("__"))


def long_functions(package: Path = PACKAGE) -> dict[str, int]:
    """Lines of the functions that have more than `LONG`, by file and name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONG:
                    found[f"{path.relative_to(package)}: {node.name}"] = lines
    return found


def class_depths(package: str = PACKAGE.name) -> dict[str, int]:
    """Depth of each class of the package, `module: name`. One without a base in the package has 1.

    All modules are imported.
    """

    def depth(cls: type) -> int:
        own = [base for base in cls.__bases__ if base.__module__.partition(".")[0] == package]
        return 1 + max(map(depth, own), default=0)

    path = importlib.import_module(package).__path__
    names = {module.name for module in pkgutil.walk_packages(path, f"{package}.")}
    return {
        f"{module}: {name}": depth(cls)
        for module in sorted(names - {f"{package}.__main__"})
        for name, cls in vars(importlib.import_module(module)).items()
        if isinstance(cls, type) and cls.__module__ == module
    }


def mentions(name: str, own: Path, package: Path = PACKAGE, *, folder: str = ".") -> dict[str, int]:
    """Number of lines outside the file `own` whose code names `name`, by file of a folder.

    Names in comments, docstrings and messages do not count; a string that is only the name, or a
    dotted path to it, does.
    """
    is_path = re.compile(rf"""["']([\w.]*[.:])?{name}(:\w+)?["']""").fullmatch
    found = {}
    for path in sorted((package / folder).rglob("*.py*")):
        if path == own or path.suffix not in (".py", ".pyi"):
            continue
        with path.open("rb") as file:
            lines = {
                token.start[0]
                for token in tokenize.tokenize(file.readline)
                if (token.type == tokenize.NAME and token.string == name)
                or (token.type == tokenize.STRING and is_path(token.string))
            }
        if lines:
            found[str(path.relative_to(package))] = len(lines)
    return found


def command_mentions(package: Path = PACKAGE) -> dict[str, int]:
    """Lines outside its own file that name `cli/import_weights.py`, by file.

    Only `cli/` is searched, because functions elsewhere have the same name.
    """
    own = package / "cli" / "import_weights.py"
    return mentions("import_weights", own, package, folder="cli")


def sampler_mentions(package: Path = PACKAGE) -> dict[str, int]:
    """Lines outside its own file that name the sampler `FirstHitting`, by file."""
    return mentions("FirstHitting", package / "samplers" / "first_hitting.py", package)


class Tracer:
    """Collects the files below `package` whose functions are called, from all threads."""

    def __init__(self, package: Path = PACKAGE):
        self.prefix, self.entered = f"{package}{os.sep}", set()
        self._known: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in self._known:
            return
        if not code.co_filename.startswith(self.prefix):
            self._known.add(code)
        elif not _is_importing(frame):
            self._known.add(code)
            self.entered.add(code.co_filename.removeprefix(self.prefix))

    def run(self, walk: Callable[[], None]) -> list[str]:
        """The files entered by a walk."""
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            walk()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        return sorted(self.entered)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def open_and_sample(folder: str) -> Callable[[], None]:
    import mdlm

    def walk() -> None:
        mdlm.load(folder).generate("the", length=8)

    return walk


def batch_to_loss(folder: str) -> Callable[[], None]:
    import jax
    import jax.numpy as jnp

    import mdlm
    from mdlm.data.loader import TrainLoader
    from mdlm.types import Batch

    run = mdlm.load(folder)
    rows, size = run.dataset.train.rows, run.experiment.train.batch_size

    def walk() -> None:
        fields: Any = TrainLoader(rows, size, 0).batch_at(0)
        batch = Batch(**jax.tree.map(jnp.asarray, fields))
        loss = lambda params: run.model.loss(params, jax.random.key(0), batch).total
        jax.block_until_ready(jax.jit(jax.value_and_grad(loss))(run.params))

    return walk


def ask_for_help(folder: str) -> Callable[[], None]:
    def walk() -> None:
        from mdlm.cli.main import main

        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            main(["--help"])

    return walk


WALKS = {
    "open a run and sample": open_and_sample,
    "batch to loss": batch_to_loss,
    "`mdlm --help`": ask_for_help,
}


def traced(name: str, folder: str) -> dict[str, list[str]]:
    """Runs a walk in this process; returns the files entered and imported."""
    entered = Tracer().run(WALKS[name](folder))
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    below = [Path(file) for file in files if file and file.startswith(f"{PACKAGE}{os.sep}")]
    return {
        "entered": entered,
        "imported": sorted(str(path.relative_to(PACKAGE)) for path in set(below)),
    }


def python(*words: str, cwd: Path) -> str:
    """The output of a Python process on one CPU device. Raises RuntimeError if it fails."""
    there = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, **there},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(f"python {' '.join(words)} failed:\n{done.stderr}")
    return done.stdout


def walks() -> dict[str, dict[str, list[str]]]:
    """Trains a tiny run and runs the three walks; returns the files entered and imported."""
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        (there / "text.txt").write_text(
            "the quick brown fox jumps over the lazy dog\n" * 50, encoding="utf-8"
        )
        (there / "tiny.py").write_text(EXPERIMENT, encoding="utf-8")
        python("-m", "mdlm", "train", "tiny.py", "--out", "run", cwd=there)
        walk = lambda name: python("-m", "benchmarks.structure", "--walk", name, "run", cwd=there)
        return {name: json.loads(walk(name).splitlines()[-1]) for name in WALKS}


def measured() -> dict[str, str]:
    """The figures of the table as text, by name."""
    depths = class_depths()
    deepest = max(depths.values())
    deep = [name.partition(": ")[2] for name, depth in depths.items() if depth == deepest]
    figures = {
        "loose top modules": str(len(loose())),
        **{
            f"{name}: files entered": f"{len(walk['entered'])} ({len(walk['imported'])} imported)"
            for name, walk in walks().items()
        },
        "depth of class hierarchy": f"{deepest} ({', '.join(deep)})",
        f"functions over {LONG} lines": str(len(long_functions())),
        "a new command touches": touched(command_mentions()),
        "a new sampler touches": touched(sampler_mentions()),
    }
    return {name: figures[name] for name in TARGETS}


def touched(lines: dict[str, int]) -> str:
    """`1 file + 2 lines in cli/main.py`: its own file, and lines of other files that name it."""
    others = [f"{n} line{'s' * (n > 1)} in {file}" for file, n in lines.items()]
    return " + ".join(["1 file", *others])


def main(arguments: Sequence[str] | None = None) -> int:
    title, _, about = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=title, epilog=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--walk", nargs=2, metavar=("NAME", "RUN"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.walk:
        print(json.dumps(traced(*args.walk)))
        return 0
    print("| point | measured | to reach |\n|---|---|---|")
    for name, figure in measured().items():
        print(f"| {name} | {figure} | {TARGETS[name]} |")
    print("\nlong functions:")
    for name, lines in long_functions().items():
        print(f"  {lines:4}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
