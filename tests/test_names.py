"""Networks and steps keep to the names by which optimizers, plans and profiles find things."""

import ast

import jax
import pytest
from test_imports import ROOT

from mdlm import models
from mdlm.models import (
    Bert,
    BlockDiT,
    CausalTransformer,
    Decoder,
    DiT,
    MD4Transformer,
    ModernBert,
    ScaledTransformer,
)
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
    Decoder(**SIZES),
    Bert(**SIZES),
    ModernBert(**SIZES),
]


def leaves(tree) -> dict[tuple[str, ...], jax.ShapeDtypeStruct | str | bool]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(part.key for part in path): leaf for path, leaf in found}


def test_every_network_is_looked_at():
    parts = {"Network", "Experts", "LinearScaling", "Llama3Scaling", "Head", "Pooled", "PerToken"}
    assert {type(n).__name__ for n in NETWORKS} == set(models.__all__) - parts


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: type(n).__name__)
def test_networks_name_their_arrays(network):
    params = shapes(network, 11)
    stacked = {path: leaf for path, leaf in leaves(params).items() if STACK in path}
    assert stacked and all(path[0] == STACK for path in stacked)
    # The first block of ModernBERT, which has one norm less, is a stack of its own.
    is_first = lambda path: path[1] == "first"
    apart = sum({1 for path in stacked if is_first(path)})
    deep = {path: 1 if is_first(path) else network.depth - apart for path in stacked}
    assert {path: leaf.shape[0] for path, leaf in stacked.items()} == deep
    assert any(HEAD in path for path in leaves(params)) or getattr(network, "tied", False)
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
