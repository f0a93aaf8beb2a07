"""The mesh and what lies where on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mdlm.errors import InputError
from mdlm.parallel.mesh import AXES, MeshShape, on, put_on_mesh, row_parts, rows_here
from mdlm.parallel.sharding import (
    HEADS,
    SPLITS,
    STREAM,
    applied,
    at_rest,
    fitted,
    in_use,
    moved,
    parameter_sharding,
)

SHAPE = (1, 2, 2, 2)


def mesh_of(*shape: int) -> Mesh:
    sizes = dict(zip(AXES, shape, strict=True))
    return MeshShape(**sizes).build(jax.devices()[: int(np.prod(shape))])


def permuted(seed: int, *shape: int) -> Mesh:
    """Devices in an order that no process would have chosen."""
    devices = np.random.default_rng(seed).permutation(np.array(jax.devices()))
    return Mesh(devices.reshape(shape), AXES, axis_types=(AxisType.Auto,) * 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "data=-1"),
        ({"data": 1}, "data=1"),
        ({"fsdp": 4, "tensor": 2, "data": 1}, "fsdp=4 tensor=2"),
    ],
)
def test_in_words(given, said):
    assert str(MeshShape(**given)) == said


def test_sizes():
    assert MeshShape(fsdp=2, tensor=2).sizes(8) == (2, 2, 1, 2)
    assert MeshShape(data=1, sequence=-1).sizes(8) == (1, 1, 8, 1)
    with pytest.raises(InputError, match="sequence=3 does not fit 8 devices"):
        MeshShape(sequence=3).sizes(8)
    with pytest.raises(ValueError, match="one of them may be -1"):
        MeshShape(tensor=-1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(2, 2, 2, 1), (1, 4, 1, 2), (8, 1, 1, 1), (1, 1, 2, 4)])
def test_rows_are_placed_where_they_belong(seed, shape):
    """One process has all devices, in whatever order: it provides all rows, each once."""
    mesh = permuted(seed, *shape)
    np.testing.assert_array_equal(rows_here(mesh, 16), np.arange(16))
    rows = {"tokens": np.arange(32).reshape(16, 2), "rows": np.asarray(16)}
    placed = put_on_mesh(mesh, rows)
    np.testing.assert_array_equal(placed["tokens"], rows["tokens"])
    assert placed["rows"].sharding.is_fully_replicated
    size = 16 // row_parts(mesh)
    where = {shard.device: shard.data for shard in placed["tokens"].addressable_shards}
    for place_of, device in np.ndenumerate(mesh.devices):
        part = place_of[0] * shape[1] + place_of[1]
        expected = rows["tokens"][part * size : (part + 1) * size]
        np.testing.assert_array_equal(where[device], expected)


@pytest.mark.parametrize(
    ("shape", "rest", "expected"),
    [
        ((256, 1024), "columns", (("fsdp", "sequence"), "tensor")),
        ((1024, 256), "rows", ("tensor", ("fsdp", "sequence"))),
        ((256, 768), "whole", (("fsdp", "sequence", "tensor"), None)),
        ((61, 512), "table", (None, ("fsdp", "tensor", "sequence"))),
        ((12, 256, 1024), "columns", (None, ("fsdp", "sequence"), "tensor")),
        # What does not divide one dimension may divide the other; what is small stays whole.
        ((258, 1024), "columns", ("fsdp", ("tensor", "sequence"))),
        ((255, 257), "whole", (None, None)),
        ((64, 64), "whole", ()),
        ((2**20,), "whole", ()),
        ((256, 1024), None, ()),
    ],
)
def test_at_rest(shape, rest, expected):
    assert at_rest(AbstractMesh(SHAPE, AXES), shape, rest) == PartitionSpec(*expected)


def test_state_lies_as_its_parameters():
    """By the end of the path, the whole of it as far as it is said."""
    mesh = AbstractMesh(SHAPE, AXES)
    rests = {("network", "blocks", "kernel"): "columns", ("network", "kernel"): "rows"}
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    params = {"network": {"blocks": {"kernel": array(3, 256, 512)}, "kernel": array(512, 256)}}
    state = {"params": params, "moments": ({"mu": params}, array()), "other": array(512, 512)}
    found = parameter_sharding(mesh, state, rests)
    columns = PartitionSpec(None, ("fsdp", "sequence"), "tensor")
    rows = PartitionSpec("tensor", ("fsdp", "sequence"))
    for tree in (found["params"], found["moments"][0]["mu"]):
        assert tree["network"]["blocks"]["kernel"].spec == columns
        assert tree["network"]["kernel"].spec == rows
    assert found["other"].is_fully_replicated and found["moments"][1].is_fully_replicated


def test_splits_that_do_not_divide_are_left_out():
    mesh = AbstractMesh((2, 2, 2, 3), AXES)
    assert fitted(mesh, (8, 12, 5), STREAM) == PartitionSpec(
        ("data", "fsdp"), ("sequence", "tensor")
    )
    assert fitted(mesh, (2, 8, 5), STREAM) == PartitionSpec("data", "sequence")
    assert fitted(mesh, (1, 7, 3, 5), HEADS) == PartitionSpec(None, None, "tensor")


@pytest.mark.parametrize("rest", SPLITS)
def test_kernels_come_and_go(rest):
    """The same product and gradient, which lies as the kernel does; cut columns too."""
    mesh = mesh_of(*SHAPE)
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((128, 256)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 8, 128)), jnp.float32)
    use = rest if rest in ("columns", "rows") else "whole"
    lies = NamedSharding(mesh, at_rest(mesh, kernel.shape, rest))

    def total(kernel):
        w = in_use(kernel, jnp.float32, rest, use, columns=slice(64, 192))
        return jnp.square(moved(x, STREAM) @ w).sum()

    def split(kernel):
        with on(mesh):
            return jax.grad(total)(kernel)

    found = jax.jit(split, out_shardings=None)(jax.device_put(kernel, lies))
    expected = jax.grad(total)(kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 2, 2, 1), (1, 1, 2, 4)])
@pytest.mark.parametrize("length", [8, 1])
def test_few_are_exchanged(shape, length):
    """Rows of a table by exchange: no device holds more of it, or of its gradient, than its own."""
    mesh = mesh_of(*shape)
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((1000, 64)), jnp.float32)
    index = jnp.asarray(rng.integers(0, 1000, (8, length)), jnp.int32)
    weight = jnp.asarray(rng.standard_normal((8, length, 64)), jnp.float32)

    def total(table):
        y = applied(lambda table, index: table[index], table, index)
        return (y * weight).sum()

    def split(table):
        with on(mesh):
            return jax.value_and_grad(total)(table)

    lies = NamedSharding(mesh, at_rest(mesh, table.shape, "table"))
    step = jax.jit(split, in_shardings=lies, out_shardings=(None, lies)).lower(table).compile()
    assert "f32[1000,64]" not in step.as_text()
    found, expected = step(jax.device_put(table, lies)), jax.value_and_grad(total)(table)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )
