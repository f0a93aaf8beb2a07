"""The training step on every shape of the mesh: one device's numbers, and what is sent for them.

Networks are thin, so `SMALL` is lowered for all that is ever split to be split. The parameters
start at random values, since zeros would hide the gradients behind them, and Adam's divisor is
kept from 0, where rounding alone would decide the direction of an update.
"""

import functools
import itertools
import math
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh

from mdlm.data.packing import Wrap
from mdlm.errors import InputError
from mdlm.experiment.model import Model
from mdlm.models.bert import Bert
from mdlm.models.block import BlockDiT
from mdlm.models.causal import CausalTransformer
from mdlm.models.decoder import Decoder
from mdlm.models.dit import DiT
from mdlm.models.experts import Experts
from mdlm.models.gidd import ScaledTransformer
from mdlm.models.md4 import MD4Transformer
from mdlm.models.modern_bert import ModernBert
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.objectives.block import BlockNelbo
from mdlm.optim import AdamW
from mdlm.parallel import sharding
from mdlm.parallel.mesh import AXES, MeshShape, put_on_mesh
from mdlm.profiling.collectives import collectives
from mdlm.samplers.blocks import BlockByBlock
from mdlm.samplers.left_to_right import LeftToRight
from mdlm.times import balanced_order
from mdlm.train.batches import in_training
from mdlm.train.step import abstract_state, compile_step, init
from mdlm.types import Batch, Vocab

VOCAB = Vocab(size=61, mask_id=60)
ROWS, LENGTH = 16, 16
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""How programs are compiled here: they are run twice."""
Shape = tuple[int, ...]

SIZES: dict = dict(width=32, depth=2, heads=8)
NETWORKS = {
    "dit": DiT(**SIZES, cond_dim=8, dropout=0.1, qk_norm=True),
    "gated": DiT(**SIZES, cond_dim=8, mlp="swiglu", norm="rms", self_conditioning=True),
    "blocks": BlockDiT(**SIZES, cond_dim=8, block_size=4),
    "causal": CausalTransformer(**SIZES),
    "md4": MD4Transformer(**SIZES, cond_dim=8, embed_width=16),
    "gidd": ScaledTransformer(**SIZES),
    "bert": Bert(**SIZES, positions=LENGTH, dropout=0.1),
    "decoder": Decoder(
        **SIZES,
        kv_heads=2,
        head_width=6,
        qk_norm="separate",
        qkv_bias=True,
        tied=True,
        logit_cap=5.0,
        attends="blocks",
        block_size=4,
        shift=True,
    ),
    "experts": Decoder(
        **SIZES,
        kv_heads=4,
        hidden=48,
        experts=Experts(count=8, chosen=2, groups=4, kept_groups=2, hidden=16),
    ),
    "modern": ModernBert(**{**SIZES, "depth": 4}, hidden=48, window=6),
}
PARTS: dict = {
    "dit": dict(time_condition="sigma"),
    "blocks": dict(
        objective=BlockNelbo(block_size=4), sampler=BlockByBlock(block_size=4), time_condition="t"
    ),
    "decoder": dict(objective=BlockNelbo(block_size=4), sampler=BlockByBlock(block_size=4)),
    "causal": dict(objective=Autoregressive(), sampler=LeftToRight()),
    "md4": dict(time_condition="t"),
}
ADAM = AdamW(learning_rate=1e-2, warmup_steps=0, eps=1e-2)


def shapes_of(devices: int) -> list[Shape]:
    """All sizes of the four axes whose product is so many devices."""
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    return [s for s in itertools.product(sizes, repeat=4) if math.prod(s) == devices]


def name_of(value) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def experiment_of(name: str, accumulate: int = 1, optimizer=ADAM):
    base = tiny.experiment(
        Path("nowhere.txt"), network=NETWORKS[name], optimizer=optimizer, **PARTS.get(name, {})
    )
    return replace(
        base,
        data=replace(base.data, packing=Wrap(length=LENGTH)),
        train=replace(base.train, batch_size=ROWS, accumulate=accumulate),
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


@functools.cache
def compiled(experiment, shape: Shape):
    """The step, the shardings of its state, and the mesh."""
    model = Model(experiment, VOCAB)
    sizes = dict(zip(AXES, shape, strict=True))
    mesh = MeshShape(**sizes).build(jax.devices()[: math.prod(shape)])
    tx = experiment.optimizer.build(experiment.train.steps)
    state = abstract_state(model, tx, mesh)
    step = compile_step(model, tx, mesh).lower(state, Batch(**put_on_mesh(mesh, batch(0))))
    sharding = jax.tree.map(lambda a: a.sharding, state)
    return step.compile(compiler_options=QUICKLY), sharding, mesh


@functools.cache
def beginning(experiment):
    """A state with random parameters, on the host."""
    tx = experiment.optimizer.build(experiment.train.steps)
    model = Model(experiment, VOCAB)
    state = jax.device_get(jax.jit(lambda: init(model, tx, jax.random.key(0)))())
    rng = np.random.default_rng(0)
    state["params"] = jax.tree.map(
        lambda a: a + 0.1 * rng.standard_normal(a.shape).astype(np.float32), state["params"]
    )
    return state


def trained(experiment, shape: Shape):
    """The state after two steps on the first devices, and the metrics of each."""
    step, sharding, mesh = compiled(experiment, shape)
    state = jax.device_put(beginning(experiment), sharding)
    metrics = []
    for i in range(2):
        state, values = step(state, Batch(**put_on_mesh(mesh, batch(i))))
        metrics.append(jax.device_get(values))
    return state, metrics


@functools.cache
def alone(experiment):
    return jax.device_get(trained(experiment, (1, 1, 1, 1)))


@pytest.fixture(autouse=True)
def everything_is_split(monkeypatch):
    monkeypatch.setattr(sharding, "SMALL", 64)


def check(experiment, shape: Shape) -> None:
    """Sums in another order differ by some 1e-7 of what is added up; after two steps, through
    Adam, by less than 1e-4 of a learning rate of 1e-2."""
    state, metrics = trained(experiment, shape)
    expected, before = alone(experiment)
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


@pytest.mark.slow
@pytest.mark.parametrize("shape", [s for n in (8, 4, 2) for s in shapes_of(n)], ids=name_of)
def test_every_shape(shape):
    experiment = experiment_of("dit")
    check(experiment, shape)
    # Every kernel of the blocks lies in as many parts as there are devices to split it over.
    state = jax.eval_shape(lambda: beginning(experiment))
    sharding = compiled(experiment, shape)[1]
    for tree in (state["params"], state["ema"]):
        blocks, lies = (x["network"]["blocks"] for x in (tree, sharding["params"]))
        for name in ("qkv", "attn_out", "modulation"):
            kernel = blocks[name]["kernel"].shape
            part = lies[name]["kernel"].shard_shape(kernel)
            assert math.prod(kernel) == math.prod(part) * math.prod(shape[1:]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(1, 2, 2, 2), (2, 1, 1, 4), (1, 1, 8, 1), (1, 8, 1, 1)], ids=name_of
)
@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"dit"}))
def test_every_network(name, shape):
    check(experiment_of(name), shape)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2, 2, 2), (2, 2, 1, 2)], ids=name_of)
def test_micro_batches(shape):
    check(experiment_of("md4", accumulate=2), shape)


RELEASE = "0.10.2"
SENT: dict[str, dict[str, tuple[int, int]]] = {
    "8x1x1x1": {
        "all-reduce": (1, 140_884),
    },
    "1x8x1x1": {
        "all-gather": (13, 116_096),
        "all-reduce": (10, 116_402),
        "all-to-all": (8, 15_360),
        "reduce-scatter": (1, 7_808),
    },
    "2x4x1x1": {
        "all-gather": (13, 115_328),
        "all-reduce": (7, 146_066),
        "all-to-all": (8, 15_360),
        "reduce-scatter": (1, 7_808),
    },
    "1x1x1x8": {
        "all-gather": (17, 309_632),
        "all-reduce": (15, 428_450),
        "all-to-all": (14, 14_336),
        "reduce-scatter": (4, 36_480),
    },
    "1x2x2x2": {
        "all-gather": (33, 155_520),
        "all-reduce": (30, 181_047),
        "all-to-all": (40, 124_928),
        "reduce-scatter": (7, 29_312),
    },
    "1x1x8x1": {
        "all-gather": (16, 144_768),
        "all-reduce": (11, 134_818),
        "all-to-all": (18, 73_728),
        "reduce-scatter": (4, 36_480),
    },
}
"""With jax `RELEASE`, on CPUs: the collectives of a step, how many and their bytes, by mesh. There,
XLA makes no reduce-scatter of a sum of which a part is kept; those that are here were asked for."""


@pytest.mark.slow
@pytest.mark.parametrize("shape", SENT)
def test_what_is_sent(shape):
    if jax.__version__ != RELEASE:
        pytest.skip(f"counted with jax {RELEASE}; this is {jax.__version__}")
    sizes = tuple(map(int, shape.split("x")))
    text = compiled(experiment_of("dit"), sizes)[0].as_text()
    found = {kind: (t.count, t.bytes) for kind, t in collectives(text).items()}
    assert found == SENT[shape]


@pytest.mark.parametrize(
    ("shape", "changes", "said"),
    [
        (
            (1, 1, 4, 4),
            {},
            "network.heads=8: must be a multiple of mesh.sequence x mesh.tensor = 4 x 4",
        ),
        ((1, 1, 3, 1), {}, "length=16: must be a multiple of mesh.sequence=3"),
        (
            (1, 1, 1, 3),
            dict(mlp="swiglu", width=24, heads=6),
            "mlp hidden width 64: must be a multiple of mesh.tensor=3",
        ),
    ],
)
def test_refused(shape, changes, said):
    """Before anything is compiled, and from wherever a state is made."""
    experiment = experiment_of("dit")
    network = replace(experiment.network, **changes)
    mesh = AbstractMesh(shape, AXES)
    tx = experiment.optimizer.build(1)
    with pytest.raises(InputError, match=said):
        abstract_state(Model(replace(experiment, network=network), VOCAB), tx, mesh)
