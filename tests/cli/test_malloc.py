"""Memory that is freed is there for the next call."""

import platform
import subprocess
import sys

import pytest

from mdlm.cli import malloc

PROGRAM = """
import resource, sys
from mdlm.cli.malloc import keep_freed
if sys.argv[1] == "keep":
    assert keep_freed()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.sin(jnp.outer(x, x)) @ x)  # 64 MiB that are freed again
x = jnp.ones(4096)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
# Small blocks settle in the holes that large ones leave, until there are holes enough.
for i in range(50):
    if i == 40:
        before = faults()
    step(x).block_until_ready()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_step_faults_no_pages_once_memory_is_kept():
    def faults(how):
        out = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        return int(out.stdout)

    assert faults("keep") < 0.1 * faults("default")


def test_only_for_the_cpu(tmp_path, monkeypatch):
    gpu = tmp_path / "nvidia0"
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert not malloc.has_accelerator([str(gpu)])
    gpu.touch()
    assert malloc.has_accelerator([str(gpu)])
    monkeypatch.setattr(malloc, "has_accelerator", lambda: True)
    assert not malloc.keep_freed()
    monkeypatch.undo()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not malloc.has_accelerator([str(gpu)])
