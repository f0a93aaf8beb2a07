"""What a command of `mdlm` is."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

Changes = list[tuple[str, str]]
"""Settings given as `--dotted.name value`, in the order of the command line."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of `mdlm`, defined in a file of this folder that `main.py` lists.

    Args:
        name: the word that the user types after `mdlm`.
        help: one line for `mdlm --help`.
        run: executes the command and returns the exit code.
        epilog: examples and explanations, printed below the arguments in `--help`.
        arguments: adds the command's own arguments to its parser.
        takes_settings: whether `--dotted.name value` replaces settings of the experiment.
        computes: whether the command runs JAX computations in this process.
        many_processes: whether several processes may run the command together.
        writes_files: whether the result is files, so that the command goes on when the reader of
            its output goes away. Others end then, without an error.
    """

    name: str
    help: str
    run: Callable[[argparse.Namespace, Changes], int]
    epilog: str = ""
    arguments: Callable[[argparse.ArgumentParser], None] = lambda sub: None
    takes_settings: bool = False
    computes: bool = True
    many_processes: bool = False
    writes_files: bool = False
