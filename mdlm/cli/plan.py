"""`mdlm plan`."""

import argparse
import json
import multiprocessing
import os
import sys
from typing import TYPE_CHECKING, Any

from mdlm.cli.common import Command
from mdlm.errors import InputError
from mdlm.vocab import Vocab

if TYPE_CHECKING:  # what a `--help` need not wait for
    from mdlm.experiment.experiment import Experiment
    from mdlm.planning.plan import Compiled, Plan
    from mdlm.planning.topology import Topology

Changes = list[tuple[str, str]]
GIB = 2**30


def run(args: argparse.Namespace, changes: Changes) -> int:
    import jax

    from mdlm.config.overrides import apply
    from mdlm.experiment.loading import load_file
    from mdlm.experiment.model import Model
    from mdlm.parallel.mesh import check_batch
    from mdlm.planning.plan import plan
    from mdlm.planning.topology import Topology

    # Nothing here needs an accelerator, and where one is, it may be in use.
    jax.config.update("jax_platforms", "cpu")
    if not 0 < args.mfu <= 1:
        raise InputError(f"--mfu {args.mfu}: a share of the peak, above 0 and at most 1")
    if args.price is not None and args.price < 0:
        raise InputError(f"--price {args.price}: dollars per chip and hour")
    topology = Topology.parse(args.topology)
    smaller = Topology.parse(args.extrapolate_from) if args.extrapolate_from else None
    experiment = apply(load_file(args.experiment), changes)
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
        compiled = compiled_apart(args.experiment, changes, vocab, on, args.timeout)
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


def rows_of(experiment: "Experiment", topology: "Topology", smaller: "Topology") -> int:
    """The batch that gives each chip of the smaller topology as many rows."""
    if smaller.name != topology.name or smaller.chips > topology.chips:
        raise InputError(
            f"--extrapolate-from {smaller.text}: not a smaller part of {topology.text}"
        )
    return experiment.train.batch_size * smaller.chips // topology.chips


def vocabulary(experiment: "Experiment", size: int | None) -> tuple[Vocab, str]:
    """Special tokens and columns, and how they are known: no text is read for them.

    InputError where only the text, or a hub that is out of reach, could tell.
    """
    from mdlm.data.mixture import Mixture
    from mdlm.data.store.manifest import Manifest

    if size is not None:
        if size < 5:
            raise InputError(f"--vocab {size}: too few for the special tokens")
        return made_up(size), "--vocab"
    data = experiment.data
    for part in data.parts if isinstance(data, Mixture) else (data,):
        if part.store is not None and (manifest := Manifest.read(part.store)) is not None:
            return made_up(manifest.vocab_size), f"the store {part.store}"
    tokenizer = data.tokenizer
    name = type(tokenizer).__name__
    if not tokenizer.needs_text:
        try:
            return tokenizer.build([]).vocab, f"the tokenizer {name}"
        except InputError as error:
            raise InputError(f"{error}; say how many tokens there are: --vocab N") from error
    if (most := tokenizer.max_size) is not None:
        return made_up(most), f"at most, by {name}(vocab_size={most})"
    raise InputError(
        f"tokenizer={name}(...) learns its vocabulary from the text, which is not read here: say "
        "how many tokens there are, special ones included: --vocab N"
    )


def made_up(size: int) -> Vocab:
    """A vocabulary of that size. Which ids the special tokens have makes no difference here."""
    return Vocab(size=size, mask_id=size - 1, bos_id=0, eos_id=1, pad_id=2)


def counts(experiment: "Experiment", vocab: Vocab) -> Any:
    """Token counts, made up, for processes that are made from them."""
    import numpy as np

    return np.ones(vocab.size, np.int64) if experiment.process.needs_counts else None


def compiled_apart(
    path: str, changes: Changes, vocab: Vocab, topology: "Topology", limit: float
) -> "Compiled":
    """The compiler's answer, from a process of its own: libtpu wants its environment before JAX is
    imported, ends the process where it meets a fault of its own, and cannot be interrupted.

    InputError where it takes longer than `limit` seconds, or fails.
    """
    topology.check_compiler()
    os.environ.update(topology.environment)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_compile, args=(path, changes, vocab, topology, there), daemon=True
    )
    print(f"compiling for {topology.text}: a minute or more", file=sys.stderr)
    process.start()
    there.close()
    try:
        if not here.poll(limit):
            raise InputError(
                f"compiling for {topology.text} took longer than --timeout {limit:g} s; "
                "--extrapolate-from a smaller slice, or --estimate"
            )
        answer = here.recv()
    except EOFError:
        process.join()
        raise InputError(
            f"the compiler for {topology.text} ended without an answer (exit code "
            f"{process.exitcode}); its last words are above"
        ) from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, InputError):
        raise answer
    return answer


def _compile(path: str, changes: Changes, vocab: Vocab, topology: "Topology", answer: Any) -> None:
    import jax

    from mdlm.config.overrides import apply
    from mdlm.experiment.loading import load_file
    from mdlm.experiment.model import Model
    from mdlm.planning.plan import compile_for, first

    # What is kept by it can be loaded only where the hardware is.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        experiment = apply(load_file(path), changes)
        mesh = topology.mesh(experiment.mesh)
        answer.send(compile_for(Model(experiment, vocab, counts(experiment, vocab)), mesh))
    except InputError as error:
        answer.send(error)
    except jax.errors.JaxRuntimeError as error:
        print(error, file=sys.stderr)
        answer.send(InputError(f"{topology.text} cannot run this step: {first(str(error))}"))


def finite(value: Any) -> Any:
    """The value with None for numbers that are not known, which JSON cannot say otherwise."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and value != value else value


def words(p: "Plan") -> str:
    """A plan as it is printed."""
    from mdlm.parallel.mesh import MeshShape

    mesh = MeshShape(**p.mesh)
    micro = f", {p.accumulate} micro-batches" if p.accumulate > 1 else ""
    lines = [
        f"{p.experiment} on {p.topology}: {p.chips} x {p.chip}, mesh {mesh}",
        f"  {p.parameters:,} parameters, {p.columns:,} columns ({p.columns_from})",
        f"  {p.batch_size:,} rows of {p.length:,} = {p.tokens_per_step:,} tokens a step{micro}",
        f"  {verdict(p)}",
        *memory_words(p),
        "time of a step",
        f"  {p.flops:.3g} operations of the model; logits at {p.scored:.0%} of the places",
        f"  at the peak      {seconds(p.seconds(1))}  {p.chips} x {p.peak / 1e12:.0f} TFLOP/s",
        f"  at {p.mfu:.0%} MFU{'':7s}{seconds(p.seconds(p.mfu))}  "
        f"{p.tokens_per_step / p.seconds(p.mfu):,.0f} tokens/s",
    ]
    if p.traffic is not None and p.sent is not None and p.sending is not None:
        lines += [
            f"  sending          {seconds(p.sending)}  at least, beside or after the work: "
            f"{amount(p.sent)} a chip at {p.link / 1e9:.0f} GB/s",
            "collectives of a step, on each chip",
            *(f"  {k:16s} {t.count:8,}  {amount(t.bytes)}" for k, t in sorted(p.traffic.items())),
        ]
    elif p.method != "estimated" and p.refused is None:
        lines.append(
            "collectives: not known, for jax cannot read the program of this libtpu: "
            "pip install 'mdlm[tpu]' installs the one that belongs to it"
        )
    hours = p.days * 24 * p.chips
    money = "" if p.dollars is None else f", ${p.dollars:,.0f} at ${p.price:g} a chip-hour"
    lines.append(
        f"run of {p.steps:,} steps at {p.mfu:.0%} MFU: {p.days:.3g} days, "
        f"{hours:,.0f} chip-hours{money}"
    )
    return "\n".join(lines)


def verdict(p: "Plan") -> str:
    """How it is known, and whether it fits."""
    how = p.method
    if p.compile_seconds is not None:
        how += f" in {p.compile_seconds:.0f} s"
    if p.refused is not None:
        return f"{how}: DOES NOT FIT. {p.refused}"
    return f"{how}: {'fits' if p.fits else 'DOES NOT FIT'}"


def memory_words(p: "Plan") -> list[str]:
    """The memory of a chip, by part."""
    source = "estimated" if p.method == "estimated" else "as XLA says"
    rows = [
        ("parameters", p.memory.parameters, ""),
        ("optimizer state", p.memory.optimizer, ""),
        ("average (EMA)", p.memory.average, ""),
        ("batch, padding", p.memory.other, ""),
        (
            "temporaries",
            p.memory.temporaries,
            f"{source}: gradients ({p.gradients / GIB:.2f}), activations, workspace",
        ),
        ("program", p.memory.program, ""),
        ("all", p.memory.total, f"of {p.available / GIB:.2f}"),
    ]
    return ["memory of a chip, GiB", *(f"  {name:16s} {gib(n)}  {note}" for name, n, note in rows)]


def gib(size: float) -> str:
    """Eight places wide; a number that is not known is a question mark."""
    return f"{'?':>8s}" if size != size else f"{size / GIB:8.2f}"


def seconds(value: float) -> str:
    """`  123 ms`, `4.56 s`, eight places wide."""
    return f"{value * 1e3:6.1f} ms" if value < 1 else f"{value:6.2f} s "


def amount(size: float) -> str:
    """`123.4 MB`, `12.34 GB`."""
    return f"{size / 1e6:8.1f} MB" if size < 1e9 else f"{size / 1e9:8.2f} GB"


PLAN_HELP = """\
examples:
  mdlm plan experiments/owt_small.py --topology v5e:4x4 --mesh.fsdp 16 --price 1.2
  mdlm plan experiments/owt_small.py --topology gpu:8xH100 --mfu 0.35
  mdlm plan experiments/quickstart.py --topology v6e:2x2 --vocab 70 --json
  mdlm plan big.py --topology v5p:16x16x16 --extrapolate-from v5p:4x4x4

WHERE is a slice of TPUs by the chips along each of its axes (v5e:4x4, v5p:2x2x4, v6e:8x8,
v4:4x4x4), or a number of GPUs (gpu:8xH100, gpu:8xH200, gpu:8xA100).

For v5e, v5p and v6e the very step that would be trained is compiled, by the TPU's compiler and with
no TPU (pip install 'mdlm[tpu]'): half a minute to some minutes. What is printed of memory and
collectives is then what the compiler said. For v4 and GPUs memory is estimated; --estimate does
the same for all. No data are read. Time and money follow from the number of operations, the chips'
peak, and the MFU that you expect; they are no measurement."""


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("experiment", help="an experiment file (.py)")
    sub.add_argument("--topology", metavar="WHERE", required=True, help="such as v5e:4x4")
    sub.add_argument(
        "--vocab", type=int, metavar="N", help="tokens there are, where only the text could tell"
    )
    sub.add_argument(
        "--mfu", type=float, default=0.4, help="share of the peak to reckon with (default: 0.4)"
    )
    sub.add_argument("--price", type=float, metavar="USD", help="dollars per chip and hour")
    sub.add_argument(
        "--timeout",
        type=float,
        default=600,
        metavar="S",
        help="seconds after which compiling is given up (default: 600)",
    )
    sub.add_argument(
        "--extrapolate-from",
        metavar="WHERE",
        help="compile for this smaller slice instead, as many rows on each chip",
    )
    sub.add_argument("--estimate", action="store_true", help="compile nothing")
    sub.add_argument("--json", action="store_true", help="print JSON")


COMMAND = Command(
    name="plan",
    help="what a run would take on hardware that is not here",
    epilog=PLAN_HELP,
    arguments=arguments,
    run=run,
    takes_settings=True,
    computes=False,
)
