"""Networks and steps keep to the names by which optimizers, plans and profiles find things."""

import ast

import jax
import pytest
from test_imports import ROOT

from mdlm import models
from mdlm.models import BlockDiT, CausalTransformer, DiT, MD4Transformer, ScaledTransformer
from mdlm.models.network import shapes
from mdlm.names import HEAD, KERNEL, MODULATION, PARTS, STACK
from mdlm.optim import decayed, hidden

SIZES = dict(width=32, depth=3, heads=2)
NETWORKS = [
    DiT(**SIZES, cond_dim=16),
    BlockDiT(**SIZES, cond_dim=16, block_size=4),
    CausalTransformer(**SIZES),
    MD4Transformer(**SIZES),
    ScaledTransformer(**SIZES),
]


def leaves(tree) -> dict[tuple[str, ...], jax.ShapeDtypeStruct | str | bool]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(part.key for part in path): leaf for path, leaf in found}


def test_every_network_is_looked_at():
    assert {type(n).__name__ for n in NETWORKS} == set(models.__all__) - {"Network", "Experts"}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: type(n).__name__)
def test_networks_name_their_arrays(network):
    params = shapes(network, 11)
    stacked = {path: leaf for path, leaf in leaves(params).items() if STACK in path}
    assert stacked and all(path[0] == STACK for path in stacked)
    assert all(leaf.shape[0] == network.depth for leaf in stacked.values())
    assert any(HEAD in path for path in leaves(params))
    # Muon has every matrix of the stack but the modulation's, and nothing else.
    muon = {path for path, label in leaves(hidden(params)).items() if label == "muon"}
    matrices = {path for path in stacked if path[-1] == KERNEL and MODULATION not in path}
    assert muon == matrices and len(muon) >= 4
    assert all(stacked[path].ndim == 3 for path in muon)
    # Weight decay acts on these, and on no vector of a layer.
    assert all(leaves(decayed(params))[path] == (leaf.ndim == 3) for path, leaf in stacked.items())


def test_scopes_are_the_parts_of_a_profile():
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "named_scope":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{path}: a scope has a literal name"
                found.add(name.value)
    assert found == set(PARTS)
