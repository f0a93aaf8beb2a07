"""Peaks by datasheet and by measurement."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from mdlm.profiling import peak
from mdlm.profiling.peak import datasheet, measured, peak_flops


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 494e12),
        ("NVIDIA H200", 989e12, 494e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA H100 NVL", 835e12, 418e12),
        ("NVIDIA H200 NVL", 835e12, 418e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 156e12),
        ("NVIDIA B200", 2250e12, 1100e12),
        ("NVIDIA A10", 125e12, 62.5e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("NVIDIA GeForce RTX 5090", 209.5e12, 104.8e12),
        ("NVIDIA RTX 6000 Ada Generation", 364e12, 182e12),
        ("AMD Instinct MI300X", 1307.4e12, 653.7e12),
        ("TPU v4", 275e12, 275e12),
        ("TPU v5 lite", 197e12, 197e12),
        ("TPU v5", 459e12, 459e12),
        ("TPU v5p", 459e12, 459e12),
        ("TPU v6 lite", 918e12, 918e12),
    ],
)
def test_datasheets(kind, bfloat16, float32):
    assert datasheet(kind, "bfloat16").flops == datasheet(kind, "float16").flops == bfloat16
    found = datasheet(kind, "float32")
    assert found.flops == float32 and ("TF32" in found.source) == ("TPU" not in kind)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("NVIDIA GeForce RTX 5090 Laptop GPU", "bfloat16"),
        ("NVIDIA GeForce RTX 4090 D", "bfloat16"),
        ("NVIDIA A10G", "bfloat16"),
        ("NVIDIA GB200", "bfloat16"),
        ("NVIDIA GH200 480GB", "bfloat16"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16"),
        ("TPU v4 lite", "bfloat16"),
        ("NVIDIA H100 PCIe", "int4"),
    ],
)
def test_what_is_not_listed_has_no_peak(kind, dtype):
    flops, source = datasheet(kind, dtype)
    assert flops is None and kind in source and dtype in source


def test_devices_add_up_and_those_of_a_cpu_share_its_cores(monkeypatch):
    gpus = [SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")] * 8
    assert peak_flops("bfloat16", gpus).flops == 8 * 989e12
    unknown = [SimpleNamespace(platform="gpu", device_kind="Fastest 1")] * 8
    assert peak_flops("bfloat16", unknown).flops is None
    monkeypatch.setattr(peak, "measured", lambda dtype: 1e11)
    assert len(jax.devices()) == 8
    assert peak_flops("float32", jax.devices()).flops == peak_flops("float32").flops == 1e11


def test_a_cpu_is_measured_once():
    found = peak_flops("float32")
    assert found.flops is not None and 1e9 < found.flops < 1e14 and "float32" in found.source
    assert measured("float32") == measured("float32") == found.flops


def test_the_product_that_is_measured_is_of_that_dtype(monkeypatch):
    monkeypatch.setattr(peak, "SIZE", 64)
    monkeypatch.setattr(peak, "REPEATS", 1)
    seen = []
    ones = jnp.ones
    monkeypatch.setattr(jnp, "ones", lambda shape, dtype: seen.append(dtype) or ones(shape, dtype))
    assert measured.__wrapped__("bfloat16") > 0 and seen == ["bfloat16"]
