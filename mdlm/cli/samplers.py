"""`mdlm samplers`."""

import argparse

from mdlm.cli.common import Changes, Command


def run(_: argparse.Namespace, __: Changes) -> int:
    from mdlm.samplers.catalogue import described

    print(described())
    return 0


COMMAND = Command(
    name="samplers", help="list the samplers and what can be set in each", run=run, computes=False
)
