"""`mdlm plan`."""

import argparse
import json
import multiprocessing
import os
import sys
from typing import TYPE_CHECKING, Any

from mdlm.cli.arguments import add_base, add_experiment, experiment_from, experiment_of, real, whole
from mdlm.cli.command import Changes, Command
from mdlm.cli.progress import Progress
from mdlm.errors import InputError
from mdlm.files import finite
from mdlm.foreign.output import Output
from mdlm.vocab import Vocab

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.experiment.experiment import Experiment
    from mdlm.planning.compiling import Compiled
    from mdlm.planning.topology import Topology


def run(args: argparse.Namespace, changes: Changes) -> int:
    import jax

    from mdlm.cli.plan_words import words
    from mdlm.experiment.model import Model
    from mdlm.parallel.mesh import check_batch
    from mdlm.planning.plan import plan

    # Planning needs no accelerator, and one that is present may be in use.
    jax.config.update("jax_platforms", "cpu")
    if not 0 < args.mfu <= 1:
        raise InputError(f"--mfu {args.mfu}: must be a fraction of the peak, above 0 and at most 1")
    if args.timeout <= 0:
        raise InputError(f"--timeout {args.timeout:g}: must be above 0, in seconds")
    if args.price is not None and args.price < 0:
        raise InputError(f"--price {args.price}: must be at least 0, in dollars per chip and hour")
    topology = topology_of(args.topology, args)
    smaller = topology_of(args.extrapolate_from, args) if args.extrapolate_from else None
    experiment = experiment_of(args, changes)
    settings = experiment.train
    mesh = topology.sizes(experiment.mesh)
    check_batch(mesh, settings.batch_size, settings.accumulate)
    experiment.network.check_mesh(mesh, experiment.data.packing.length)
    if smaller is not None:
        rows = rows_of(experiment, topology, smaller)
        check_batch(smaller.sizes(experiment.mesh), rows, settings.accumulate)
        changes = [*changes, ("train.batch_size", str(rows))]
    vocab, columns_from = vocabulary(experiment, args.vocab)
    compiled, on = None, smaller or topology
    if on.is_compiled_for and not args.estimate:
        compiled = compiled_apart(args, changes, vocab, on)
    made = plan(
        Model(experiment, vocab, counts(experiment, vocab)),
        topology,
        compiled,
        on_smaller=smaller,
        columns_from=columns_from,
        mfu=args.mfu,
        price=args.price,
    )
    if args.json:
        print(json.dumps(finite(made.as_json()), indent=1))
    else:
        print(words(made))
    return 0


def topology_of(text: str, args: argparse.Namespace) -> "Topology":
    """Returns the hardware that `text` names, with the figures that the user gives for a device.

    Raises InputError if a figure is not above 0, or the hardware is unknown.
    """
    from mdlm.planning.topology import Topology

    figures = {"--device-memory": args.device_memory, "--device-tflops": args.device_tflops}
    for option, value in figures.items():
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{option} {value:g}: must be above 0")
    memory, tflops = figures.values()
    return Topology.parse(
        text,
        memory=None if memory is None else memory * 2**30,
        flops=None if tflops is None else tflops * 1e12,
    )


def rows_of(experiment: "Experiment", topology: "Topology", smaller: "Topology") -> int:
    """The batch size that gives each chip of the smaller topology as many rows as the larger has.

    Raises InputError if `smaller` is no smaller slice of the same kind of chip.
    """
    if smaller.name != topology.name or smaller.chips > topology.chips:
        raise InputError(
            f"--extrapolate-from {smaller.text}: must be a smaller slice of the same chips as "
            f"{topology.text}"
        )
    return experiment.train.batch_size * smaller.chips // topology.chips


def vocabulary(experiment: "Experiment", size: int | None) -> tuple[Vocab, str]:
    """Returns the vocabulary and the source of its size, without reading any text.

    Raises InputError if only the text, or a hub that cannot be reached, determines the size, or if
    a store lacks a split.
    """
    from mdlm.data.mixture import Mixture
    from mdlm.data.store.manifest import Manifest

    if size is not None:
        if size < 5:
            raise InputError(f"--vocab {size}: must be at least 5, to hold the special tokens")
        return made_up(size), "--vocab"
    data = experiment.data
    for part in data.parts if isinstance(data, Mixture) else (data,):
        if part.store is not None and (manifest := Manifest.read(part.store)) is not None:
            part.check_whole(manifest, part.store)
            return made_up(manifest.vocab_size), f"the store {part.store}"
    tokenizer = data.tokenizer
    name = type(tokenizer).__name__
    if not tokenizer.needs_text:
        try:
            return tokenizer.build([]).vocab, f"the tokenizer {name}"
        except InputError as error:
            raise InputError(f"{error}; give the size of the vocabulary with --vocab N") from error
    if (most := tokenizer.max_size) is not None:
        return made_up(most), f"at most, by {name}(vocab_size={most})"
    raise InputError(
        f"tokenizer={name}(...) learns its vocabulary from the text, which `mdlm plan` does not "
        "read; give its size, special tokens included, with --vocab N"
    )


def made_up(size: int) -> Vocab:
    """A vocabulary of that size with arbitrary ids of special tokens, which a plan ignores."""
    return Vocab(size=size, mask_id=size - 1, bos_id=0, eos_id=1, pad_id=2)


def counts(experiment: "Experiment", vocab: Vocab) -> Any:
    """Made-up token counts, for noise processes that are built from token counts; else None."""
    import numpy as np

    return np.ones(vocab.size, np.int64) if experiment.process.needs_counts else None


def compiled_apart(
    args: argparse.Namespace, changes: Changes, vocab: Vocab, topology: "Topology"
) -> "Compiled":
    """Compiles the training step in a child process and returns what the compiler reports.

    libtpu needs its environment variables before JAX is imported, ends the process on an internal
    error, and cannot be interrupted. Raises InputError if compiling takes longer than
    `--timeout`, or fails.
    """
    topology.check_compiler()
    limit = args.timeout
    os.environ.update(topology.environment)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_compile,
        args=(args.experiment, args.init_from, changes, vocab, topology, there),
        daemon=True,
    )
    process.start()
    there.close()
    what = f"the training step for {topology.text} (a minute or more)"
    try:
        with Progress() as progress, progress.compiling(what):
            if not here.poll(limit):
                raise InputError(
                    f"compiling for {topology.text} took longer than --timeout {limit:g} s; raise "
                    "--timeout, --extrapolate-from a smaller slice, or --estimate"
                )
            answer = here.recv()
    except EOFError:
        process.join()
        raise InputError(
            f"the compiler for {topology.text} ended without an answer (exit code "
            f"{process.exitcode}); its output is above"
        ) from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, InputError):
        raise answer
    return answer


def _compile(
    path: str,
    base: str | None,
    changes: Changes,
    vocab: Vocab,
    topology: "Topology",
    answer: Any,
) -> None:
    sys.stderr = Output(sys.stderr, outlives=True)  # for this is another process
    import jax

    from mdlm.experiment.model import Model
    from mdlm.planning.compiling import compile_for, first

    # Programs compiled for absent hardware could not be loaded from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        experiment = experiment_from(path, changes, base)
        mesh = topology.mesh(experiment.mesh)
        answer.send(compile_for(Model(experiment, vocab, counts(experiment, vocab)), mesh))
    except InputError as error:
        answer.send(error)
    except jax.errors.JaxRuntimeError as error:
        print(error, file=sys.stderr)
        answer.send(
            InputError(f"{topology.text} cannot run this training step: {first(str(error))}")
        )


PLAN_HELP = """\
examples:
  mdlm plan owt_small --topology v5e:4x4 --mesh.fsdp 16 --price 1.2
  mdlm plan owt_small --topology gpu:8xH100 --mfu 0.35
  mdlm plan owt_small --topology gpu:2xRTX3090 --device-memory 24 --device-tflops 71
  mdlm plan quickstart --topology v6e:2x2 --vocab 70 --json
  mdlm plan big.py --topology v5p:16x16x16 --extrapolate-from v5p:4x4x4

The plan says whether the training step fits the memory of the chips, and how long a step and the
whole run take. It runs on any computer and reads no data.

WHERE is a TPU slice, given by the number of chips along each axis (v5e:4x4, v5p:2x2x4, v6e:8x8,
v4:4x4x4), or a number of GPUs (gpu:8xH100): A100, H100, H200, B200, A10, L4, L40S, RTX4090,
RTX5090, RTX6000Ada, MI300X. For another NVIDIA GPU give any name, with --device-memory its memory
in GiB, and with --device-tflops the peak of its datasheet in TFLOP/s: that of dense matmuls (half
of a figure "with sparsity") of bfloat16 with sums in float32. The two options also replace the
figures of a GPU that is known: --device-memory 40 is for the smaller A100.

For v5e, v5p and v6e the training step is compiled with the TPU compiler, which needs no TPU
(pip install 'jax[tpu]') and takes half a minute to some minutes; memory and collectives are then
those of the compiled program. For v4 and GPUs, or with --estimate, memory is estimated. Time and
cost are computed from the FLOPs of the model, the chips' peak, and the MFU (model FLOP utilisation,
the fraction of the peak) that you expect; they are not measured."""


def arguments(sub: argparse.ArgumentParser) -> None:
    add_experiment(sub)
    add_base(sub)
    sub.add_argument("--topology", metavar="WHERE", required=True, help="hardware, such as v5e:4x4")
    sub.add_argument(
        "--vocab",
        type=whole,
        metavar="N",
        help="size of the vocabulary, if it would be learned from text",
    )
    sub.add_argument(
        "--mfu", type=real, default=0.4, help="expected fraction of peak FLOP/s (default: 0.4)"
    )
    sub.add_argument("--device-memory", type=real, metavar="GIB", help="memory of one GPU, in GiB")
    sub.add_argument(
        "--device-tflops",
        type=real,
        metavar="TFLOPS",
        help="peak of one GPU for dense bfloat16 matmuls, in TFLOP/s",
    )
    sub.add_argument(
        "--price", type=real, metavar="USD", help="dollars per chip and hour, to print the cost"
    )
    sub.add_argument(
        "--timeout",
        type=real,
        default=600,
        metavar="S",
        help="give up compiling after S seconds (default: 600)",
    )
    sub.add_argument(
        "--extrapolate-from",
        metavar="WHERE",
        help="compile for this smaller slice, with the same rows per chip, and extrapolate",
    )
    sub.add_argument("--estimate", action="store_true", help="estimate memory; do not compile")
    sub.add_argument("--json", action="store_true", help="print the plan as JSON")


COMMAND = Command(
    name="plan",
    help="predict memory, time and cost of a run on hardware you do not have",
    epilog=PLAN_HELP,
    arguments=arguments,
    run=run,
    takes_settings=True,
    computes=False,
)
