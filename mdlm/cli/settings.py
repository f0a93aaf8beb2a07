"""`mdlm settings`."""

import argparse

from mdlm.cli.arguments import add_experiment, experiment_of
from mdlm.cli.command import Changes, Command


def run(args: argparse.Namespace, changes: Changes) -> int:
    from mdlm.config.component_text import to_text
    from mdlm.config.field_types import expected
    from mdlm.config.overrides import names

    for name, kind, value in names(experiment_of(args, changes)):
        print(f"--{name:32s} {to_text(value, lenient=True):24}  {expected(kind, brief=True)}")
    return 0


def arguments(sub: argparse.ArgumentParser) -> None:
    add_experiment(sub)


SETTINGS_HELP = """\
examples:
  mdlm settings quickstart
  mdlm settings quickstart --network "DiT(width=256)"     with that network

Each line has a setting's dotted name, its value, and the values that it accepts. Any of them can be
changed in `mdlm train`: mdlm train quickstart --train.steps 2000"""


COMMAND = Command(
    name="settings",
    help="list the settings of an experiment, with their values",
    epilog=SETTINGS_HELP,
    arguments=arguments,
    run=run,
    takes_settings=True,
)
