"""`mdlm harness`."""

import argparse
import json
from importlib import util
from typing import Any

from mdlm.cli.arguments import add_run, opened, real, seed, whole, writable
from mdlm.cli.command import Changes, Command
from mdlm.errors import InputError
from mdlm.files import finite, write


def run(args: argparse.Namespace, _: Changes) -> int:
    if util.find_spec("lm_eval") is None:
        raise InputError("mdlm harness needs lm-eval: pip install 'mdlm-jax[harness]'")
    from mdlm.evals.log_likelihood import Passes

    Passes(passes=args.passes, sure=args.sure)
    least = {"--batch-size": (args.batch_size, 1), "--limit": (args.limit, 1)}
    for option, (value, low) in {**least, "--num-fewshot": (args.num_fewshot, 0)}.items():
        if value is not None and value < low:
            raise InputError(f"{option} {value}: must be at least {low}")
    out = None if args.out is None else writable(args.out)
    from mdlm.interop.harness import HarnessModel
    from mdlm.interop.harness_tasks import evaluate

    run = opened(args)
    model = HarnessModel(
        run,
        passes=args.passes,
        sure=args.sure,
        by=args.by,
        greedy=not args.no_greedy,
        sampler=args.sampler,
        seed=args.seed,
        kept=args.kept,
        batch_size=args.batch_size,
    )
    results = evaluate(
        model,
        args.tasks.split(","),
        args.include_path,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        apply_chat_template=args.chat,
    )
    if out is not None:
        write(out, json.dumps(finite(results), indent=1, default=str) + "\n")
    found = _metrics(results["results"])
    if args.json:
        print(json.dumps(finite(found), indent=1))
        return 0
    print(f"{args.run_folder}, step {run.step}: {model.likelihood.protocol}")
    print(f"{'':44}{'value':>12}{'+- all':>10}{'+- noise':>10}")
    for row in found:
        cells = (row["stderr"], row["noise_stderr"])
        errors = "".join(f"{'' if x is None else format(x, '.4f'):>10}" for x in cells)
        print(f"{row['task'] + ' ' + row['metric']:44}{row['value']:12.4f}{errors}")
    return 0


def _metrics(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the metrics of tasks, each with its errors, None for those that are not known."""
    found = []
    for task, values in results.items():
        for name, value in values.items():
            metric, comma, filtered = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            row = {"task": task, "metric": metric if filtered == "none" else name, "value": value}
            for error in ("stderr", "noise_stderr"):
                one = values.get(f"{metric}_{error},{filtered}")
                row[error] = one if isinstance(one, int | float) else None
            found.append(row)
    return found


HARNESS_HELP = """\
examples:
  mdlm harness runs/llada --tasks arc_easy,hellaswag --passes 128
  mdlm harness runs/llada --tasks gsm8k --chat --sampler "Parallel(rule=Share(steps=256))"
  mdlm harness runs/quickstart --tasks my_task --include-path tasks --limit 20

Runs tasks of lm-eval (EleutherAI's harness) with a run; `lm_eval ls tasks` lists them. Needs
pip install 'mdlm-jax[harness]'. The data of tasks come from the Hugging Face hub, unless their
files say otherwise.

Log-likelihoods are those of `mdlm score`, with its options. "+- noise" is the standard error of a
metric that is due to their noise; "+- all" is over documents, and contains it (docs/evaluation.md).
Answers are kept in the run folder as they are made, so the same command goes on after it was
killed."""


def arguments(sub: argparse.ArgumentParser) -> None:
    add_run(sub)
    sub.add_argument("--tasks", metavar="NAMES", required=True, help="tasks, with commas between")
    sub.add_argument("--include-path", metavar="FOLDER", help="a folder with task files")
    sub.add_argument("--num-fewshot", type=whole, metavar="N", help="examples before a question")
    sub.add_argument("--limit", type=whole, metavar="N", help="use the first N documents of a task")
    sub.add_argument("--chat", action="store_true", help="use the run's chat template")
    sub.add_argument("--passes", type=whole, default=32, help="passes for each text (default: 32)")
    sub.add_argument("--sure", type=real, metavar="NATS", help="add passes, as in mdlm score")
    sub.add_argument("--by", choices=("counts", "nelbo"), help="the bound, as in mdlm score")
    sub.add_argument(
        "--no-greedy",
        action="store_true",
        help="do not find out whether greedy decoding writes an answer, which few tasks use",
    )
    sub.add_argument("--sampler", metavar="TEXT", help="sampler of texts (default: the run's)")
    sub.add_argument("--seed", type=seed, default=0, help="seed of the noise (default: 0)")
    sub.add_argument(
        "--kept",
        metavar="FILE",
        help="file of answers (default: harness.jsonl of the run; '': none)",
    )
    sub.add_argument("--batch-size", type=whole, default=32, help="rows at a time (default: 32)")
    sub.add_argument("--out", metavar="FILE", help="write lm-eval's results to FILE, as JSON")


COMMAND = Command(
    name="harness",
    help="run tasks of lm-eval, EleutherAI's harness",
    epilog=HARNESS_HELP,
    arguments=arguments,
    run=run,
)
