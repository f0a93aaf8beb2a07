"""`mdlm train`."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mdlm.cli.common import (
    Command,
    add_experiment,
    add_process_group,
    add_trust,
    experiment_of,
)
from mdlm.cli.progress import Progress
from mdlm.cluster import heartbeat, process_group
from mdlm.errors import InputError

if TYPE_CHECKING:  # what a `--help` need not wait for
    pass


def _prepare_profile(steps: int) -> None:
    """Attends to it that instructions in the trace have the names of their parts.

    A kept program stands for its own source only: otherwise it may be that of an older source
    which computes the same under other names. And GPUs are given kernels one by one: those of a
    CUDA graph have no name in a trace (without graphs, a step of 109 ms took 112 on an H200).
    """
    import jax

    if steps < 1:
        raise InputError(f"--profile {steps}: at least one step is needed")
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_command_buffer=".strip()


def run(args: argparse.Namespace, changes: list[tuple[str, str]]) -> int:
    from mdlm.experiment.shipped import located
    from mdlm.train.session import Session

    if args.seed is not None:
        changes = [*changes, ("seed", str(args.seed))]
    if args.profile is not None:
        _prepare_profile(args.profile)
    experiment = experiment_of(args, changes)
    out = Path(args.out or f"runs/{experiment.name}")
    with _stop_signals() as stop, Progress(quiet=not process_group.is_main()) as progress:
        session = Session(
            experiment,
            out,
            source=located(args.experiment).read_text(),
            overrides=changes,
            checkpoints=args.checkpoints,
            init_from=args.init_from,
            tensorboard=args.tensorboard,
            wandb=args.wandb,
            profile=args.profile or 0,
            trust=args.trust_experiment,
            report=progress.stage,
        )
        for event in session.train(should_stop=stop.now):
            progress.show(event)
    if stop.signal is not None and not session.finished:
        if process_group.is_main():
            again = " ".join(["mdlm", *sys.argv[1:]])
            words = f"stopped at step {session.step}, saved; to continue: {again}"
            print(f"mdlm: {words}", file=sys.stderr)
        return 128 + stop.signal
    print(session.closing_words())
    return 0


@contextlib.contextmanager
def _stop_signals() -> Iterator[heartbeat.Stop]:
    """Ctrl-C and SIGTERM ask the run to save and stop; a second Ctrl-C ends it at once."""
    stop = heartbeat.Stop()

    def ask(number, frame):
        if stop.requested_here:
            raise KeyboardInterrupt
        stop.request(number)
        print("\nmdlm: saving, then stopping (once more to stop at once)", file=sys.stderr)

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


TRAIN_HELP = """\
examples:
  mdlm train quickstart
  mdlm train quickstart --train.steps 2000 --optimizer.learning_rate 1e-3
  mdlm train quickstart --process "Masked(schedule=Cosine())"
  mdlm train owt_small --out runs/owt --mesh.fsdp 8

Any value of the experiment can be replaced by its dotted name, a component by its text;
`mdlm settings EXPERIMENT` lists the names, `mdlm components` what can be written.
The same command resumes a run that was interrupted, from its newest checkpoint. An experiment
file is Python and is executed.

Ctrl-C and SIGTERM save the run, then end it: exit code 130 and 143. 3: too many steps in a row had
a loss or gradient that is not finite (--train.max_skipped); starting it again unchanged will not
help. 2: a mistake in what was asked. 4: another process of the run was lost.

many processes:
  mdlm train big.py --out /shared/big --coordinator node0:1234 --processes 4 --process 0
                     on node0; on the others the same with --process 1, 2 and 3

On a Cloud TPU slice, under `srun` with several tasks, and under mpirun, the same command without
these flags is enough; --processes 1 is for one that is to be alone even there. All processes get
the same experiment and arguments, which is checked; --out is on a disk that all of them share.
Process 0 speaks and writes metrics and samples; all write checkpoints. A signal to one of them
saves and stops all, and all have its exit code. When a process is lost, the others end within a
minute with exit code 4; the same command, started by all, goes on from the newest checkpoint, and
it may be another number of processes then."""


def arguments(sub: argparse.ArgumentParser) -> None:
    add_experiment(sub)
    sub.add_argument("--out", help="run folder (default: runs/NAME of the experiment)")
    sub.add_argument("--seed", type=int, help="the run's seed (short for --seed of the file)")
    sub.add_argument(
        "--checkpoints",
        metavar="PATH",
        help="keep checkpoints there: a folder, or a URL such as gs://... (default: in --out)",
    )
    sub.add_argument("--init-from", metavar="RUN", help="begin with the EMA parameters of a run")
    sub.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    sub.add_argument("--wandb", metavar="PROJECT", help="also log to Weights & Biases")
    add_trust(sub)
    add_process_group(sub)
    sub.add_argument(
        "--profile",
        type=int,
        metavar="N",
        help="trace N steps into RUN/profile and print where their time went",
    )


COMMAND = Command(
    name="train",
    help="train an experiment, or resume its run",
    epilog=TRAIN_HELP,
    arguments=arguments,
    run=run,
    takes_settings=True,
    many_processes=True,
)
