"""`mdlm train`."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mdlm.cli.arguments import (
    add_experiment,
    add_no_verify,
    add_process_group,
    add_trust,
    experiment_of,
    seed,
    typed,
    whole,
)
from mdlm.cli.command import Changes, Command
from mdlm.cli.progress import Progress
from mdlm.cluster import heartbeat, process_group
from mdlm.errors import InputError, Interrupted


def _prepare_profile(steps: int) -> None:
    """Sets up JAX so that instructions in the trace carry the names of the model's parts.

    The key of a cached program then includes its source names: otherwise an older program that
    computes the same under other names might be loaded. CUDA graphs are turned off, because their
    kernels have no names in a trace (without graphs, a step of 109 ms took 112 on an H200).
    Raises InputError if `steps` is below 1.
    """
    import jax

    if steps < 1:
        raise InputError(f"--profile {steps}: must be at least 1")
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_command_buffer=".strip()


def _rows(args: argparse.Namespace, changes: Changes) -> tuple[str, str]:
    """Returns the setting of the batch size that `--tokens-per-step` asks for.

    Raises InputError if no whole number of rows has so many tokens, or the size is given too.
    """
    tokens, name = args.tokens_per_step, "train.batch_size"
    if any(name == given for given, _ in changes):
        raise InputError(f"--tokens-per-step and --{name}: give one of the two")
    length = experiment_of(args, changes).data.packing.length
    if tokens < length or tokens % length:
        below = max(0, tokens // length) * length
        near = [str(n) for n in (below, below + length) if n]
        raise InputError(
            f"--tokens-per-step {tokens}: rows have {length} tokens (data.packing.length); give a"
            f" multiple of that, such as {' or '.join(near)}"
        )
    return name, str(tokens // length)


def run(args: argparse.Namespace, changes: Changes) -> int:
    from mdlm.experiment.loading import source_of
    from mdlm.experiment.shipped import located
    from mdlm.train.session import Session

    if args.seed is not None:
        changes = [*changes, ("seed", str(args.seed))]
    if args.tokens_per_step is not None:
        changes = [*changes, _rows(args, changes)]
    if args.profile is not None:
        _prepare_profile(args.profile)
    experiment = experiment_of(args, changes)
    if args.out == "":
        raise InputError("--out '': is no name of a folder")
    out = Path(args.out or f"runs/{experiment.name}")
    with _stop_signals() as stop, Progress(quiet=not process_group.is_main()) as progress:
        session = Session(
            experiment,
            out,
            source=source_of(args.experiment),
            file=located(args.experiment),
            overrides=changes,
            checkpoints=args.checkpoints,
            init_from=args.init_from,
            fork=args.fork,
            new_tokenizer=args.new_tokenizer,
            restart=args.restart,
            tensorboard=args.tensorboard,
            wandb=args.wandb,
            profile=args.profile or 0,
            trust=args.trust_experiment,
            verify=not args.no_verify,
            report=progress.stage,
        )
        stop.may_wait = True
        if session.changed and process_group.is_main():
            print(f"mdlm: changed: {'; '.join(session.changed)}", file=sys.stderr)
        for event in session.train(should_stop=stop.now):
            progress.show(event)
    if stop.signal is not None and not session.finished:
        if process_group.is_main():
            print(f"mdlm: {stopped(session.step, sys.argv[1:])}", file=sys.stderr)
        return 128 + stop.signal
    print(session.closing_words())
    return 0


def stopped(step: int, words: Sequence[str]) -> str:
    """Returns what is said of a run that was stopped: last, a command that can be pasted."""
    said, group = f"stopped at step {step}, saved", process_group.current()
    if group is not None:
        is_told = any(word.startswith("--process") for word in words)
        own = ", each with its own --process" if is_told else ""
        said += f"; start all {group.count} processes again{own}"
    return f"{said}; to continue: {typed(words)}"


@contextlib.contextmanager
def _stop_signals() -> Iterator[heartbeat.Stop]:
    """Lets Ctrl-C, SIGTERM and SIGHUP ask the run to save and stop; a second one ends it at once,
    and so does one before `may_wait`, when there is nothing to save.

    SIGHUP, which a closing terminal sends, stays ignored under `nohup`.
    """
    stop = heartbeat.Stop()

    def ask(number, frame):
        if stop.requested_here or not stop.may_wait:
            raise Interrupted(number)
        stop.request(number)
        print(
            "\nmdlm: saving, then stopping (press Ctrl-C again to stop at once, without saving)",
            file=sys.stderr,
        )

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    old = {number: signal.signal(number, ask) for number in numbers}
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
  mdlm train owt_small --tokens-per-step 524288 --train.accumulate 8
  mdlm train quickstart --train.eval_every 50 --train.patience 5
  mdlm train quickstart --train.minutes 10

Options with dotted names change settings of the experiment; a component is given as text.
`mdlm settings EXPERIMENT` lists the settings, `mdlm components` the components.
To resume an interrupted run from its newest checkpoint, start the same command again. Values of
--train and --optimizer, the sampler, the evaluation and the mesh may change then; the changes are
recorded in env.json. To change others, or to go back to an earlier checkpoint, fork the run:
  mdlm train owt_small --fork runs/owt@40000 --out runs/slower --optimizer.learning_rate 1e-4
An experiment file is Python code, which this command executes.

A run may end before its last step: after --train.patience N validations in a row without a better
one (the best is kept: --train.best names the metric), or after --train.minutes M of training,
earlier starts included; compilation, evaluations and samples are not counted. Everything is saved,
and the last lines say why it ended. The same command then does nothing; with a larger number it
goes on. Learning rates that fall follow --train.steps, so a run that ends early has not come down
to the end of its schedule: for that, give the steps that fit.

exit codes:
  0    the run is finished, or ended early as its settings say
  2    wrong arguments or input
  3    too many steps in a row had a loss, gradient or new parameters that are not finite
       (--train.max_skipped); the message names the newest checkpoint with a finite loss. Starting
       the run again unchanged will not help: lower --optimizer.learning_rate, or --fork the run
       from an earlier checkpoint
  4    another process of the run was lost
  129  stopped by SIGHUP (the terminal was closed), after saving
  130  stopped by Ctrl-C, after saving
  143  stopped by SIGTERM, after saving

several processes:
  mdlm train big.py --out /shared/big --coordinator node0:1234 --processes 4 --process 0
                     on node0; on the other hosts the same with --process 1, 2 and 3

On a Cloud TPU slice, under `srun` with several tasks, and under mpirun, these flags are not needed;
--processes 1 trains on a single process even there. All processes need the same experiment and
arguments, which is checked, and --out on a disk that they share. Process 0 prints and writes
metrics and samples; all write checkpoints. A signal to one process saves and stops all of them,
with the same exit code. If a process is lost, the others exit within a minute with exit code 4.
The same command, started for all, then resumes from the newest checkpoint; the number of processes
may have changed."""


def _add_origin(sub: argparse.ArgumentParser) -> None:
    """Adds the options that say what a run begins from."""
    sub.add_argument(
        "--init-from",
        metavar="RUN",
        help="start a new run from the EMA parameters of this run folder, with its tokenizer",
    )
    sub.add_argument(
        "--new-tokenizer",
        action="store_true",
        help="with --init-from: keep the experiment's tokenizer; tokens that both have start from "
        "their parameters there, others afresh",
    )
    sub.add_argument(
        "--fork",
        metavar="RUN[@STEP]",
        help="start a new run from the training state of a checkpoint of this run folder (default: "
        "the newest), with its tokenizer; the settings may differ",
    )
    sub.add_argument(
        "--restart",
        action="store_true",
        help="train from step 0 if the run's checkpoints are gone; its log is moved aside",
    )


def arguments(sub: argparse.ArgumentParser) -> None:
    add_experiment(sub)
    sub.add_argument(
        "--out", help="run folder to create or resume (default: runs/NAME of the experiment)"
    )
    sub.add_argument("--seed", type=seed, help="seed of the run (default: the experiment's)")
    sub.add_argument(
        "--tokens-per-step",
        type=whole,
        metavar="N",
        help="set --train.batch_size, which counts rows over all devices and micro-batches, so "
        "that a step has N tokens; --train.accumulate K then makes each of K micro-batches N/K",
    )
    sub.add_argument(
        "--checkpoints",
        metavar="PATH",
        help="where to store checkpoints: a folder, or a URL such as gs://... (default: in --out)",
    )
    _add_origin(sub)
    sub.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    sub.add_argument("--wandb", metavar="PROJECT", help="also log to Weights & Biases")
    add_trust(sub)
    add_no_verify(sub)
    add_process_group(sub)
    sub.add_argument(
        "--profile",
        type=whole,
        metavar="N",
        help="record a trace of N steps in RUN/profile and print where the time was spent",
    )


COMMAND = Command(
    name="train",
    help="train an experiment, or resume its run",
    epilog=TRAIN_HELP,
    arguments=arguments,
    run=run,
    takes_settings=True,
    many_processes=True,
    writes_files=True,
)
