"""The command line: `mdlm train | prepare | eval | sample | view | ...`.

What a command does is a few lines around `mdlm.load` and a training session; this file draws
progress and turns what people can mend into one line on standard error.
`train`, `eval` and `sample` may be one run of many processes (see `mdlm.joining`), all started with
the same command: process 0 speaks and writes for all, the others say errors only.

Exit codes: 0 done, 2 a mistake in what was asked, 3 a run that diverged (its checkpoints are
intact, the same again will not help), 4 another process was lost (the same command, by all, goes on
from the newest checkpoint), 130 interrupted (state saved), 143 terminated (state saved). Processes
that stop because one of them was interrupted, terminated or refused all have that one's code.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mdlm import data_commands, hosts, plan_commands, sampling_commands, tokenizer_commands, watch
from mdlm.arguments import overrides, parser
from mdlm.host_memory import keep_freed
from mdlm.joining import joined, place
from mdlm.progress import Progress
from mdlm.types import InputError

if TYPE_CHECKING:  # what a `--help` need not wait for
    from mdlm.data.dataset import TextData
TAKES_SETTINGS = ("train", "plan", "prepare", "import", "tokenizer", "settings")
"""Commands with an experiment, whose settings can be changed from outside."""

PLACE = ("coordinator", "processes", "process", "join_timeout")
"""Arguments that say which of many processes this is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    args, rest = parser().parse_known_args(arguments)
    try:
        changes = overrides(rest)
        if changes and args.command not in TAKES_SETTINGS:
            raise InputError(f"--{changes[0][0]}: mdlm {args.command} has no such option")
        if args.command not in ("plan", "prepare", "tokenizer"):  # which compute nothing
            _prepare_jax()
        with _together(args):
            return RUN[args.command](args, changes)
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
    if args.command not in ("train", "eval", "sample"):
        yield
        return
    mine = place(args.coordinator, args.processes, args.process)
    again = "; the run can be continued from its newest checkpoint: same command"
    with joined(mine, patience=args.join_timeout, advice=again if args.command == "train" else ""):
        try:
            if args.command != "train":  # which compares what follows from them
                own = ("run_folder", "trace", "traceback", *PLACE)
                said = {name: value for name, value in vars(args).items() if name not in own}
                hosts.check_same(said, "arguments")
            yield
        except (InputError, OSError):
            raise
        except Exception as error:
            party, here = hosts.present(), watch.current()
            if party is None or here is None:
                raise
            here.explain()
            traceback.print_exc(file=party.err)
            _failed(f"{type(error).__name__}: {error}".splitlines()[0], 1)


def _failed(line: str | None, code: int) -> int:
    """Says why there is no result; returns the exit code. One of many processes takes the others
    with it, and ends here: Python's way out would wait for them."""
    party, here = hosts.present(), watch.current()
    if party is None or here is None:
        if line is not None:
            print(f"mdlm: {line}", file=sys.stderr)
        return code
    if line is not None:
        party.says(line)
    here.give_up(code, line or "its output is read no more")
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


def _prepare_profile(steps: int) -> None:
    """Has a kept program stand for its own source only.

    Otherwise it may be that of an older source which computes the same, but whose names for the
    parts, by which a profile tells them apart, were others.
    """
    import jax

    if steps < 1:
        raise InputError(f"--profile {steps}: at least one step is needed")
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)


def _experiment(args: argparse.Namespace, changes: list[tuple[str, str]]):
    from mdlm.experiment import load_file
    from mdlm.overrides import apply

    return apply(load_file(args.experiment), changes)


def run_train(args: argparse.Namespace, changes: list[tuple[str, str]]) -> int:
    from mdlm.train.session import Session

    if args.seed is not None:
        changes = [*changes, ("seed", str(args.seed))]
    if args.profile is not None:
        _prepare_profile(args.profile)
    experiment = _experiment(args, changes)
    out = Path(args.out or f"runs/{experiment.name}")
    with _stop_signals() as stop, Progress(quiet=not hosts.leads()) as progress:
        session = Session(
            experiment,
            out,
            source=Path(args.experiment).read_text(),
            overrides=changes,
            checkpoints=args.checkpoints,
            init_from=args.init_from,
            tensorboard=args.tensorboard,
            wandb=args.wandb,
            profile=args.profile or 0,
            report=progress.stage,
        )
        for event in session.train(should_stop=stop.now):
            progress.show(event)
    if stop.signal is not None and not session.finished:
        if hosts.leads():
            again = " ".join(["mdlm", *sys.argv[1:]])
            words = f"stopped at step {session.step}, saved; to continue: {again}"
            print(f"mdlm: {words}", file=sys.stderr)
        return 128 + stop.signal
    print(session.closing_words())
    return 0


def run_eval(args: argparse.Namespace, _: list[tuple[str, str]]) -> int:
    from mdlm.data.dataset import TextData
    from mdlm.data.sources import TextFiles
    from mdlm.run import load

    run = load(args.run_folder, step=args.step)
    if run.remark and hosts.leads():
        print(f"mdlm: {run.remark}", file=sys.stderr)
    how, data = run.experiment.evaluation, None
    if args.passes is not None and args.passes < 1:
        raise InputError(f"--passes {args.passes}: at least one pass is needed")
    if args.on:
        data, split = _well_known(args, run.experiment)
        how = replace(how, split=split, ngrams=False)
    elif args.data:
        files = tuple(args.data)
        mine = run.experiment.data
        data = TextData(
            source=TextFiles(train=files, valid=files, test=files),
            tokenizer=mine.tokenizer,
            packing=mine.packing,
        )
        how = replace(how, ngrams=False)
    how = replace(
        how,
        split=args.split or how.split,
        passes=how.passes if args.passes is None else args.passes,
        batch_size=how.batch_size if args.batch_size is None else args.batch_size,
    )
    with Progress(quiet=not hosts.leads()) as progress:
        metrics = run.perplexity(how, data=data, report=progress.bar("scoring", "rows"))
    if args.json:
        print(json.dumps([vars(m) for m in metrics], indent=1))
    else:
        print(f"{args.run_folder}, step {run.step}")
        print("\n".join(f"  {metric}" for metric in metrics))
    return 0


def _well_known(args: argparse.Namespace, run: "Experiment") -> "tuple[TextData, str]":
    """The text that `--on` names, and its split."""
    from mdlm.data.zero_shot import zero_shot

    if args.split:
        raise InputError(f"--split {args.split}: --on says which split is scored")
    if len(args.data or ()) > 1:
        raise InputError("--data: with --on, one folder with a copy of that data set")
    path = args.data[0] if args.data else None
    return zero_shot(args.on, run.data.tokenizer, run.data.packing, path)


def run_import(args: argparse.Namespace, changes: list[tuple[str, str]]) -> int:
    from mdlm.train.session import import_weights

    experiment = _experiment(args, changes)
    parameters = import_weights(
        args.weights,
        experiment,
        Path(args.out),
        source=Path(args.experiment).read_text(),
        overrides=changes,
    )
    print(f"{args.out}: {parameters:,} parameters from {args.weights}")
    return 0


def run_settings(args: argparse.Namespace, changes: list[tuple[str, str]]) -> int:
    from mdlm.overrides import expected, names

    for name, kind, value in names(_experiment(args, changes)):
        print(f"--{name:32s} {value!r:24}  {expected(kind)}")
    return 0


RUN = {
    "train": run_train,
    "plan": plan_commands.plan,
    "prepare": data_commands.prepare,
    "eval": run_eval,
    "sample": sampling_commands.sample,
    "view": sampling_commands.view,
    "import": run_import,
    "samplers": sampling_commands.samplers,
    "tokenizer": tokenizer_commands.train,
    "settings": run_settings,
}


@contextlib.contextmanager
def _stop_signals() -> Iterator[watch.Stop]:
    """Ctrl-C and SIGTERM ask the run to save and stop; a second Ctrl-C ends it at once."""
    stop = watch.Stop()

    def ask(number, frame):
        if stop.asked_here:
            raise KeyboardInterrupt
        stop.ask(number)
        print("\nmdlm: saving, then stopping (once more to stop at once)", file=sys.stderr)

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
