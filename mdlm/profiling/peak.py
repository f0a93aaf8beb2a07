"""Peak FLOP/s, memory and links of hardware. The peak is the denominator of MFU.

MFU (model FLOPs utilisation, arXiv:2204.02311) is the model's FLOP/s over the peak FLOP/s of dense
matmuls. For accelerators the peak is that of the datasheet, without sparsity. The clock of a CPU
varies, so its peak is measured. Hardware that is not listed has no peak here, and its runs report
no MFU, rather than a guess.
"""

import re
import time
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SIZE = 2048
"""Rows and columns of the matrices in the measurement of a CPU."""
REPEATS, PATIENCE = 4, 0.5
"""Most matmuls that are timed, and seconds after which no further one starts."""


class Peak(NamedTuple):
    """The peak of dense matmuls, in FLOP/s, and the source of the figure.

    `flops` is None if it is unknown.
    """

    flops: float | None
    source: str


# (pattern of `device_kind`, 16-bit floats, float32, the page); the first match counts.
# float32 matmuls run as TF32 on these GPUs and in one pass of bfloat16 on TPUs, which is JAX's
# default. NVIDIA prints figures with 2:4 sparsity: half of them is dense. Products of 16-bit floats
# are summed in float32: with sums in float16 GeForce cards are twice as fast, but that is another
# peak. docs/scale.md says where each figure is from.
DATASHEETS: tuple[tuple[str, float, float, str], ...] = (
    (r"\bH[12]00 NVL", 835e12, 418e12, "NVIDIA H100 and H200 datasheets, NVL"),
    (r"\bH100 PCIe", 756e12, 378e12, "NVIDIA H100 datasheet, PCIe"),
    (r"\bH[12]00\b", 989e12, 494e12, "NVIDIA H100 and H200 datasheets, SXM"),
    (r"\bB200\b", 2250e12, 1100e12, "NVIDIA Blackwell technical brief, HGX B200"),
    (r"\bA100\b", 312e12, 156e12, "NVIDIA A100 datasheet"),
    (r"\bA10$", 125e12, 62.5e12, "NVIDIA A10 datasheet"),
    (r"\bL4$", 121e12, 60e12, "NVIDIA L4 datasheet"),
    (r"\bL40S$", 362e12, 183e12, "NVIDIA L40S datasheet"),
    (r"\bRTX 4090$", 165.2e12, 82.6e12, "NVIDIA Ada whitepaper, table 2"),
    (r"\bRTX 5090$", 209.5e12, 104.8e12, "NVIDIA RTX Blackwell whitepaper, table 3"),
    (r"\bRTX 6000 Ada\b", 364e12, 182e12, "NVIDIA RTX PRO Blackwell whitepaper, table 4"),
    (r"\bMI300X\b", 1307.4e12, 653.7e12, "AMD Instinct MI300X data sheet"),
    (r"TPU v6( lite|e)$", 918e12, 918e12, "Google Cloud documentation, TPU v6e"),
    (r"TPU v5( lite|e)$", 197e12, 197e12, "Google Cloud documentation, TPU v5e"),
    (r"TPU v5p?$", 459e12, 459e12, "Google Cloud documentation, TPU v5p"),
    (r"TPU v4$", 275e12, 275e12, "Google Cloud documentation, TPU v4"),
)


class Chip(NamedTuple):
    """A chip that `mdlm plan` supports.

    `memory` is the memory available to a program, in bytes; `link` is the bandwidth to neighbours,
    in bytes per second, all links together, one way (of GPUs: inside one box). `network` is the
    chip's share of its machine's bandwidth to another slice or another box, None where it is not
    known. `axes` is the number of axes of the torus, 0 with a switch; along each axis a chip has
    two links.
    """

    kind: str
    memory: float
    link: float
    network: float | None
    axes: int
    source: str


GIB = 2.0**30
GOOGLE = "docs.cloud.google.com/tpu/docs"
# TPUs: `memory` is what XLA says is available when a program needs more (libtpu 0.0.52), a little
# less than the 16, 95 and 32 GiB of the chips; of v4, which has no compiler here, all 32. `link` is
# half of the "bidirectional inter-chip interconnect (ICI) bandwidth per chip": 400, 1,200 and
# 800 GB/s. Of v4 the documentation has only that a pod of 4,096 chips reduces 1.1 PB/s; its paper
# has six links of 50 GB/s. `network`: 6.4 Tb/s per pod of 256 chips, 50 Gb/s per chip, 25.6 Tb/s
# per pod of 256.
# GPUs: the datasheets' GB, taken as 10^9, which leaves room for the driver and error correction;
# half of the rate of NVLink, of seven Infinity Fabric links of 128 GB/s, or of PCIe x16 where there
# is neither (64 GB/s, of the RTX 5090 128); one port of 200 or 400 Gb/s for each GPU, as in
# NVIDIA's own boxes.
CHIPS: dict[str, Chip] = {
    "v4": Chip("TPU v4", 32 * GIB, 300e9, None, 3, f"{GOOGLE}/v4; arXiv:2304.01433, table 4"),
    "v5e": Chip("TPU v5 lite", 15.75 * GIB, 200e9, 3.125e9, 2, f"{GOOGLE}/v5e"),
    "v5p": Chip("TPU v5", 95.73 * GIB, 600e9, 6.25e9, 3, f"{GOOGLE}/v5p"),
    "v6e": Chip("TPU v6 lite", 31.24 * GIB, 400e9, 12.5e9, 2, f"{GOOGLE}/v6e"),
    "A100": Chip("NVIDIA A100-SXM4-80GB", 80e9, 300e9, 25e9, 0, "NVIDIA A100 and DGX A100"),
    "H100": Chip("NVIDIA H100 80GB HBM3", 80e9, 450e9, 50e9, 0, "NVIDIA H100, SXM; DGX H100"),
    "H200": Chip("NVIDIA H200", 141e9, 450e9, 50e9, 0, "NVIDIA H200, SXM; DGX H200"),
    "B200": Chip("NVIDIA B200", 180e9, 900e9, 50e9, 0, "NVIDIA HGX B200, DGX B200"),
    "A10": Chip("NVIDIA A10", 24e9, 32e9, None, 0, "NVIDIA A10"),
    "L4": Chip("NVIDIA L4", 24e9, 32e9, None, 0, "NVIDIA L4"),
    "L40S": Chip("NVIDIA L40S", 48e9, 32e9, None, 0, "NVIDIA L40S"),
    "RTX4090": Chip("NVIDIA GeForce RTX 4090", 24e9, 32e9, None, 0, "NVIDIA Ada whitepaper"),
    "RTX5090": Chip(
        "NVIDIA GeForce RTX 5090", 32e9, 64e9, None, 0, "NVIDIA RTX Blackwell whitepaper"
    ),
    "RTX6000Ada": Chip(
        "NVIDIA RTX 6000 Ada Generation", 48e9, 32e9, None, 0, "NVIDIA RTX PRO Blackwell whitepaper"
    ),
    "MI300X": Chip("AMD Instinct MI300X", 192e9, 448e9, None, 0, "AMD Instinct MI300X data sheet"),
}


def peak_flops(dtype: str, devices: Sequence[Any] | None = None) -> Peak:
    """Returns the peak of `devices` together (default: one) for matmuls of operands of `dtype`.

    Args:
        dtype: name of the operands' dtype, such as "bfloat16".
        devices: JAX devices of one kind. Those of a CPU share its cores, so the cores of each
            process are counted once.
    """
    devices = jax.local_devices()[:1] if devices is None else list(devices)
    if devices[0].platform == "cpu":
        flops = measured(dtype) * len({device.process_index for device in devices})
        return Peak(flops, f"measured matmul of {SIZE} x {SIZE} {dtype} matrices")
    peak = datasheet(devices[0].device_kind, dtype)
    return peak if peak.flops is None else Peak(peak.flops * len(devices), peak.source)


def datasheet(kind: str, dtype: str) -> Peak:
    """Returns the published peak of one device of a `device_kind`; `flops` is None if unknown."""
    column = {"bfloat16": 0, "float16": 0, "float32": 1}.get(dtype)
    whole = "MIG" not in kind  # a slice of a GPU has only a part of its peak
    for pattern, *figures, page in DATASHEETS:
        if whole and column is not None and re.search(pattern, kind):
            tf32 = ", TF32" if column == 1 and not page.startswith("Google") else ""
            return Peak(figures[column], page + tf32)
    return Peak(None, f"no published peak for {dtype} on {kind!r} is listed")


@cache
def measured(dtype: str) -> float:
    """Returns the best FLOP/s of a few matmuls on this process's CPU.

    Takes under a second; the result is cached.
    """

    def product(a, b):
        # Sums in float32, which is also the fastest way XLA has for 16-bit floats on a CPU.
        return jnp.matmul(a, b, preferred_element_type=jnp.float32)

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        a = jnp.ones((SIZE, SIZE), dtype)
        compiled = jax.jit(product).lower(a, a).compile()  # not timed
        best, begun = float("inf"), time.perf_counter()
        for _ in range(REPEATS):
            since = time.perf_counter()
            jax.block_until_ready(compiled(a, a))
            best = min(best, time.perf_counter() - since)
            if time.perf_counter() - begun > PATIENCE:
                break
    return 2 * SIZE**3 / best
