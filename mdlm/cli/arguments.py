"""Arguments that several commands share, and `--name value` pairs."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdlm.cli.command import Changes
from mdlm.cluster import process_group
from mdlm.config.ranges import LARGEST, LARGEST_SEED
from mdlm.errors import InputError

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.experiment.experiment import Experiment
    from mdlm.run import Run

MANY_HELP = """\

several processes (for a model that does not fit the devices of one host):
  mdlm {command} RUN --coordinator node0:1234 --processes 4 --process 0
                     on node0; on the other hosts the same with --process 1, 2 and 3

On a Cloud TPU slice, under `srun` with several tasks, and under mpirun, these flags are not needed.
All processes must be able to read RUN, for example on a shared disk. Process 0 prints the
result."""


def experiment_of(args: argparse.Namespace, changes: Changes) -> "Experiment":
    """Loads the experiment that a command names and applies the changed settings."""
    trust = getattr(args, "trust_experiment", False)
    own = {name: getattr(args, name, None) for name in ("out", "fork")}
    return experiment_from(
        args.experiment, changes, getattr(args, "init_from", None), trust=trust, **own
    )


def experiment_from(
    file: str,
    changes: Changes,
    base: str | None = None,
    *,
    out: str | None = None,
    fork: str | None = None,
    trust: bool = False,
) -> "Experiment":
    """Loads an experiment, which may follow from that of a run folder `base`, and applies the
    changed settings. If it is that of a run in `out`, or of `fork`, it follows from nothing else.
    """
    from mdlm.experiment.loading import load_changed
    from mdlm.runs.folder import RunFolder

    of = lambda path: RunFolder(path, trust=trust).experiment
    earlier = None
    if out and RunFolder(out).exists:
        earlier = out
    elif fork:
        earlier = fork.rpartition("@")[0] or fork
    return load_changed(
        file,
        changes,
        base=of(base) if base else None,
        known=of(earlier) if earlier else None,
        begun_with=lambda: RunFolder(earlier).config()["overrides"] if earlier else (),
    )


def typed(words: Sequence[str]) -> str:
    """Returns a command of `mdlm` as it is typed in a shell; `words` are those after `mdlm`."""
    return shlex.join(["mdlm", *words])


def add_experiment(sub: argparse.ArgumentParser) -> None:
    """Adds the argument that names an experiment."""
    action = sub.add_argument(
        "experiment", help="an experiment: a name from `mdlm experiments`, or a Python file"
    )
    complete_experiments(action)


def add_base(sub: argparse.ArgumentParser) -> None:
    """Adds the option that names the run from which an experiment follows, if it does."""
    sub.add_argument(
        "--init-from", metavar="RUN", help="the run that experiments such as sft start from"
    )


def complete_experiments(action: argparse.Action) -> None:
    """Lets the shell complete an argument with experiment names and Python files."""

    def candidates(prefix: str, **_) -> list[str]:
        from argcomplete.completers import FilesCompleter

        from mdlm.experiment.shipped import names

        return [*names(), *FilesCompleter(("py",))(prefix)]

    setattr(action, "completer", candidates)  # noqa: B010, argcomplete reads this attribute


def whole(text: str) -> int:
    """Reads a whole number of an option: exact, and no larger than devices can count."""
    return _within(text, int, LARGEST)


def seed(text: str) -> int:
    """Reads a seed, of 63 bits."""
    value = _read(text, int)
    if not 0 <= value <= LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text[:40]}: must be in [0, 2**63)")
    return value


def real(text: str) -> float:
    """Reads a finite number of an option."""
    return _within(text, float, sys.float_info.max)


def _within(text: str, kind: type, most: float) -> Any:
    value = _read(text, kind)
    if abs(value) > most:
        raise argparse.ArgumentTypeError(f"{text[:40]}: must be at most {most:g}")
    return value


def _read(text: str, kind: type) -> Any:
    from mdlm.config.component_text import from_text
    from mdlm.config.field_types import WORDS

    try:
        return from_text(text, kind)
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{text[:40]}: expected {WORDS[kind]}") from error


def writable(name: str) -> Path:
    """The path of a file to write, checked before the work starts.

    Raises InputError if the path is a folder or its parent folder does not exist.
    """
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{name}: cannot be written; name a file in an existing folder")
    return path


def add_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "run_folder", metavar="RUN", help="a run folder, made by `mdlm train` or `mdlm import`"
    )
    sub.add_argument(
        "--step",
        type=whole,
        help="use the checkpoint of this step (default: newest checkpoint or weights)",
    )
    sub.add_argument("--json", action="store_true", help="print the result as JSON")
    add_trust(sub)
    add_no_verify(sub)


def opened(args: argparse.Namespace) -> "Run":
    """Opens the run that the options of `add_run` name, and says if its mesh is another here."""
    from mdlm.run import load

    run = load(
        args.run_folder,
        step=args.step,
        trust=args.trust_experiment,
        verify=not args.no_verify,
    )
    if run.remark and process_group.is_main():
        print(f"mdlm: {run.remark}", file=sys.stderr)
    return run


def also_opened(args: argparse.Namespace, folder: str) -> "Run":
    """Opens another run that a command reads, trusted and verified as its options say."""
    from mdlm.run import load

    return load(folder, trust=args.trust_experiment, verify=not args.no_verify)


def add_trust(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--trust-experiment",
        action="store_true",
        help="execute the run folder's copy of its experiment file, needed only if it defines "
        "components of its own; use it only if you trust the authors",
    )


def add_no_verify(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--no-verify",
        action="store_true",
        help="do not compare the files of a run with their digests before they are used",
    )


class _Process(argparse.Action):
    """Reads `--process` in its two meanings: `--process 3` gives the rank of this host process,
    `--process "Masked(...)"` replaces the noise process of the experiment."""

    def __call__(self, parser, namespace, values, option_string=None):
        if str(values).strip().lstrip("-").isdecimal():
            try:
                namespace.process = whole(str(values))
            except argparse.ArgumentTypeError as error:
                parser.error(f"argument {option_string}: {error}")
        else:
            namespace.components = [*getattr(namespace, "components", ()), ("process", values)]


def add_process_group(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("one run on several processes")
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0, the same for all processes",
    )
    group.add_argument(
        "--processes", type=whole, metavar="N", help="number of processes of the run"
    )
    group.add_argument(
        "--process",
        action=_Process,
        metavar="I",
        help='rank of this process, 0 to N-1 (a component, such as "Masked(...)", sets the '
        "experiment's noise process instead)",
    )
    group.add_argument(
        "--join-timeout",
        type=whole,
        default=60,
        metavar="S",
        help="seconds to wait for the other processes at the start (default: 60)",
    )


def overrides(rest: Sequence[str]) -> Changes:
    """Splits `--a.b value` and `--a.b=value` into (name, value) pairs.

    Raises InputError if a word is neither.
    """
    pairs, i = [], 0
    while i < len(rest):
        word = rest[i]
        if not word.startswith("--"):
            raise InputError(f"{word}: not an option or setting; write settings as --name value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            i += 1
            if i == len(rest):
                raise InputError(f"{word}: a value is missing; write {word} VALUE")
            value = rest[i]
        pairs.append((name, value))
        i += 1
    return pairs
