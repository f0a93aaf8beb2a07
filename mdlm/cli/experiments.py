"""`mdlm experiments`."""

import argparse

from mdlm.cli.command import Changes, Command


def run(_: argparse.Namespace, __: Changes) -> int:
    from mdlm.experiment.shipped import names, summary

    width = max(map(len, names()))
    for name in names():
        print(f"{name:{width}s}  {summary(name)}")
    return 0


EXPERIMENTS_HELP = """\
An experiment is a Python file that defines the data, the network, the objective and the training.
Use a name from this list wherever a command takes an experiment:

  mdlm settings quickstart                      list its settings
  mdlm train quickstart --train.steps 100       train it with one setting changed
  mdlm new my_run --like quickstart             copy it to my_run.py, to edit"""


COMMAND = Command(
    name="experiments",
    help="list the experiments that come with mdlm",
    epilog=EXPERIMENTS_HELP,
    run=run,
    computes=False,
)
