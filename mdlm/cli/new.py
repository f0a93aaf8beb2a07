"""`mdlm new`."""

import argparse
import ast
import shlex

from mdlm.cli.arguments import complete_experiments, writable
from mdlm.cli.command import Changes, Command
from mdlm.errors import InputError
from mdlm.files import write


def run(args: argparse.Namespace, _: Changes) -> int:
    from mdlm.data.text.utf8 import check_utf8
    from mdlm.experiment.shipped import located

    check_utf8(args.name, "NAME")
    path = writable(args.name.removesuffix(".py") + ".py")
    if path.exists():
        raise InputError(f"{path}: exists already; choose another name, or edit that file")
    text = renamed(located(args.like).read_text(encoding="utf-8"), path.stem)
    write(path, text.replace(f"experiments/{args.like}.py", str(path)))
    word = shlex.quote(str(path))
    print(f"{path}: a copy of {args.like}, to edit (`mdlm settings {word}` lists its settings)")
    print(f"next: mdlm train {word}")
    return 0


def renamed(source: str, name: str) -> str:
    """Returns the text of an experiment file with a new `name` in its `Experiment(...)`.

    The name is the default name of the run folder. A text whose `name` is no literal string is
    returned unchanged.
    """
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Experiment"):
            continue
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg == "name" and isinstance(value, ast.Constant):
                lines = source.encode().splitlines(keepends=True)  # ast counts columns in bytes
                line = lines[value.lineno - 1]
                before, after = line[: value.col_offset], line[value.end_col_offset :]
                lines[value.lineno - 1] = before + f'"{name}"'.encode() + after
                return b"".join(lines).decode()
    return source


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("name", metavar="NAME", help="name of the new experiment; writes NAME.py")
    like = sub.add_argument(
        "--like",
        metavar="EXPERIMENT",
        default="quickstart",
        help="the experiment to copy: a name or a file (default: quickstart)",
    )
    complete_experiments(like)


NEW_HELP = """\
examples:
  mdlm new my_run                               my_run.py, a copy of quickstart
  mdlm new my_run --like owt_small
  mdlm new runs_to_do/second --like my_run.py

Then edit the file and train it: mdlm train my_run.py"""


COMMAND = Command(
    name="new",
    help="write a new experiment file, a copy of another, to edit",
    epilog=NEW_HELP,
    arguments=arguments,
    run=run,
    computes=False,
    writes_files=True,
)
