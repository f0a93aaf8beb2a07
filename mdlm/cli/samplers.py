"""`mdlm samplers`."""

import argparse

from mdlm.cli.common import Changes, Command


def run(_: argparse.Namespace, __: Changes) -> int:
    from mdlm.config.catalogue import described
    from mdlm.samplers import Annealed, Guidance, Rule, Sampler

    print(described(Sampler, Rule, Annealed, Guidance))
    return 0


COMMAND = Command(
    name="samplers", help="list the samplers and what can be set in each", run=run, computes=False
)
