"""Settings that every test runs under, and where reference material is found."""

import os
from collections import defaultdict

# Before JAX starts: eight devices, so that sharding is always exercised on a laptop too.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from parts import part_of  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

# Programs compiled once are compiled once: tests, and the processes they start, share them.
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ["MDLM_CACHE"] = str(CACHE)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_addoption(parser):
    parser.addoption(
        "--part",
        metavar="K/N",
        help="K-th of N parts, see tests/parts.py; 0/1 are all, compiled quickly",
    )


@pytest.fixture(autouse=True)
def quick_compilation(request, monkeypatch):
    """In a part, LLVM leaves its optimizations out, here and in processes that tests start.

    Most of the time of a part is compilation. All tests (`make test-all`) keep them.
    """
    is_part = request.config.getoption("--part") is not None
    quick = is_part and request.node.get_closest_marker("optimized") is None
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(quick)))
    jax.config.update("jax_disable_most_optimizations", quick)


def pytest_collection_modifyitems(config, items):
    given = config.getoption("--part")
    if given is None:
        return
    k, _, n = given.partition("/")
    if not (k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise pytest.UsageError(f"--part {given}: expected K/N with 0 <= K < N")
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    first: dict[str, str] = {}
    for test in cases:
        first.setdefault(test.partition("::")[0], test)
    chosen = {
        item
        for test, own in cases.items()
        for item in part_of(own, int(k), int(n), first[test.partition("::")[0]] == test)
    }
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set (see CONTRIBUTING.md)")
    return Path(value)


@pytest.fixture(scope="session")
def golden():
    """Opens a file of reference values: `golden("mdlm_dit.npz")`."""
    folder = _folder("MDLM_GOLDEN")

    def load(name: str):
        path = folder / name
        if name.endswith(".npz"):
            return np.load(path)
        if name.endswith(".safetensors"):
            from safetensors.numpy import load_file

            return load_file(path)
        import json

        return json.loads(path.read_text())

    return load


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return _folder("MDLM_GOLDEN")


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of benchmark texts."""
    return _folder("MDLM_CORPORA")


@pytest.fixture
def key():
    return jax.random.key(0)
