"""The command line: `mdlm train | eval | sample | import | settings`.

What a command does is a few lines around `mdlm.load` and a training session; this file reads
arguments, draws progress and turns what people can mend into one line on standard error.
Exit codes: 0 done, 2 a mistake in what was asked, 130 interrupted (state saved), 143 terminated
(state saved).
"""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mdlm.host_memory import keep_freed
from mdlm.progress import Progress
from mdlm.types import InputError
from mdlm.version import __version__

TRAIN_HELP = """\
examples:
  mdlm train experiments/quickstart.py
  mdlm train experiments/quickstart.py --train.steps 2000 --optimizer.learning_rate 1e-3
  mdlm train experiments/owt_small.py --out runs/owt --mesh.fsdp 8

Any value of the experiment can be replaced by its dotted name; `mdlm settings FILE` lists them.
The same command continues a run that was interrupted, from its newest checkpoint. An experiment
file is Python and is executed."""

SAMPLE_HELP = """\
examples:
  mdlm sample runs/quickstart --length 512
  mdlm sample runs/quickstart --prompt "The import statement" --num 3 --top-p 0.9
  mdlm sample runs/quickstart --infill "A list is [MASK:8] that can be changed."

[MASK] is a blank of one token, [MASK:8] one of eight."""


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    main = argparse.ArgumentParser(
        prog="mdlm", description="Masked diffusion language models: train, evaluate, generate."
    )
    main.add_argument("--version", action="version", version=f"mdlm {__version__}")
    main.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, help: str, epilog: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        suppress = argparse.SUPPRESS
        sub.add_argument("--traceback", action="store_true", default=suppress, help=suppress)
        return sub

    train = command("train", run_train, "train an experiment, or continue its run", TRAIN_HELP)
    train.add_argument("experiment", help="an experiment file (.py)")
    train.add_argument("--out", help="run folder (default: runs/NAME of the experiment)")
    train.add_argument("--seed", type=int, help="the run's seed (short for --seed of the file)")
    train.add_argument("--init-from", metavar="RUN", help="begin with the parameters of a run")
    train.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    train.add_argument("--wandb", metavar="PROJECT", help="also log to Weights & Biases")

    train.add_argument(
        "--profile",
        type=int,
        metavar="N",
        help="trace N steps into RUN/profile and print where their time went",
    )

    score = command("eval", run_eval, "score a split: nats per token, bits per byte, perplexity")
    _a_run(score)
    score.add_argument("--split", choices=("train", "valid", "test"), help="default: the run's")
    score.add_argument("--data", metavar="FILE", nargs="+", help="score these text files instead")
    score.add_argument("--passes", type=int, help="independent passes over the split")
    score.add_argument("--batch-size", type=int, help="rows scored at a time")

    sample = command("sample", run_sample, "generate text", SAMPLE_HELP)
    _a_run(sample)
    what = sample.add_mutually_exclusive_group()
    what.add_argument("--prompt", default="", help="text to continue")
    what.add_argument("--infill", metavar="TEXT", help="text with blanks to fill")
    sample.add_argument("--length", type=int, help="tokens of each text (default: a row)")
    sample.add_argument("--num", type=int, default=1, help="how many texts")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--steps", type=int, help="sampling steps per window")
    sample.add_argument("--temperature", type=float)
    sample.add_argument("--top-p", type=float)
    sample.add_argument("--top-k", type=int)
    sample.add_argument("--stride", type=int, help="new tokens per window (default: half of it)")
    sample.add_argument("--stop-at-eos", action="store_true", help="end a text at end-of-text")

    convert = command("import", run_import, "make a run folder from published MDLM weights")
    convert.add_argument("weights", help=".safetensors in the layout of the MDLM repository")
    convert.add_argument("experiment", help="an experiment file whose network has their sizes")
    convert.add_argument("--out", required=True, help="run folder to make")

    settings = command("settings", run_settings, "list what can be set in an experiment")
    settings.add_argument("experiment", help="an experiment file (.py)")
    return main


def _a_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run_folder", metavar="RUN", help="a run folder")
    sub.add_argument("--step", type=int, help="checkpoint of that step (default: the newest)")
    sub.add_argument("--json", action="store_true", help="print JSON")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    args, rest = parser().parse_known_args(arguments)
    try:
        overrides = _overrides(rest)
        if overrides and args.command not in ("train", "import", "settings"):
            raise InputError(f"--{overrides[0][0]}: mdlm {args.command} has no such option")
        _prepare_jax()
        return args.run(args, overrides)
    except InputError as error:
        if args.traceback:
            raise
        print(f"mdlm: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if args.traceback:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"mdlm: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mdlm: interrupted", file=sys.stderr)
        return 130


def _overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
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


def _experiment(args: argparse.Namespace, overrides: list[tuple[str, str]]):
    from mdlm.experiment import load_file
    from mdlm.overrides import apply

    return apply(load_file(args.experiment), overrides)


def run_train(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from mdlm.train.session import Session

    if args.seed is not None:
        overrides = [*overrides, ("seed", str(args.seed))]
    if args.profile is not None:
        _prepare_profile(args.profile)
    experiment = _experiment(args, overrides)
    out = Path(args.out or f"runs/{experiment.name}")
    with _stop_signals() as stop, Progress() as progress:
        session = Session(
            experiment,
            out,
            source=Path(args.experiment).read_text(),
            overrides=overrides,
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
    from mdlm.run import load

    if args.num < 1:
        raise InputError(f"--num {args.num}: at least one text is needed")
    run = load(args.run_folder, step=args.step)
    names = ("steps", "temperature", "top_p", "top_k")
    settings = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if "steps" in settings and not hasattr(run.experiment.sampler, "steps"):
        raise InputError(
            "--steps: this sampler writes one token per step, it has no number of them"
        )
    try:
        replace(run.experiment.sampler, **settings)
    except ValueError as error:
        raise InputError(str(error)) from error
    with Progress() as progress:
        if args.infill is not None:
            out = run.infill(args.infill, num=args.num, seed=args.seed, **settings)
        else:
            bar = progress.bar("generating", "windows")
            out = run.generate(
                args.prompt,
                num=args.num,
                length=args.length,
                seed=args.seed,
                stride=args.stride,
                stop_at_eos=args.stop_at_eos,
                report=lambda done: bar(done.window, done.windows),
                **settings,
            )
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


def run_import(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from mdlm.train.session import import_weights

    experiment = _experiment(args, overrides)
    parameters = import_weights(
        args.weights,
        experiment,
        Path(args.out),
        source=Path(args.experiment).read_text(),
        overrides=overrides,
    )
    print(f"{args.out}: {parameters:,} parameters from {args.weights}")
    return 0


def run_settings(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from mdlm.overrides import expected, names

    for name, kind, value in names(_experiment(args, overrides)):
        print(f"--{name:32s} {value!r:24}  {expected(kind)}")
    return 0


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
