"""Predicts weak scaling: a fixed number of rows per chip, on one slice and on several.

    python -m benchmarks.weak_scaling experiments/owt_small.py --vocab 50258 --rows 32 \\
        --from v5e:4x4 --json runs/scaling/owt.json
    python -m benchmarks.weak_scaling --reuse runs/scaling/owt.json --rows 1 --json one.json
    python -m benchmarks.weak_scaling experiments/owt_small.py --vocab 50258 --rows 4 \\
        --fsdp 256 --tensor 4 --from v5p:2x2x4 --json runs/scaling/7b.json \\
        --network.heads 32 --network.width 4096 --network.depth 32 --network.remat blocks
    python -m benchmarks.weak_scaling --draw docs/weak_scaling.png runs/scaling/*.json

The training step is compiled for the slice of `--from`, and the bytes of its collectives are read
from the program, by mesh axes. For larger slices, up to 4,096 chips, the axes grow and these bytes
stay the same, except those of gradient shards, which shrink as the parameter shards do
(`benchmarks/weak_scaling_model.py`). With `--reuse` nothing is compiled: the program is that of an
earlier result, and the bytes over `tensor` grow with the rows. `--check` compiles for another slice
too, and prints the model's prediction beside the bytes of that program.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from benchmarks.environment import environment
from benchmarks.weak_scaling_model import (
    Exchange,
    Slices,
    binds_below,
    count_links,
    read,
    resized,
    sending,
    sent,
    total,
)
from benchmarks.weak_scaling_report import draw, table
from mdlm.cli.arguments import overrides
from mdlm.errors import InputError
from mdlm.parallel.mesh import AXES, DATA, MeshShape
from mdlm.planning.topology import Topology
from mdlm.profiling.peak import CHIPS, datasheet

LADDER = {
    "v5e": ("2x2", "4x4", "8x8", "16x16", "2*16x16", "4*16x16", "16*16x16"),
    "v5p": ("2x2x1", "2x2x4", "4x4x4", "8x8x8", "16x16x16"),
    "v6e": ("2x2", "4x4", "8x8", "16x16", "2*16x16", "4*16x16", "16*16x16"),
}


def laid(name: str, text: str, fsdp: int, tensor: int) -> Slices:
    """The mesh on `SLICES*SHAPE` of a chip, with the largest possible axis `fsdp` up to the given.

    Must be called in a process with the environment of that topology.
    """
    slices, _, shape = text.rpartition("*")
    topology = Topology.parse(f"{name}:{shape}")
    if topology.chips % tensor:
        raise InputError(
            f"{topology.text}: {topology.chips} chips are not divisible by tensor={tensor}"
        )
    for parts in range(min(fsdp, topology.chips // tensor), 0, -1):
        if topology.chips // tensor % parts:
            continue
        try:
            mesh = topology.mesh(MeshShape(fsdp=parts, tensor=tensor))
        except InputError:
            continue
        break
    else:
        raise InputError(f"{topology.text}: no mesh with tensor={tensor} is possible")
    where = np.array([d.coords for d in mesh.devices.flat]).reshape(*mesh.devices.shape, -1)
    dims = [int(n) for n in shape.split("x")]
    links = {}
    for axes in subsets([a for a in AXES if mesh.shape[a] > 1]):
        own = where[tuple(slice(None) if a in axes else 0 for a in AXES)]
        links[axes] = count_links(name, dims, own.reshape(-1, where.shape[-1])[:, : len(dims)])
    return Slices(
        name=name, text=text, slices=int(slices or 1), sizes=dict(mesh.shape), links=links
    )


def subsets(axes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for chosen in range(1, 2 ** len(axes)):
        yield tuple(axis for i, axis in enumerate(axes) if chosen >> i & 1)


def apart(topology: Topology, function: Any, *arguments: Any) -> Any:
    """Calls `function(*arguments)` in a process with the environment that libtpu needs."""
    topology.check_compiler()
    os.environ.update(topology.environment)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def compiled(
    path: str, changes: list[tuple[str, str]], vocab: int, topology: Topology, sizes: dict[str, int]
) -> dict[str, Any]:
    """Compiles a step on a mesh; returns its collectives, and memory and FLOPs of one chip."""
    from mdlm.cli.plan import counts, made_up
    from mdlm.config.overrides import apply
    from mdlm.experiment import Model, load_file
    from mdlm.planning.memory import abstract_batch, scored_share
    from mdlm.train.step import abstract_state, compile_step

    jax.config.update("jax_enable_compilation_cache", False)
    experiment = apply(load_file(path), changes)
    tokens = made_up(vocab)
    model = Model(experiment, tokens, counts(experiment, tokens))
    mesh = topology.mesh(MeshShape(**sizes))
    tx = experiment.optimizer.build(experiment.train.steps)
    lowered = compile_step(model, tx, mesh).lower(
        abstract_state(model, tx, mesh), abstract_batch(model, mesh)
    )
    program = lowered.compile()
    memory: Any = program.memory_analysis()
    rows, length = experiment.train.batch_size, experiment.data.packing.length
    scored = scored_share(model) * rows * length
    flops = 3 * experiment.network.flops(rows, length, scored, model.columns)
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    held += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "slice": topology.text,
        "mesh": dict(mesh.shape),
        "rows": rows // topology.chips,
        "gib": held / 2**30,
        "flops": flops / topology.chips,
        "exchanges": [vars(e) for e in read(program.as_text(), dict(mesh.shape))],
    }


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="?", help="an experiment file (.py)")
    parser.add_argument("--vocab", type=int, help="size of the vocabulary")
    parser.add_argument("--rows", type=int, default=8, help="rows per chip (default: 8)")
    parser.add_argument("--fsdp", type=int, default=1, help="largest size of the fsdp axis")
    parser.add_argument("--tensor", type=int, default=1, help="size of the tensor axis")
    parser.add_argument(
        "--from", dest="small", metavar="SLICE", help="slice to compile for, such as v5e:4x4"
    )
    parser.add_argument(
        "--reuse", type=Path, metavar="FILE", help="earlier result, instead of --from"
    )
    parser.add_argument(
        "--least", type=int, default=1, metavar="N", help="smallest number of chips"
    )
    parser.add_argument("--check", metavar="SLICE", help="slice to compile for and compare")
    parser.add_argument("--mfu", type=float, default=0.4, help="MFU of compute (default: 0.4)")
    parser.add_argument("--name", help="label in the picture")
    parser.add_argument("--json", type=Path, help="result file to write")
    parser.add_argument("--draw", nargs="+", metavar="FILE", help="PNG to draw, then results")
    return parser


def compile_on(args: argparse.Namespace, changes: list, text: str, fsdp: int) -> dict[str, Any]:
    """Compiles the step for a slice."""
    topology = Topology.parse(text)
    name, _, shape = text.partition(":")
    sizes = dict(apart(topology, laid, name, shape, fsdp, args.tensor).sizes)
    own = [*changes, ("train.batch_size", str(args.rows * topology.chips))]
    print(f"compiling for {text}, mesh {sizes}", file=sys.stderr)
    return apart(topology, compiled, args.experiment, own, args.vocab, topology, sizes)


def program_of(args: argparse.Namespace, changes: list) -> dict[str, Any]:
    """The compiled program that predictions are based on.

    Raises InputError if the arguments name none.
    """
    if args.reuse is not None:
        result = json.loads(args.reuse.read_text(encoding="utf-8"))
        args.fsdp, args.tensor = result["fsdp"], result["tensor"]
        return result["compiled"]
    if args.small is None or args.experiment is None or args.vocab is None:
        raise InputError("give an experiment file with --vocab and --from, or --reuse, or --draw")
    chips = Topology.parse(args.small).chips
    # At most half of the chips, so that `data` has size 2 at least and its collectives occur.
    return compile_on(args, changes, args.small, min(args.fsdp, max(1, chips // args.tensor // 2)))


def main(arguments: Sequence[str] | None) -> None:
    jax.config.update("jax_platforms", "cpu")
    args, rest = parser().parse_known_args(arguments)
    if args.draw:
        draw(
            Path(args.draw[0]),
            [json.loads(Path(file).read_text(encoding="utf-8")) for file in args.draw[1:]],
        )
        return
    changes = overrides(rest)
    program = program_of(args, changes)
    chip = program["slice"].partition(":")[0]
    exchanges = [Exchange(**{**e, "axes": tuple(e["axes"])}) for e in program["exchanges"]]
    more = args.rows / program["rows"]
    result: dict[str, Any] = {
        "name": args.name or Path(args.experiment or args.reuse).stem,
        "chip": chip,
        "rows": args.rows,
        "fsdp": args.fsdp,
        "tensor": args.tensor,
        "mfu": args.mfu,
        "compiled": program,
        "work": more * program["flops"] / (peak(chip) * args.mfu),
        "places": [],
        "environment": environment(),
    }
    for text in LADDER[chip]:
        where = Topology.parse(f"{chip}:{text.rpartition('*')[2]}")
        if where.chips < args.least:
            continue
        try:
            place = apart(where, laid, chip, text, args.fsdp, args.tensor)
        except InputError as error:
            print(f"{text}: {error}", file=sys.stderr)
            continue
        there = resized(exchanges, program["mesh"], place.sizes, more)
        result["places"].append(at(place, there, result["work"] / args.rows, args.rows))
    if args.check:
        other = compile_on(args, changes, args.check, args.fsdp)
        found = [Exchange(**{**e, "axes": tuple(e["axes"])}) for e in other["exchanges"]]
        expected = resized(exchanges, program["mesh"], other["mesh"], more)
        result["check"] = {**other, "modelled": total(expected), "found": total(found)}
    print(table(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


def at(place: Slices, exchanges: list[Exchange], work: float, rows: int) -> dict[str, Any]:
    """The values of a table row. `work`: seconds of compute for one row."""
    near, far = sending(exchanges, place)
    both = [sent(e, place) for e in exchanges]
    return {
        "slices": place.text,
        "chips": place.chips,
        "mesh": {**place.sizes, DATA: place.sizes[DATA] * place.slices},
        "sent": sum(b[0] for b in both),
        "through_network": sum(b[1] for b in both),
        "links": {"+".join(axes): n for axes, n in place.links.items()},
        "near": near,
        "far": far,
        "binds_below": binds_below(exchanges, place, work, rows),
    }


def peak(name: str) -> float:
    """Peak FLOP/s of a chip in bfloat16."""
    flops = datasheet(CHIPS[name].kind, "bfloat16").flops
    assert flops is not None
    return flops


if __name__ == "__main__":
    raise SystemExit(harness.main(main))
