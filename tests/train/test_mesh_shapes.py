"""The training step on every shape of the mesh: one device's numbers, and what is sent for them.

Networks are thin, so `SMALL` is lowered for all that is ever split to be split. The parameters
start at random values, since zeros would hide the gradients behind them, and Adam's divisor is
kept from 0, where rounding alone would decide the direction of an update.
"""

import functools
import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mdlm import layout
from mdlm.collectives import collectives
from mdlm.data.packing import Wrap
from mdlm.experiment import Model
from mdlm.mesh import MeshShape, place
from mdlm.models.block import BlockDiT
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.gidd import ScaledTransformer
from mdlm.models.md4 import MD4Transformer
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.objectives.block import BlockNelbo
from mdlm.optim import AdamW, Muon
from mdlm.samplers.blocks import BlockByBlock
from mdlm.samplers.left_to_right import LeftToRight
from mdlm.times import balanced_order
from mdlm.train.loop import in_training
from mdlm.train.step import compile_step, create_state
from mdlm.types import Batch, Vocab

VOCAB = Vocab(size=61, mask_id=60)
ROWS, LENGTH = 16, 16
SIZES = dict(width=32, depth=2, heads=8)
NETWORKS = {
    "dit": DiT(**SIZES, cond_dim=8, dropout=0.1, qk_norm=True, labels=0),
    "gated": DiT(**SIZES, cond_dim=8, mlp="swiglu", norm="rms", self_conditioning=True),
    "blocks": BlockDiT(**SIZES, cond_dim=8, block_size=4),
    "causal": CausalTransformer(**SIZES),
    "md4": MD4Transformer(**SIZES, cond_dim=8, embed_width=16),
    "gidd": ScaledTransformer(**SIZES),
}
PARTS = {
    "blocks": dict(
        objective=BlockNelbo(block_size=4), sampler=BlockByBlock(block_size=4), time_condition="t"
    ),
    "causal": dict(objective=Autoregressive(), sampler=LeftToRight()),
    "md4": dict(time_condition="t"),
    "dit": dict(time_condition="sigma"),
}


def shapes_of(devices: int) -> list[tuple[int, ...]]:
    """All sizes of the four axes whose product is so many devices."""
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    return [s for s in itertools.product(sizes, repeat=4) if math.prod(s) == devices]


def name_of(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def experiment_of(name: str, accumulate: int = 1, **changes):
    base = tiny.experiment(
        "nowhere.txt",
        network=NETWORKS[name],
        optimizer=AdamW(learning_rate=1e-2, warmup_steps=0, eps=1e-2),
        **PARTS.get(name, {}),
    )
    return replace(
        base,
        data=replace(base.data, packing=Wrap(length=LENGTH)),
        train=replace(base.train, batch_size=ROWS, accumulate=accumulate),
        **changes,
    )


def batch(step: int) -> dict[str, np.ndarray]:
    """Rows of different lengths, in training order."""
    rng = np.random.default_rng(step)
    inside = np.arange(LENGTH)[None] < rng.integers(4, LENGTH + 1, ROWS)[:, None]
    rows = {
        "tokens": rng.integers(0, 60, (ROWS, LENGTH)).astype(np.int32),
        "loss_mask": inside,
        "is_valid": inside,
        "row": np.arange(ROWS, dtype=np.int32),
        "rows": np.asarray(ROWS, np.int32),
    }
    return in_training(rows, balanced_order(ROWS))


def trained(experiment, shape: tuple[int, ...]):
    """The state after two steps on the first devices, and the metrics of each."""
    model = Model(experiment, VOCAB)
    mesh = MeshShape(**dict(zip(layout_axes(), shape, strict=True))).build(
        jax.devices()[: math.prod(shape)]
    )
    tx = experiment.optimizer.build(experiment.train.steps)
    state = create_state(model, tx, mesh, jax.random.key(0))
    paths = jax.tree_util.tree_leaves_with_path(state["params"])
    started = {jax.tree_util.keystr(path): i for i, (path, _) in enumerate(paths)}

    def random(path, a):
        key = jax.random.fold_in(jax.random.key(1), started[jax.tree_util.keystr(path)])
        return jax.device_put(a + 0.1 * jax.random.normal(key, a.shape), a.sharding)

    state["params"] = jax.tree_util.tree_map_with_path(random, state["params"])
    step = compile_step(model, tx, mesh)
    metrics = []
    for i in range(2):
        state, values = step(state, Batch(**place(mesh, batch(i))))
        metrics.append(jax.device_get(values))
    return state, metrics


def layout_axes():
    from mdlm.mesh import AXES

    return AXES


@pytest.fixture(autouse=True)
def everything_is_split(monkeypatch):
    monkeypatch.setattr(layout, "SMALL", 64)


@functools.cache
def alone(name: str, accumulate: int):
    return jax.device_get(trained(experiment_of(name, accumulate), (1, 1, 1, 1)))


def check(name: str, shape: tuple[int, ...], accumulate: int = 1) -> None:
    """Sums in another order differ by some 1e-7 of what is added up; after two steps, through
    Adam, by less than 1e-4 of a learning rate of 1e-2."""
    state, metrics = trained(experiment_of(name, accumulate), shape)
    expected, before = alone(name, accumulate)
    for here, there in zip(metrics, before, strict=True):
        for figure in ("loss", "nelbo", "grad_norm", "update_norm"):
            assert here[figure] == pytest.approx(there[figure], rel=2e-6), figure
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: np.testing.assert_allclose(
            a, b, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path)
        ),
        state,
        expected,
    )
    if math.prod(shape[1:]) > 1:
        kernel = state["opt_state"][1][0].mu["network"]["blocks"]["qkv" if name != "gidd" else "q"]["kernel"]
        assert kernel.sharding.num_devices == math.prod(shape)
        assert kernel.addressable_shards[0].data.size * math.prod(shape[1:]) == kernel.size


@pytest.mark.parametrize("shape", [s for n in (8, 4, 2) for s in shapes_of(n)], ids=name_of)
def test_one_device_on_every_shape(shape):
    check("dit", shape)
