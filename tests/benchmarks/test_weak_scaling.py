"""The model of weak scaling: who sends how much, over what, and when that takes longer than the
work. Against counts by hand, and against programs that XLA made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.weak_scaling import subsets
from benchmarks.weak_scaling_model import (
    Exchange,
    Slices,
    binds_below,
    count_links,
    group_axes,
    read,
    resized,
    sending,
    sent,
)
from benchmarks.weak_scaling_report import draw, efficiencies, table
from mdlm.parallel.mesh import AXES, MeshShape
from mdlm.profiling.collectives import collectives

LINK, NETWORK = 200e9 / 4, 3.125e9  # of v5e: one link, and the part of the network


def slices(count: int = 1, links: int = 4, **sizes: int) -> Slices:
    sizes = {axis: sizes.get(axis, 1) for axis in AXES}
    own = dict.fromkeys(subsets([axis for axis in AXES if sizes[axis] > 1]), links)
    return Slices(name="v5e", text="?", slices=count, sizes=sizes, links=own)


def exchange(kind: str, *axes: str, size: float = 1e9) -> Exchange:
    return Exchange(kind=kind, axes=axes, bytes=size)


def test_bytes_inside_a_slice():
    there = slices(data=2, fsdp=4)
    assert sent(exchange("all-gather", "fsdp"), there) == (0.75e9, 0)
    assert sent(exchange("reduce-scatter", "fsdp"), there) == (0.75e9, 0)
    assert sent(exchange("all-reduce", "data"), there) == (1e9, 0)
    assert sent(exchange("all-reduce", "data", "fsdp"), there) == (2 * 0.875e9, 0)
    assert sent(exchange("collective-permute", "fsdp"), there) == (1e9, 0)


def test_bytes_between_slices():
    """A chip's share of what was summed inside, each sum once; nothing of what is gathered."""
    there = slices(4, data=8, fsdp=2)
    assert sent(exchange("all-gather", "fsdp"), there) == (0.5e9, 0)
    assert sent(exchange("all-gather", "data"), there) == (7 / 8 * 1e9, 0)
    near, far = sent(exchange("reduce-scatter", "fsdp"), there)
    assert near == 0.5e9 and far == 2 * 3 / 4 * 1e9 / 16
    assert sent(exchange("all-reduce", "data"), there) == (2 * 7 / 8 * 1e9, 0)  # of the same sums
    copies = slices(4, data=8)
    assert sent(exchange("all-reduce", "data"), copies) == (2 * 7 / 8 * 1e9, 2 * 3 / 4 * 1e9 / 8)
    assert sent(exchange("all-reduce", "tensor"), slices(4, data=2, tensor=2)) == (1e9, 0)


def test_seconds():
    there = slices(2, links=4, data=4)
    near, far = sending([exchange("all-reduce", "data"), exchange("all-reduce", "data")], there)
    assert near == pytest.approx(2 * 1.5e9 / (4 * LINK))
    assert far == pytest.approx(2 * 0.25e9 / NETWORK)
    fewer, _ = sending([exchange("all-reduce", "data")], slices(links=2, data=4))
    assert fewer == pytest.approx(near)


def test_other_sizes_and_rows():
    found = [
        exchange("all-reduce", "data"),
        exchange("all-gather", "fsdp"),
        exchange("all-gather", "tensor"),
        exchange("all-reduce", "data", "fsdp"),
    ]
    old = {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 4}
    new = {"data": 2, "fsdp": 16, "sequence": 1, "tensor": 4}
    assert [e.bytes for e in resized(found, old, new, 3)] == [1e9 / 8, 1e9, 3e9, 1e9]


@pytest.mark.parametrize("rows", [1, 5])
def test_where_it_binds_sending_takes_as_long_as_the_work(rows):
    there, work = slices(2, data=4, tensor=2), 0.05
    one_row = [exchange("all-reduce", "data"), exchange("all-gather", "tensor", size=1e8)]
    sizes = dict(there.sizes)
    found = binds_below(resized(one_row, sizes, sizes, rows), there, work, rows)
    assert found is not None
    assert sum(sending(resized(one_row, sizes, sizes, found), there)) == pytest.approx(found * work)
    assert binds_below(one_row, there, 1e-6, 1) is None


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true", ("fsdp", "tensor")),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("replica_groups=[4,2]<=[8]", ("tensor",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",)),
        ("replica_groups={}", ("data", "fsdp", "tensor")),
        ("source_target_pairs={{0,2},{2,0},{1,3}}, metadata={}", ("fsdp",)),
    ],
)
def test_axes_of_a_group(text, axes):
    shape = {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert group_axes(f"), channel_id=1, {text}", shape) == axes


@pytest.mark.parametrize(
    ("name", "shape", "devices", "links"),
    [
        ("v5e", (16, 16), [(x, y) for x in range(16) for y in range(16)], 4),
        ("v5e", (16, 16), [(x, 0) for x in range(16)], 2),
        ("v5e", (16, 16), [(x, 0) for x in range(4)], 1),
        ("v5e", (4, 4), [(x, y) for x in range(4) for y in range(4)], 2),
        ("v5p", (4, 4, 4), [(x, 0, 0) for x in range(4)], 2),
        ("v5p", (2, 2, 4), [(0, 0, z) for z in range(4)], 1),
        ("v5p", (8, 8, 8), [(x, y, 0) for x in range(8) for y in range(8)], 4),
    ],
)
def test_links(name, shape, devices, links):
    assert count_links(name, shape, np.array(devices)) == links


def test_a_program_is_read_by_axes():
    """What is read is what `mdlm.profiling.collectives` reads, told apart by the axes."""
    mesh = MeshShape(data=2, fsdp=2, tensor=2).build(jax.devices()[:8])
    lay = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))

    @jax.jit
    def step(w, x):
        def block(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, lay(None, "tensor"))), None

        y, _ = jax.lax.scan(block, x, w)
        return jax.lax.with_sharding_constraint(y.sum(0), lay())

    w = jax.ShapeDtypeStruct((3, 64, 64), jnp.float32, sharding=lay(None, "fsdp", "tensor"))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=lay(("data", "fsdp"), None))
    text = step.lower(w, x).compile().as_text()
    found = read(text, dict(mesh.shape))
    for kind, traffic in collectives(text).items():
        own = [e for e in found if e.kind == kind]
        assert sum(e.bytes for e in own) == traffic.bytes
        assert sum(e.count for e in own) == traffic.count
    gathers = {e.axes: e for e in found if e.kind == "all-gather"}
    assert gathers["fsdp",].bytes == 3 * 64 * 32 * 4  # parts of 32 columns, in each turn
    assert {"data", "fsdp"} <= {axis for e in found if e.kind == "all-reduce" for axis in e.axes}


def test_table_and_picture(tmp_path):
    place = dict(slices="4x4", chips=16, mesh=dict(data=16), sent=2e9, through_network=0.0)
    place |= dict(near=0.01, far=0.0, binds_below=2.5)
    result = dict(name="a", rows=4, chip="v5e", work=0.03, mfu=0.4, places=[place])
    assert "| 16 | 4x4 | data 16 | 2 GB | 0 MB | 10 ms | 0 ms | 75% to 100% | 2.5 rows |" in table(
        result
    )
    assert efficiencies(1.0, 1.0, 2.0) == (0.25, pytest.approx(1 / 3))
    draw(tmp_path / "a.png", [result])
    assert (tmp_path / "a.png").stat().st_size > 1000
