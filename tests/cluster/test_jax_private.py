"""The parts of JAX that are not public: there in this release, and named where they are missing."""

import ast
from functools import partial
from importlib import import_module

import jax
import pytest
from test_imports import ROOT

from mdlm.cluster import jax_private
from mdlm.cluster.jax_private import CLUSTERS, KNOWN, PRIVATE
from mdlm.errors import InputError

USES = [(module, name) for module, names in PRIVATE.items() for name in names]


@pytest.mark.parametrize(("module", "name"), USES)
def test_this_release_has_what_is_used(module, name):
    try:
        assert hasattr(import_module(module), name)
    except (ImportError, AssertionError):
        pytest.fail(
            f"JAX {jax.__version__} has no {module}.{name}. It was there in {', '.join(KNOWN)}."
            " Find where it is now, change mdlm/cluster/jax_private.py, and add the release"
        )


def test_readers_of_environments_answer_what_is_asked():
    for name in CLUSTERS:
        found = jax_private.cluster(name)
        for method in ("get_coordinator_address", "get_process_count", "get_process_id"):
            assert callable(getattr(found, method)), (name, method)
        assert found.is_env_present() is False, name
    assert jax_private.is_cloud_tpu() is False
    assert jax_private.coordination_client() is None  # nothing is initialized here


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.delattr("jax._src.clusters.SlurmCluster")
    with pytest.raises(InputError, match=r"has no jax._src.clusters.SlurmCluster.*jax==0.10"):
        jax_private.cluster("SlurmCluster")
    monkeypatch.setitem(PRIVATE, "jax._src.moved_away", ("anything",))
    with pytest.raises(InputError, match=r"has no jax._src.moved_away.anything"):
        jax_private._private("jax._src.moved_away", "anything")


def test_attention_of_cudnn_is_traced_without_cudnn(monkeypatch):
    x = jax.ShapeDtypeStruct((1, 128, 2, 64), "bfloat16")

    def traced():
        attend = partial(jax.nn.dot_product_attention, implementation="cudnn")
        return str(jax.make_jaxpr(lambda x: attend(x, x, x))(x))

    module = import_module(jax_private.CUDNN)
    before = module.check_cudnn_version
    with jax_private.cudnn_assumed():
        assert "dot_product_attention_fwd" in traced()
        assert module.check_cudnn_version is not before
    assert module.check_cudnn_version is before
    monkeypatch.delattr(f"{jax_private.CUDNN}.{jax_private.CUDNN_CHECK}")
    with (
        pytest.raises(InputError, match=r"check_cudnn_version, which is needed to plan for GPUs"),
        jax_private.cudnn_assumed(),
    ):
        pass


def test_no_other_file_of_the_package_uses_what_is_private():
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = node.value.split()
            if any(name.startswith(("jax._src", "jaxlib.")) for name in names):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"cluster/jax_private.py"}
