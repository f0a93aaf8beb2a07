"""The TPU kernel compiled, forward and backward, for a slice of TPUs that is not here.

`libtpu` holds the compiler, Mosaic included, and works without a TPU; install it beside jax to
run this (`pip install libtpu`). In a process of its own, because the settings must precede jax.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

COMPILE = """
import json

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from mdlm.parallel.mesh import MeshShape, by_rows
from mdlm.models.attention.dispatch import attention, choose
from mdlm.models.attention.mask import AttentionMask, Halves

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
mesh = MeshShape(data=2, fsdp=2).build(topology.devices)
rows = by_rows(mesh)
BATCH, LAYERS = 8, 3


def loss(q, k, v, mask):
    body = jax.checkpoint(lambda x, _: (attention(x, k, v, mask, "auto"), None))
    return jax.lax.scan(body, q, None, length=LAYERS)[0].astype(jnp.float32).sum()


def compiled(length, heads, width, dtype, rule, masked):
    ids = jax.ShapeDtypeStruct((BATCH, length), jnp.int32, sharding=rows)
    valid = jax.ShapeDtypeStruct((BATCH, length), bool, sharding=rows)
    x = jax.ShapeDtypeStruct((BATCH, length, heads, width), dtype, sharding=rows)
    parts = dict(is_valid=valid, segment_ids=ids) if masked else {}
    halves = Halves(length // 2, rule) if isinstance(rule, int) else None
    mask = AttentionMask(ahead=0 if rule == "causal" else None, halves=halves, **parts)
    with jax.set_mesh(mesh):
        chosen = choose(x, mask, "auto")
        program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, mask).compile()
    text = program.as_text()
    return dict(
        chosen=chosen,
        kernels=text.count("tpu_custom_call"),
        gathers=text.count("all-gather"),
        temp_bytes=program.memory_analysis().temp_size_in_bytes,
        scores_bytes=BATCH // 4 * heads * length * length * 4,
    )


CASES = {cases}
print(json.dumps([compiled(*case) for case in CASES]))
"""

CASES = [
    # length, heads, head width, dtype, "causal" or a block size, padding and segments
    (1024, 12, 64, "bfloat16", None, False),
    (1024, 12, 64, "bfloat16", "causal", True),
    (1000, 3, 80, "float32", "causal", False),
    (1152, 2, 128, "bfloat16", None, True),
    (2048, 12, 64, "bfloat16", 16, False),
    (1200, 2, 64, "bfloat16", 3, True),
]


def test_compiles_for_a_slice():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: nothing is compiled for TPUs")
    settings = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE.replace("{cases}", repr(CASES))],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for case, found in zip(CASES, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert found["chosen"] == "splash", case
        # Forward, its recomputation, and the two of the backward pass.
        assert found["kernels"] >= 3, case
        assert found["gathers"] == 0, case
        assert found["temp_bytes"] < found["scores_bytes"] / 2, case
