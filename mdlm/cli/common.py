"""What commands share: their form, groups of arguments, and values replaced by name."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdlm.errors import InputError

if TYPE_CHECKING:  # what a `--help` need not wait for
    from mdlm.experiment.experiment import Experiment

Changes = list[tuple[str, str]]
"""Settings given as `--dotted.name value`, in the order of the command line."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of `mdlm`. Each stands in a file of this folder and in the list of `main`.

    Args:
        name: what is typed.
        help: one line for `mdlm --help`.
        run: does it; returns the exit code.
        epilog: examples and explanations below the arguments.
        arguments: adds the command's own arguments to its parser.
        takes_settings: whether values of an experiment may be replaced by dotted name.
        computes: whether it uses JAX in this process.
        many_processes: whether it may be started as one of several processes.
    """

    name: str
    help: str
    run: Callable[[argparse.Namespace, Changes], int]
    epilog: str = ""
    arguments: Callable[[argparse.ArgumentParser], None] = lambda sub: None
    takes_settings: bool = False
    computes: bool = True
    many_processes: bool = False


MANY_HELP = """\

many processes (a model that does not fit the devices of one host):
  mdlm {command} RUN --coordinator node0:1234 --processes 4 --process 0
                     on node0; on the others the same with --process 1, 2 and 3

On a Cloud TPU slice, under `srun` with several tasks, and under mpirun, these flags are not needed.
RUN is on a disk that all share; process 0 prints."""


def experiment_of(args: argparse.Namespace, changes: Changes) -> "Experiment":
    """The experiment that a command names, with its changes."""
    from mdlm.config.overrides import apply
    from mdlm.experiment.loading import load_file

    return apply(load_file(args.experiment), changes)


def add_experiment(sub: argparse.ArgumentParser) -> None:
    """The argument that names an experiment."""
    action = sub.add_argument(
        "experiment", help="an experiment: its name (`mdlm experiments`), or a file (.py)"
    )
    complete_experiments(action)


def complete_experiments(action: argparse.Action) -> None:
    """Has shells complete an argument with names of experiments, and files."""

    def candidates(prefix: str, **_) -> list[str]:
        from argcomplete.completers import FilesCompleter

        from mdlm.experiment.shipped import names

        return [*names(), *FilesCompleter(("py",))(prefix)]

    setattr(action, "completer", candidates)  # noqa: B010, an attribute that argcomplete reads


def writable(name: str) -> Path:
    """Where a file can be written; refused before the work is done rather than after it."""
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{name}: no file can be written there")
    return path


def add_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run_folder", metavar="RUN", help="a run folder")
    sub.add_argument(
        "--step", type=int, help="checkpoint of that step (default: newest checkpoint or weights)"
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    add_trust(sub)


def add_trust(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--trust-experiment",
        action="store_true",
        help="execute the run folder's copy of its experiment file; only if you trust its authors",
    )


class _Process(argparse.Action):
    """`--process 3` is the number of this process; `--process "Masked(...)"` replaces the noise
    process of the experiment, as any of its values can be."""

    def __call__(self, parser, namespace, values, option_string=None):
        if str(values).strip().lstrip("-").isdecimal():
            namespace.process = int(str(values))
        else:
            namespace.components = [*getattr(namespace, "components", ()), ("process", values)]


def add_process_group(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("one run of many processes")
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where process 0 can be reached by the others"
    )
    group.add_argument("--processes", type=int, metavar="N", help="how many processes there are")
    group.add_argument(
        "--process",
        action=_Process,
        metavar="I",
        help="which this is: 0 to N-1 (anything else is the noise process of the experiment)",
    )
    group.add_argument(
        "--join-timeout",
        type=int,
        default=60,
        metavar="S",
        help="seconds to wait for the others at the start (default: 60)",
    )


def overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    """`--a.b value` and `--a.b=value` as pairs."""
    pairs, i = [], 0
    while i < len(rest):
        word = rest[i]
        if not word.startswith("--"):
            raise InputError(f"{word}: settings are given as --name value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            i += 1
            if i == len(rest):
                raise InputError(f"{word}: a value is missing")
            value = rest[i]
        pairs.append((name, value))
        i += 1
    return pairs
