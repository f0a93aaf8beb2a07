"""`mdlm settings`."""

import argparse
import dataclasses
import functools
import textwrap
from typing import TYPE_CHECKING, Any

from mdlm.cli.arguments import add_base, add_experiment, experiment_of
from mdlm.cli.command import Changes, Command

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.experiment.experiment import Experiment


def run(args: argparse.Namespace, changes: Changes) -> int:
    from mdlm.config.component_text import to_text
    from mdlm.config.field_types import expected
    from mdlm.config.overrides import names
    from mdlm.experiment.loading import options_in

    experiment = experiment_of(args, changes)
    for option in options_in(args.experiment):
        kind, value = option.kind, option.default
        print(f"--{option.name:32s} {value!s:24}  {expected(kind, brief=True)}")
        print("        An option of this file, here with its default.")
    for name, kind, value in names(experiment):
        print(f"--{name:32s} {to_text(value, lenient=True):24}  {expected(kind, brief=True)}")
        if said := said_of(experiment, name, value):
            print(textwrap.indent(textwrap.fill(said, 92), "        "))
    return 0


def said_of(experiment: "Experiment", name: str, value: Any) -> str:
    """Returns a sentence about the setting of a dotted name: on its component, if it is one."""
    from mdlm.config.catalogue import sentence_of, sentence_on

    if dataclasses.is_dataclass(value):
        return sentence_of(value)
    *path, field = name.split(".")
    return sentence_on(type(functools.reduce(getattr, path, experiment)), field)


def arguments(sub: argparse.ArgumentParser) -> None:
    add_experiment(sub)
    add_base(sub)


SETTINGS_HELP = """\
examples:
  mdlm settings quickstart
  mdlm settings quickstart --network "DiT(width=256)"     with that network
  mdlm settings sft --init-from runs/llada                of what follows from a run

Each line has a setting's dotted name, its value, and the values that it accepts; below it stands
what it means. Any of them can be changed: mdlm train quickstart --train.steps 2000"""


COMMAND = Command(
    name="settings",
    help="list the settings of an experiment, with their values",
    epilog=SETTINGS_HELP,
    arguments=arguments,
    run=run,
    takes_settings=True,
)
