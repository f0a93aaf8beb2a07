"""The command line: `mdlm train | eval | sample | view | samplers | import | settings`.

What a command does is a few lines around `mdlm.load` and a training session; this file draws
progress and turns what people can mend into one line on standard error.
Exit codes: 0 done, 2 a mistake in what was asked, 130 interrupted (state saved), 143 terminated
(state saved).
"""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mdlm.arguments import overrides, parser
from mdlm.host_memory import keep_freed
from mdlm.progress import Progress
from mdlm.types import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    args, rest = parser().parse_known_args(arguments)
    try:
        changes = overrides(rest)
        if changes and args.command not in ("train", "import", "settings"):
            raise InputError(f"--{changes[0][0]}: mdlm {args.command} has no such option")
        _prepare_jax()
        return RUN[args.command](args, changes)
    except InputError as error:
        if args.traceback:
            raise
        print(f"mdlm: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read the output has seen enough. Nothing is left to be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if args.traceback:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"mdlm: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mdlm: interrupted", file=sys.stderr)
        return 130


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
    with _stop_signals() as stop, Progress() as progress:
        session = Session(
            experiment,
            out,
            source=Path(args.experiment).read_text(),
            overrides=changes,
            init_from=args.init_from,
            tensorboard=args.tensorboard,
            wandb=args.wandb,
            profile=args.profile or 0,
            report=progress.stage,
        )
        for event in session.train(should_stop=lambda: stop["signal"] is not None):
            progress.show(event)
    if stop["signal"] is not None and not session.finished:
        again = " ".join(["mdlm", *sys.argv[1:]])
        print(f"mdlm: stopped at step {session.step}, saved; to continue: {again}", file=sys.stderr)
        return 128 + stop["signal"]
    print(session.closing_words())
    return 0


def run_eval(args: argparse.Namespace, _: list[tuple[str, str]]) -> int:
    from mdlm.data.sources import TextFiles
    from mdlm.run import load

    run = load(args.run_folder, step=args.step)
    how, data = run.experiment.evaluation, None
    if args.passes is not None and args.passes < 1:
        raise InputError(f"--passes {args.passes}: at least one pass is needed")
    if args.data:
        files = tuple(args.data)
        data = replace(run.experiment.data, source=TextFiles(train=files, valid=files, test=files))
        how = replace(how, ngrams=False)
    how = replace(
        how,
        split=args.split or how.split,
        passes=how.passes if args.passes is None else args.passes,
        batch_size=how.batch_size if args.batch_size is None else args.batch_size,
    )
    with Progress() as progress:
        metrics = run.perplexity(how, data=data, report=progress.bar("scoring", "rows"))
    if args.json:
        print(json.dumps([vars(m) for m in metrics], indent=1))
    else:
        print(f"{args.run_folder}, step {run.step}")
        print("\n".join(f"  {metric}" for metric in metrics))
    return 0


def run_sample(args: argparse.Namespace, _: list[tuple[str, str]]) -> int:
    from mdlm.generation import banned_by, temperature_of
    from mdlm.run import load
    from mdlm.samplers.catalogue import from_text

    if args.num < 1:
        raise InputError(f"--num {args.num}: at least one text is needed")
    trace = None if args.trace is None else _writable(args.trace)
    run = load(args.run_folder, step=args.step)
    sampler = from_text(args.sampler) if args.sampler else run.experiment.sampler
    names = ("steps", "top_p", "top_k", "top_p_rule")
    settings = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if args.temperature is not None:
        settings["temperature"] = temperature_of(args.temperature)
    if args.ban or args.ban_id:
        banned = (*banned_by(run.tokenizer, args.ban or ()), *(args.ban_id or ()))
        settings["banned"] = (*sampler.banned, *banned)
    if "steps" in settings and not hasattr(sampler, "steps"):
        name = type(sampler).__name__
        raise InputError(f"--steps: {name}(...) has no number of steps, see `mdlm samplers`")
    try:
        sampler = replace(sampler, **settings)
    except ValueError as error:
        raise InputError(str(error)) from error
    with Progress() as progress:
        if args.infill is not None:
            out = run.infill(
                args.infill,
                num=args.num,
                seed=args.seed,
                trace=trace is not None,
                sampler=sampler,
            )
        else:
            bar = progress.bar("generating", "windows")
            out = run.generate(
                args.prompt,
                num=args.num,
                length=args.length,
                seed=args.seed,
                stride=args.stride,
                stop_at_eos=args.stop_at_eos,
                trace=trace is not None,
                report=lambda done: bar(done.window, done.windows),
                sampler=sampler,
            )
    if trace is not None and out.trace is not None:
        from mdlm.view.document import dumps

        trace.write_text(dumps(out.trace))
        print(f"{trace}: {out.trace.steps} steps; next: mdlm view {trace}", file=sys.stderr)
    if args.json:
        summary = {
            "nfe": out.nfe,
            "seconds": out.seconds,
            "tokens_per_second": out.tokens_per_second,
        }
        print(json.dumps({**summary, "texts": [vars(t) for t in out.texts]}))
        return 0
    for number, text in enumerate(out.texts, 1):
        if len(out.texts) > 1:
            print(f"=== {number} ===")
        print(text.text)
    print(f"({out})", file=sys.stderr)
    return 0


def run_view(args: argparse.Namespace, _: list[tuple[str, str]]) -> int:
    from mdlm.view import terminal
    from mdlm.view.document import loads
    from mdlm.view.frames import row_of

    if not 0 < args.fps <= 50:
        raise InputError(f"--fps {args.fps:g}: between 0 and 50 steps a second can be shown")
    trace = loads(Path(args.trace).read_bytes(), args.trace)
    row = row_of(trace, args.row)
    if args.html is not None:
        from mdlm.view.page import page

        _writable(args.html).write_text(page(trace, row=args.row, fps=args.fps), "utf-8")
        print(f"{args.html}: {trace.steps} steps of {len(trace.rows)} texts; open it in a browser")
    if args.gif is not None:
        from mdlm.view.gif import gif

        _writable(args.gif).write_bytes(gif(trace, row, fps=args.fps))
        print(f"{args.gif}: {trace.steps} steps of text {args.row}")
    if args.html is None and args.gif is None:
        terminal.show(trace, row, sys.stdout, fps=args.fps)
    return 0


def _writable(name: str) -> Path:
    """Where a file can be written; refused before the work is done rather than after it."""
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{name}: no file can be written there")
    return path


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


def run_samplers(_: argparse.Namespace, __: list[tuple[str, str]]) -> int:
    from mdlm.samplers.catalogue import described

    print(described())
    return 0


def run_settings(args: argparse.Namespace, changes: list[tuple[str, str]]) -> int:
    from mdlm.overrides import expected, names

    for name, kind, value in names(_experiment(args, changes)):
        print(f"--{name:32s} {value!r:24}  {expected(kind)}")
    return 0


RUN = {
    "train": run_train,
    "eval": run_eval,
    "sample": run_sample,
    "view": run_view,
    "import": run_import,
    "samplers": run_samplers,
    "settings": run_settings,
}


@contextlib.contextmanager
def _stop_signals() -> Iterator[dict[str, int | None]]:
    """Ctrl-C and SIGTERM ask the run to save and stop; a second Ctrl-C ends it at once."""
    asked: dict[str, int | None] = {"signal": None}

    def ask(number, frame):
        if asked["signal"] is not None:
            raise KeyboardInterrupt
        asked["signal"] = number
        print("\nmdlm: saving, then stopping (once more to stop at once)", file=sys.stderr)

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
