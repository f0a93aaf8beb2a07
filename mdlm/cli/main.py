"""The command line: `mdlm train | prepare | eval | sample | view | ...`, a file for each command.

What a command does is a few lines around `mdlm.load` and a training session; this file draws
progress and turns what people can mend into one line on standard error.
`train`, `eval` and `sample` may be one run of many processes (see `mdlm.cluster.launch`), all
started with the same command: process 0 speaks and writes for all, the others say errors only.

Exit codes: 0 done, 2 a mistake in what was asked, 3 a run that diverged (its checkpoints are
intact, the same again will not help), 4 another process was lost (the same command, by all, goes on
from the newest checkpoint), 130 interrupted (state saved), 143 terminated (state saved). Processes
that stop because one of them was interrupted, terminated or refused all have that one's code.
"""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from mdlm.cli import (
    completion,
    components,
    eval,
    experiments,
    import_weights,
    new,
    plan,
    prepare,
    sample,
    samplers,
    settings,
    tokenizer,
    train,
    view,
)
from mdlm.cli.common import Command, overrides
from mdlm.cli.malloc import keep_freed
from mdlm.cluster import heartbeat, process_group
from mdlm.cluster.launch import find_rank, joined
from mdlm.errors import InputError
from mdlm.version import __version__

FILES = (
    experiments,
    new,
    settings,
    train,
    plan,
    prepare,
    tokenizer,
    eval,
    sample,
    components,
    samplers,
    view,
    import_weights,
    completion,
)
COMMANDS: dict[str, Command] = {file.COMMAND.name: file.COMMAND for file in FILES}

PLACE = ("coordinator", "processes", "process", "join_timeout")
"""Arguments that say which of many processes this is."""


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments; `command` holds the name of the one that was given."""
    main = argparse.ArgumentParser(
        prog="mdlm",
        description="Masked diffusion language models: train, evaluate, generate.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=16),
    )
    main.add_argument("--version", action="version", version=f"mdlm {__version__}")
    main.add_argument("--traceback", action="store_true", help="show where an error comes from")
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
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    commands = parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may follow; answered, and ended, here
        import argcomplete

        argcomplete.autocomplete(commands)
    args, rest = commands.parse_known_args(arguments)
    command = COMMANDS[args.command]
    try:
        changes = [*getattr(args, "components", ()), *overrides(rest)]
        if changes and not command.takes_settings:
            raise InputError(f"--{changes[0][0]}: mdlm {args.command} has no such option")
        if command.computes:
            _prepare_jax()
        with _together(args):
            return command.run(args, changes)
    except InputError as error:
        if args.traceback:
            raise
        return _failed(str(error), error.exit_code)
    except BrokenPipeError:
        # Whoever read the output has seen enough. Nothing is left to be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _failed(None, 0)
    except OSError as error:
        if args.traceback:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _failed("interrupted", 130)


@contextlib.contextmanager
def _together(args: argparse.Namespace) -> Iterator[None]:
    """Within it this is one of many processes, if the command and its surroundings say so."""
    if not COMMANDS[args.command].many_processes:
        yield
        return
    rank = find_rank(args.coordinator, args.processes, args.process)
    again = "; the run can be continued from its newest checkpoint: same command"
    with joined(rank, timeout=args.join_timeout, advice=again if args.command == "train" else ""):
        try:
            if args.command != "train":  # which compares what follows from them
                own = ("run_folder", "trace", "traceback", *PLACE)
                said = {name: value for name, value in vars(args).items() if name not in own}
                process_group.check_same(said, "arguments")
            yield
        except (InputError, OSError):
            raise
        except Exception as error:
            group, own_heartbeat = process_group.current(), heartbeat.current()
            if group is None or own_heartbeat is None:
                raise
            own_heartbeat.end_if_process_lost()
            traceback.print_exc(file=group.err)
            _failed(f"{type(error).__name__}: {error}".splitlines()[0], 1)


def _failed(line: str | None, code: int) -> int:
    """Says why there is no result; returns the exit code. One of many processes takes the others
    with it, and ends here: Python's way out would wait for them."""
    group, own_heartbeat = process_group.current(), heartbeat.current()
    if group is None or own_heartbeat is None:
        if line is not None:
            print(f"mdlm: {line}", file=sys.stderr)
        return code
    if line is not None:
        group.report(line)
    own_heartbeat.give_up(code, line or "its output is read no more")
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _prepare_jax() -> None:
    """Keeps compiled programs between calls, so that a second start does not compile again, and
    memory between steps."""
    keep_freed()
    import jax

    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mdlm" / "jax"
    jax.config.update("jax_compilation_cache_dir", os.environ.get("MDLM_CACHE", str(default)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


if __name__ == "__main__":
    sys.exit(main())
