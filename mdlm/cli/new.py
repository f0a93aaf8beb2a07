"""`mdlm new`."""

import argparse
import ast
import shlex

from mdlm.cli.common import Changes, Command, complete_experiments, writable
from mdlm.errors import InputError


def run(args: argparse.Namespace, _: Changes) -> int:
    from mdlm.experiment.shipped import located

    path = writable(args.name.removesuffix(".py") + ".py")
    if path.exists():
        raise InputError(f"{path} exists already: choose another name, or edit it")
    text = renamed(located(args.like).read_text(), path.stem)
    path.write_text(text.replace(f"experiments/{args.like}.py", str(path)))
    word = shlex.quote(str(path))
    print(f"{path}: a copy of {args.like}, to edit (mdlm settings {word} lists what can be set)")
    print(f"next: mdlm train {word}")
    return 0


def renamed(source: str, name: str) -> str:
    """The text of an experiment file with another `name` in its `Experiment(...)`.

    The name is the run folder's, by default. A file without one literal name is left as it is.
    """
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Experiment"):
            continue
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg == "name" and isinstance(value, ast.Constant):
                lines = source.encode().splitlines(keepends=True)  # columns are those of bytes
                line = lines[value.lineno - 1]
                before, after = line[: value.col_offset], line[value.end_col_offset :]
                lines[value.lineno - 1] = before + f'"{name}"'.encode() + after
                return b"".join(lines).decode()
    return source


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("name", metavar="NAME", help="the file to write is NAME.py")
    like = sub.add_argument(
        "--like",
        metavar="EXPERIMENT",
        default="quickstart",
        help="the experiment to begin with: a name or a file (default: quickstart)",
    )
    complete_experiments(like)


NEW_HELP = """\
examples:
  mdlm new my_run
  mdlm new my_run --like owt_small
  mdlm new runs_to_do/second --like my_run.py"""


COMMAND = Command(
    name="new",
    help="write an experiment file to edit",
    epilog=NEW_HELP,
    arguments=arguments,
    run=run,
    computes=False,
)
