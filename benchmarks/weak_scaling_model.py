"""Predicts the communication of a training step on many chips from the program for few.

Over n chips each chip sends

    all-gather, reduce-scatter, all-to-all    bytes * (n - 1) / n
    all-reduce                                twice that

over the links along those axes of the torus in which the devices of a group differ: two per axis,
one if the torus has no wrap-around there. Over s slices, sums over rows are first made inside each
slice; for its shard, 1 / n, each chip then sends `2 * bytes / n * (s - 1) / s` over its part of the
data-centre network, and the result is gathered inside the slice (as XLA does for two slices:
reduce-scatter, a transfer between hosts, all-gather). Times of all collectives are added; latencies
are ignored.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mdlm.parallel.mesh import DATA, FSDP, SEQUENCE, TENSOR
from mdlm.profiling.collectives import Traffic, met, times_sent
from mdlm.profiling.peak import CHIPS

SUMS = ("all-reduce", "reduce-scatter")
CLOSED = {"v5e": 16, "v6e": 16}
"""Chips along an axis from which the torus wraps around; for other chips see `is_closed`."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Collectives of one kind over the same axes of the mesh in one step: bytes as in
    `mdlm.profiling.collectives`, of the whole array that a device takes part in moving."""

    kind: str
    axes: tuple[str, ...]
    bytes: float
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Slices:
    """Several equal slices with one mesh each; the axis `data` extends over all slices.

    `sizes` are the mesh axes inside a slice; `links` is the number of links of a chip along the
    axes of a group, by the group's axes.
    """

    name: str
    text: str
    slices: int
    sizes: Mapping[str, int]
    links: Mapping[tuple[str, ...], int]

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.sizes.values())


def sent(exchange: Exchange, there: Slices) -> tuple[float, float]:
    """Bytes that a chip sends to its neighbours, and through the data-centre network."""
    n = math.prod(there.sizes[axis] for axis in exchange.axes)
    twice = times_sent(exchange.kind)
    part = float(n > 1) if exchange.kind == "collective-permute" else (n - 1) / n
    near = twice * exchange.bytes * part
    # What is gathered is the same on all slices. Every sum over rows goes between them once: where
    # it is made over `fsdp`, or over `data` if that is all there is.
    own = FSDP if there.sizes[FSDP] > 1 else DATA
    if exchange.kind not in SUMS or own not in exchange.axes:
        return near, 0.0
    share = exchange.bytes / (there.sizes[DATA] * there.sizes[FSDP])
    return near, 2 * share * (there.slices - 1) / there.slices


def sending(exchanges: Sequence[Exchange], there: Slices) -> tuple[float, float]:
    """Seconds of a step in which the links, and the network between slices, are busy."""
    chip = CHIPS[there.name]
    link = chip.link / (2 * chip.axes)
    near = far = 0.0
    for exchange in exchanges:
        to_neighbours, through_network = sent(exchange, there)
        if to_neighbours:
            axes = tuple(axis for axis in exchange.axes if there.sizes[axis] > 1)
            near += to_neighbours / (link * there.links[axes])
        if through_network:
            assert chip.network is not None, there.name
            far += through_network / chip.network
    return near, far


def resized(
    exchanges: Sequence[Exchange], old: Mapping[str, int], new: Mapping[str, int], rows: float = 1
) -> list[Exchange]:
    """The collectives on a mesh of other sizes, with `rows` times as many rows on each chip.

    Collectives over `data` alone sum gradient shards, which are smaller if there are more of them.
    Activations grow with the rows. Everything else stays the same.
    """
    part = (old[FSDP] * old[TENSOR]) / (new[FSDP] * new[TENSOR])

    def scale(e: Exchange) -> float:
        if is_of_activations(e):
            return rows
        return part if e.axes == (DATA,) and e.kind in SUMS else 1.0

    return [replace(e, bytes=e.bytes * scale(e)) for e in exchanges]


def is_of_activations(exchange: Exchange) -> bool:
    """Whether it runs only over axes along which devices work on the same rows."""
    return set(exchange.axes) <= {SEQUENCE, TENSOR}


def binds_below(
    exchanges: Sequence[Exchange], there: Slices, work: float, rows: float
) -> float | None:
    """Rows per chip below which communication takes longer than compute; None if it always does.

    `work`: seconds of compute for one row. `exchanges` are those of a step with `rows` rows.
    """
    fixed = sum(sending([e for e in exchanges if not is_of_activations(e)], there))
    growing = sum(sending([e for e in exchanges if is_of_activations(e)], there)) / rows
    return fixed / (work - growing) if growing < work else None


def total(exchanges: Sequence[Exchange]) -> float:
    """Bytes that a chip sends, approximately, as `mdlm plan` counts them."""
    return sum(e.bytes * times_sent(e.kind) for e in exchanges)


def read(text: str, shape: Mapping[str, int]) -> list[Exchange]:
    """The collectives of a compiled program, from its HLO text, on a mesh of these sizes."""
    found: dict[tuple[str, tuple[str, ...]], Traffic] = defaultdict(Traffic)
    for kind, line, traffic in met(text):
        found[kind, group_axes(line.rest, shape)] += traffic
    return [
        Exchange(kind=kind, axes=axes, bytes=traffic.bytes, count=traffic.count)
        for (kind, axes), traffic in sorted(found.items(), key=lambda item: item[0])
    ]


def group_axes(rest: str, shape: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of the mesh in which the devices of a group differ, from an instruction's text."""
    devices = math.prod(shape.values())
    if pairs := re.search(r"source_target_pairs=\{([^=]*?)\}\}", rest):
        group = next(p for p in numbers(pairs[1]) if p[0] != p[1])
    elif listed := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        group = numbers(listed[1])[0]
    elif iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        groups, dims, order = ([int(n) for n in (g or "").split(",") if n] for g in iota.groups())
        ids = np.arange(devices).reshape(dims)
        group = list(ids.transpose(order or range(len(dims))).reshape(groups)[0])
    else:
        group = list(range(devices))  # an empty list of groups: all
    places = np.unravel_index(np.array(group), tuple(shape.values()))
    return tuple(a for a, place in zip(shape, places, strict=True) if len(set(place.tolist())) > 1)


def numbers(text: str) -> list[list[int]]:
    """The lists of numbers in `{0,1},{2,3}`."""
    return [[int(n) for n in part.split(",")] for part in re.findall(r"[\d,]+\d|\d", text)]


def is_closed(name: str, slice_shape: Sequence[int], axis: int) -> bool:
    """Whether the torus wraps around along an axis of a slice.

    v5e and v6e have wrap-around links only on axes of 16 chips; v4 and v5p close axes by
    optical switches between cubes of 4x4x4 (https://jax-ml.github.io/scaling-book/tpus).
    """
    if name in CLOSED:
        return slice_shape[axis] == CLOSED[name]
    return all(n % 4 == 0 for n in slice_shape)


def count_links(name: str, slice_shape: Sequence[int], coordinates: np.ndarray) -> int:
    """Links of a chip along the axes of the torus in which chips of a group differ.

    `coordinates` `[n axes]` are those of the group.
    """
    links = 0
    for axis, size in enumerate(slice_shape):
        there = len(set(coordinates[:, axis].tolist()))
        whole = there == size and size > 2
        links += (2 if whole and is_closed(name, slice_shape, axis) else 1) if there > 1 else 0
    return links
