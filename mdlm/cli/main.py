"""The command line: `mdlm train | prepare | eval | sample | view | ...`, one file per command.

A command is a few lines around `mdlm.load` or a training session. This file parses the arguments
and reports errors that the user can mend as one line on standard error.
`train`, `eval`, `score` and `sample` may run on several processes (see `mdlm.cluster.launch`), all
started with the same command: process 0 prints and writes for all, the others print errors only.

Exit codes: 0 success; 2 wrong arguments or input; 3 the run diverged (its checkpoints are intact;
starting it again unchanged will not help); 4 another process was lost (the same command, started
for all processes, resumes from the newest checkpoint); 129 its terminal was closed, 130 interrupted
and 143 terminated (`mdlm train` has saved its state). When one process stops with an error or a
signal, all the others stop with the same exit code.
"""

import argparse
import contextlib
import difflib
import errno
import itertools
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import mdlm
from mdlm.cli import output
from mdlm.cli.arguments import overrides
from mdlm.cli.command import Command
from mdlm.cli.malloc import keep_freed
from mdlm.cluster import heartbeat, process_group
from mdlm.cluster.launch import find_rank, joined
from mdlm.config.components import nearest
from mdlm.errors import InputError, Interrupted
from mdlm.files import cache_folder
from mdlm.foreign.shown import one_line
from mdlm.version import __version__

FILES = (
    "experiments",
    "new",
    "settings",
    "train",
    "plan",
    "prepare",
    "tokenizer",
    "eval",
    "score",
    "blanks",
    "frontier",
    "harness",
    "sample",
    "components",
    "samplers",
    "view",
    "report",
    "runs",
    "import_weights",
    "export",
    "completion",
)
"""The files of this folder that define a command, in the order of `mdlm --help`."""
COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (import_module(f"mdlm.cli.{file}").COMMAND for file in FILES)
}

VERSION = f"mdlm {__version__} (mdlm-jax, in {Path(mdlm.__file__).parent})"
"""Says which program this is: the public index has another one of that name."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that takes no more."""
NO_ROOM = "; files written before are intact: make room there, then give the same command again"

PROCESS_ARGUMENTS = ("coordinator", "processes", "process", "join_timeout")
"""Arguments about the group of processes and the rank of this one in it."""


class _Parser(argparse.ArgumentParser):
    """A parser for which `--top_p` is `--top-p`, and options, settings and other words may come in
    any order. `takes_settings` says whether `--name value` is a setting of the command where no
    option has the name."""

    takes_settings = False
    _is_inside = False
    """Whether the library's own passes over the words of a command are under way."""

    def parse_known_args(self, args=None, namespace=None):
        known = self._option_string_actions
        words = list(sys.argv[1:] if args is None else args)
        for i, word in enumerate(words):
            name, equals, value = word.partition("=")
            if name not in known and name.replace("_", "-") in known:
                words[i] = name.replace("_", "-") + equals + value
        is_command = self._subparsers is None and "_ARGCOMPLETE" not in os.environ
        if not is_command or self._is_inside:
            return super().parse_known_args(words, namespace)
        own, settings = self._apart(words)
        self._is_inside = True
        try:
            found, rest = self.parse_known_intermixed_args(own, namespace)
        finally:
            self._is_inside = False
        return found, [*rest, *settings]

    def _apart(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Returns the words of options and arguments, and those of settings: names that are no
        option's, and the word after each, which would else be read as an argument."""
        own, settings, left = [], [], iter(words)
        for word in left:
            name, equals, _ = word.partition("=")
            is_name = self.takes_settings and name.startswith("--") and name != "--"
            is_setting = is_name and not any(
                k.startswith(name) for k in self._option_string_actions
            )
            (settings if is_setting else own).append(word)
            if is_setting and not equals:
                settings += itertools.islice(left, 1)
        return own, settings

    def error(self, message: str) -> NoReturn:
        message = one_line(message).removeprefix("argument ")
        self.exit(2, f"mdlm: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; it stores the name of the chosen one in `command`."""
    main = _Parser(
        prog="mdlm",
        description="Masked diffusion language models: train, evaluate, generate. "
        "First steps: `mdlm experiments`, `mdlm train quickstart`, `mdlm sample runs/quickstart`. "
        "`mdlm COMMAND --help` explains a command, with examples.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=16),
    )
    main.add_argument("--version", action="version", version=VERSION)
    main.add_argument(
        "--traceback", action="store_true", help="print the Python traceback of an error"
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        sub = commands.add_parser(
            command.name,
            help=command.help,
            description=command.help,
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        suppress = argparse.SUPPRESS
        sub.add_argument("--traceback", action="store_true", default=suppress, help=suppress)
        command.arguments(sub)
        sub.takes_settings = command.takes_settings
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    output.opened()
    commands = parser()
    if "_ARGCOMPLETE" in os.environ:  # called by the shell's completion; exits here
        import argcomplete

        argcomplete.autocomplete(commands)
    words = list(sys.argv[1:] if arguments is None else arguments)
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None and first not in COMMANDS:
        return _failed(f"{first}: no such command{nearest(first, COMMANDS)}", 2)
    args, rest = commands.parse_known_args(words)
    try:
        with output.printing(outlives=COMMANDS[args.command].writes_files):
            return _run(args, rest)
    except BrokenPipeError:
        # The reader, such as `head`, closed the pipe. Python must not flush it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _failed(None, 0)


def _run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs a command; its errors are printed."""
    command = COMMANDS[args.command]
    try:
        changes = [*getattr(args, "components", ()), *overrides(rest)]
        if changes and not command.takes_settings:
            raise InputError(
                f"--{changes[0][0]}: mdlm {args.command} has no such option"
                f"{_nearest_option(changes[0][0], args)}; see mdlm {args.command} --help"
            )
        if command.computes:
            _prepare_jax()
        with _together(args):
            return command.run(args, changes)
    except BrokenPipeError:
        raise
    except (InputError, OSError) as error:
        if args.traceback:
            traceback.print_exc()
        if isinstance(error, InputError):
            return _failed(str(error), error.exit_code)
        where = f"{error.filename}: " if error.filename else ""
        more = NO_ROOM if error.errno in FULL else ""
        return _failed(f"{where}{error.strerror or error}{more}", 2)
    except MemoryError as error:
        words = str(error) or "too much was asked for"
        return _failed(f"out of memory: {words}; lower the sizes, such as those of batches", 2)
    except Interrupted as error:
        return _failed("stopped", 128 + error.signal)
    except KeyboardInterrupt:
        return _failed("interrupted", 130)
    except Exception:  # printed here, where the terminal is safe from what it says
        traceback.print_exc()
        return _failed(None, 1)


def _nearest_option(name: str, args: argparse.Namespace) -> str:
    """The end of a message about an unknown option: the nearest one of the command, if any."""
    known = [option.replace("_", "-") for option in vars(args)]
    found = difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.6)
    return f"; did you mean --{found[0]}?" if found else ""


@contextlib.contextmanager
def _together(args: argparse.Namespace) -> Iterator[None]:
    """Joins the group of processes, if the arguments or the cluster's environment describe one."""
    if not COMMANDS[args.command].many_processes:
        yield
        return
    rank = find_rank(args.coordinator, args.processes, args.process)
    again = "; the run can be continued from its newest checkpoint: same command"
    with joined(rank, timeout=args.join_timeout, advice=again if args.command == "train" else ""):
        try:
            if args.command != "train":  # which compares the resulting experiments instead
                own = ("run_folder", "trace", "out", "traceback", *PROCESS_ARGUMENTS)
                said = {name: value for name, value in vars(args).items() if name not in own}
                process_group.check_same(said, "arguments")
            yield
        except (InputError, OSError):
            raise
        except Exception as error:
            if (ours := _of_many()) is None:
                raise
            group, own_heartbeat = ours
            own_heartbeat.end_if_process_lost()
            traceback.print_exc(file=group.err)
            _failed(f"{type(error).__name__}: {error}".splitlines()[0], 1)


def _of_many() -> tuple[process_group.ProcessGroup, heartbeat.Heartbeat] | None:
    """The group of processes that this one has joined, and its heartbeat; None if it is alone."""
    group, own_heartbeat = process_group.current(), heartbeat.current()
    return None if group is None or own_heartbeat is None else (group, own_heartbeat)


def _failed(line: str | None, code: int) -> int:
    """Prints the error and returns the exit code.

    One of several processes also tells the others to stop, and exits at once: a normal exit of
    Python would wait for them.
    """
    line = line and one_line(line)
    if (ours := _of_many()) is None:
        if line is not None:
            print(f"mdlm: {line}", file=sys.stderr)
        return code
    group, own_heartbeat = ours
    if line is not None:
        group.report(line)
    own_heartbeat.give_up(code, line or "the reader of its output closed the pipe")
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _prepare_jax() -> None:
    """Turns on JAX's cache of compiled programs on disk, so that a second start does not compile
    again, and keeps freed memory in the process (`mdlm.cli.malloc`)."""
    keep_freed()
    import jax

    cache = os.environ.get("MDLM_CACHE") or cache_folder("jax")
    if cache is None:
        words = "no home folder: compiled programs are not kept; set MDLM_CACHE to a folder"
        print(f"mdlm: {words}", file=sys.stderr)
    jax.config.update("jax_compilation_cache_dir", None if cache is None else str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


if __name__ == "__main__":
    sys.exit(main())
