"""`mdlm components`."""

import argparse

from mdlm.cli.command import Changes, Command


def run(args: argparse.Namespace, _: Changes) -> int:
    from mdlm.config.catalogue import described, kind_called, kinds
    from mdlm.config.components import fitting, name_of

    if args.kind is not None:
        print(described(kind_called(args.kind)))
        return 0
    for name, kind in kinds().items():
        print(f"{name:18s} {', '.join(name_of(part) for part in fitting((kind,)))}")
    return 0


COMPONENTS_HELP = """\
examples:
  mdlm components               list every kind, with the names of its components
  mdlm components schedule      describe each schedule and its settings, with their defaults

A component is a part of an experiment: its network, noise process, schedule, objective, sampler,
optimizer or data. It is written as in an experiment file; settings left out keep their default:

  mdlm train experiments/quickstart.py --process "Masked(schedule=Cosine())"
  mdlm train experiments/quickstart.py --network "DiT(width=256, depth=4, heads=4)"
  mdlm eval runs/quickstart --objective "Nelbo(t_min=1e-4)"
  mdlm sample runs/quickstart --sampler "Parallel(rule=Threshold(tau=0.9))"

This text is parsed and type-checked, never executed. Installed packages can add components with
entry points of the group mdlm.components (CONTRIBUTING.md)."""


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "kind", metavar="KIND", nargs="?", help="a kind of component, such as schedule or sampler"
    )


COMMAND = Command(
    name="components",
    help="list the components of experiments and their settings",
    epilog=COMPONENTS_HELP,
    arguments=arguments,
    run=run,
    computes=False,
)
