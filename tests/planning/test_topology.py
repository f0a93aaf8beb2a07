"""A mesh over several slices of TPUs, or over hosts with GPUs: what lies inside one of them."""

from types import SimpleNamespace

import pytest

from mdlm.errors import InputError
from mdlm.parallel.mesh import MeshShape, over_slices


class Device(SimpleNamespace):
    """What a mesh asks of a device."""

    __hash__ = object.__hash__


def devices(hosts: int, each: int) -> list[Device]:
    """As JAX shows GPUs: each host is a slice. In an order that says nothing."""
    found = [
        Device(id=i, slice_index=i // each, process_index=i // each, platform="gpu", kind="x")
        for i in range(hosts * each)
    ]
    for device in found:
        device.device_kind = "NVIDIA H100 80GB HBM3"
    return found[::-1]


@pytest.mark.parametrize(
    ("sizes", "hosts", "each"),
    [
        (dict(data=2, fsdp=8), 2, 8),
        (dict(data=4, fsdp=4), 2, 8),
        (dict(data=-1), 4, 2),
        (dict(data=2, fsdp=2, tensor=2), 2, 4),
    ],
)
def test_only_data_goes_over_the_slices_where_it_can(sizes, hosts, each):
    mesh = MeshShape(**sizes).build(devices(hosts, each))
    for column in mesh.devices.reshape(mesh.shape["data"], -1):
        assert len({device.slice_index for device in column}) == 1
    assert len({device.id for device in mesh.devices.flat}) == hosts * each
    slices = [row[0].slice_index for row in mesh.devices.reshape(mesh.shape["data"], -1)]
    assert slices == sorted(slices)


def test_fsdp_goes_over_them_where_data_has_too_few_parts():
    mesh = MeshShape(data=1, fsdp=16).build(devices(2, 8))
    assert [d.slice_index for d in mesh.devices.flat] == [0] * 8 + [1] * 8
    mesh = MeshShape(data=2, fsdp=3).build(devices(6, 1))
    assert len({device.id for device in mesh.devices.flat}) == 6


def test_hosts_of_different_sizes_are_refused():
    uneven = [*devices(2, 4), *devices(1, 2)][:8]
    with pytest.raises(InputError, match=r"these have \[2, 6\]"):
        MeshShape(data=8).build(
            [Device(**{**vars(d), "slice_index": int(i > 5)}) for i, d in enumerate(uneven)]
        )


@pytest.mark.parametrize(
    ("shape", "slices", "between"),
    [
        ((4, 8, 1, 1), 2, (2, 1, 1, 1)),
        ((1, 16, 1, 2), 4, (1, 4, 1, 1)),
        ((2, 6, 1, 1), 4, (2, 2, 1, 1)),
        ((3, 1, 1, 2), 6, (3, 1, 1, 2)),
    ],
)
def test_over_slices(shape, slices, between):
    assert over_slices(shape, slices) == between
