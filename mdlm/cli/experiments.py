"""`mdlm experiments`."""

import argparse

from mdlm.cli.common import Changes, Command


def run(_: argparse.Namespace, __: Changes) -> int:
    from mdlm.experiment.shipped import names, summary

    width = max(map(len, names()))
    for name in names():
        print(f"{name:{width}s}  {summary(name)}")
    return 0


EXPERIMENTS_HELP = """\
A name stands for its file wherever a command takes an experiment:

  mdlm settings quickstart
  mdlm train quickstart --train.steps 100
  mdlm new my_run --like quickstart             a file of your own, to edit"""


COMMAND = Command(
    name="experiments",
    help="list the experiments that come with mdlm",
    epilog=EXPERIMENTS_HELP,
    run=run,
    computes=False,
)
