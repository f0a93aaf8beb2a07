"""`mdlm samplers`."""

import argparse

from mdlm.cli.command import Changes, Command


def run(_: argparse.Namespace, __: Changes) -> int:
    from mdlm.config.catalogue import described
    from mdlm.samplers import Annealed, Cache, Guidance, Rule, Sampler

    print(described(Sampler, Rule, Cache, Annealed, Guidance))
    return 0


SAMPLERS_HELP = """\
The list shows each sampler with its settings and their defaults. Use one by its text:

  mdlm sample runs/quickstart --sampler "Ancestral(steps=64, top_p=0.9)"
  mdlm sample runs/quickstart --sampler "Parallel(rule=Threshold(tau=0.9))"
  mdlm sample runs/quickstart --sampler "Parallel(block_size=32, cache=Dual(refresh=8))"

or in an experiment file, as sampler=Ancestral(steps=64)."""


COMMAND = Command(
    name="samplers",
    help="list the samplers and their settings",
    epilog=SAMPLERS_HELP,
    run=run,
    computes=False,
)
