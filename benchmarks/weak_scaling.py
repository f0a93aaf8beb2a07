"""Weak scaling on paper: the same rows on every chip, of one slice, and of several.

    python -m benchmarks.weak_scaling experiments/owt_small.py --vocab 50258 --rows 32 \\
        --from v5e:4x4 --json runs/scaling/owt.json
    python -m benchmarks.weak_scaling experiments/owt_small.py --vocab 50258 --rows 4 \\
        --fsdp 256 --tensor 4 --from v5p:2x2x4 --check v5p:4x4x4 --json runs/scaling/7b.json \\
        --network.width 4096 --network.depth 32 --network.heads 32 --network.remat blocks
    python -m benchmarks.weak_scaling --draw docs/weak_scaling.png runs/scaling/*.json

The training step is compiled for the slice after `--from`, and what its collectives move is read
from the program, by the axes of the mesh that they go over. For the slices of the ladder, up to
4,096 chips, the axes grow and these bytes stay, but for the gradients' parts, which shrink as the
parameters' do (`benchmarks/weak_scaling_model.py`). `--check` compiles for another slice as well,
and prints what the model says beside what that program moves.
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
from benchmarks.weak_scaling_model import Slices, count_links, read, resized, sending, sent
from benchmarks.weak_scaling_report import draw, table
from mdlm.arguments import overrides
from mdlm.hardware import CHIPS, datasheet
from mdlm.mesh import AXES, DATA, MeshShape
from mdlm.topology import Topology
from mdlm.types import InputError

LADDER = {
    "v5e": ("2x2", "4x4", "8x8", "16x16", "2*16x16", "4*16x16", "16*16x16"),
    "v5p": ("2x2x1", "2x2x4", "4x4x4", "8x8x8", "16x16x16"),
    "v6e": ("2x2", "4x4", "8x8", "16x16", "2*16x16", "4*16x16", "16*16x16"),
}


def laid(name: str, text: str, fsdp: int, tensor: int) -> Slices:
    """The mesh on `SLICES*SHAPE` of a chip: `fsdp` the largest that can be laid and is not above.

    In a process with the environment of that topology.
    """
    slices, _, shape = text.rpartition("*")
    topology = Topology.parse(f"{name}:{shape}")
    if topology.chips % tensor:
        raise InputError(f"{topology.text}: {topology.chips} chips do not divide over {tensor}")
    for parts in range(min(fsdp, topology.chips // tensor), 0, -1):
        if topology.chips // tensor % parts:
            continue
        try:
            mesh = topology.mesh(MeshShape(fsdp=parts, tensor=tensor))
        except InputError:
            continue
        break
    else:
        raise InputError(f"{topology.text}: no mesh with tensor={tensor}")
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
    """`function(*arguments)` in a process with the environment that libtpu wants."""
    topology.check_compiler()
    os.environ.update(topology.environment)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def compiled(
    path: str, changes: list[tuple[str, str]], vocab: int, topology: Topology, sizes: dict[str, int]
) -> dict[str, Any]:
    """Exchanges, GiB of a chip, and operations of a step on it."""
    from mdlm.experiment import Model, load_file
    from mdlm.footprint import abstract_batch, scored_share
    from mdlm.overrides import apply
    from mdlm.plan_commands import counts, made_up
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
        "exchanges": read(program.as_text(), dict(mesh.shape)),
        "gib": held / 2**30,
        "flops": flops / topology.chips,
        "tokens": rows * length / topology.chips,
    }


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="?", help="an experiment file (.py)")
    parser.add_argument("--vocab", type=int, help="tokens there are")
    parser.add_argument("--rows", type=int, default=8, help="rows on each chip (default: 8)")
    parser.add_argument("--fsdp", type=int, default=1, help="parts of the parameters, at most")
    parser.add_argument("--tensor", type=int, default=1, help="size of that axis")
    parser.add_argument("--from", dest="small", metavar="SLICE", help="compiled, such as v5e:4x4")
    parser.add_argument("--check", metavar="SLICE", help="compiled too, and compared")
    parser.add_argument("--mfu", type=float, default=0.4, help="of the work alone (default: 0.4)")
    parser.add_argument("--name", help="of the line in the picture")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--draw", nargs="+", metavar="FILE", help="a picture, of these results")
    return parser


def compile_small(args: argparse.Namespace, changes: list, text: str) -> tuple[dict, Slices]:
    """What was compiled for a slice, and the mesh on it: with `data` of two or more, so that its
    exchanges are seen."""
    topology = Topology.parse(text)
    name, _, shape = text.partition(":")
    most = min(args.fsdp, max(1, topology.chips // args.tensor // 2))
    there = apart(topology, laid, name, shape, most, args.tensor)
    rows = args.rows * topology.chips
    own = [*changes, ("train.batch_size", str(rows))]
    print(f"compiling for {text}, mesh {there.sizes}", file=sys.stderr)
    answer = apart(
        topology, compiled, args.experiment, own, args.vocab, topology, dict(there.sizes)
    )
    return answer, there


def main(arguments: Sequence[str] | None) -> None:
    jax.config.update("jax_platforms", "cpu")
    args, rest = parser().parse_known_args(arguments)
    if args.draw:
        draw(Path(args.draw[0]), [json.loads(Path(file).read_text()) for file in args.draw[1:]])
        return
    changes = overrides(rest)
    name = args.small.partition(":")[0]
    answer, there = compile_small(args, changes, args.small)
    result: dict[str, Any] = {
        "name": args.name or Path(args.experiment).stem,
        "chip": name,
        "rows": args.rows,
        "mfu": args.mfu,
        "compiled": {
            "slice": args.small,
            "mesh": dict(there.sizes),
            **{k: v for k, v in answer.items() if k != "exchanges"},
            "exchanges": [vars(e) for e in answer["exchanges"]],
        },
        "work": answer["flops"] / (peak(name) * args.mfu),
        "places": [],
        "environment": environment(),
    }
    for text in LADDER[name]:
        where = Topology.parse(f"{name}:{text.rpartition('*')[2]}")
        try:
            place = apart(where, laid, name, text, args.fsdp, args.tensor)
        except InputError as error:
            print(f"{text}: {error}", file=sys.stderr)
            continue
        exchanges = resized(answer["exchanges"], there.sizes, place.sizes)
        near, far = sending(exchanges, place)
        both = [sent(e, place) for e in exchanges]
        result["places"].append(
            {
                "slices": text,
                "chips": place.chips,
                "mesh": {**place.sizes, DATA: place.sizes[DATA] * place.slices},
                "sent": sum(b[0] for b in both),
                "through_network": sum(b[1] for b in both),
                "links": {"+".join(axes): n for axes, n in place.links.items()},
                "near": near,
                "far": far,
            }
        )
    if args.check:
        other, there_too = compile_small(args, changes, args.check)
        modelled = resized(answer["exchanges"], there.sizes, there_too.sizes)
        total = lambda exchanges: sum(sent(e, there_too)[0] for e in exchanges)
        result["check"] = {
            "slice": args.check,
            "mesh": dict(there_too.sizes),
            "modelled": total(modelled),
            "compiled": total(other["exchanges"]),
            "exchanges": [vars(e) for e in other["exchanges"]],
        }
    print(table(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1))


def peak(name: str) -> float:
    """Operations per second of a chip, in bfloat16."""
    flops = datasheet(CHIPS[name].kind, "bfloat16").flops
    assert flops is not None
    return flops


if __name__ == "__main__":
    raise SystemExit(harness.main(main))
