"""`mdlm settings`."""

import argparse
from typing import TYPE_CHECKING

from mdlm.cli.common import Command, add_experiment, experiment_of

if TYPE_CHECKING:  # what a `--help` need not wait for
    pass


def run(args: argparse.Namespace, changes: list[tuple[str, str]]) -> int:
    from mdlm.config.component_text import expected, to_text
    from mdlm.config.overrides import names

    for name, kind, value in names(experiment_of(args, changes)):
        print(f"--{name:32s} {to_text(value, lenient=True):24}  {expected(kind, brief=True)}")
    return 0


def arguments(sub: argparse.ArgumentParser) -> None:
    add_experiment(sub)


COMMAND = Command(
    name="settings",
    help="list what can be set in an experiment",
    arguments=arguments,
    run=run,
    takes_settings=True,
)
