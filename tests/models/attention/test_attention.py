"""Every implementation of attention against one computation in float64 NumPy.

The same test for all of them: forward and gradients, under every mask, padding giving exactly 0.
The TPU kernel runs interpreted here and is compiled in `test_attention_tpu.py`. cuDNN's kernel
needs a GPU; what this package does around it (sorting padding away, segments) is tested everywhere
with JAX's own arithmetic in its place.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from mdlm.errors import InputError
from mdlm.models.attention import (
    block_diffusion as attention_halves,
)
from mdlm.models.attention import (
    cudnn as attention_cudnn,
)
from mdlm.models.attention import (
    splash as attention_splash,
)
from mdlm.models.attention import (
    xla as attention_xla,
)
from mdlm.models.attention.dispatch import attention, choose, platform
from mdlm.models.attention.mask import AttentionMask, Halves
from mdlm.parallel.mesh import AXES

B, L, H, D = 3, 128, 2, 16


def on_gpu():
    if jax.default_backend() != "gpu":
        pytest.skip("no GPU here: cuDNN's own kernel is not tested")
    return functools.partial(attention, implementation="cudnn")


def cudnn_with_jax_arithmetic(monkeypatch):
    plain = jax.nn.dot_product_attention

    def stand_in(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return plain(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    return attention_cudnn.attend


IMPLEMENTATIONS = [
    "xla",
    "splash",
    "cudnn, JAX's arithmetic",
    pytest.param("cudnn", marks=pytest.mark.gpu),
]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    """(function of q, k, v, mask; the dtype it takes)"""
    if request.param == "cudnn":
        return on_gpu(), jnp.bfloat16
    if request.param == "xla":
        return functools.partial(attention, implementation="xla"), jnp.float32
    if request.param == "splash":
        return functools.partial(attention_splash.attend, interpret=True), jnp.float32
    return cudnn_with_jax_arithmetic(monkeypatch), jnp.float32


def padding(length):
    """Both ends; scattered; a row of nothing else."""
    is_valid = np.ones((B, length), bool)
    is_valid[0, :3] = is_valid[0, length - 20 :] = False
    is_valid[1] = np.arange(length) % 5 > 0
    is_valid[2] = False
    return is_valid


def segments(length):
    """Long and short ones; one of them apart from itself; ids that start anywhere."""
    place = np.arange(length)
    return np.stack([place // 50, (place // 7) % 3, 9 - place // 100])


AHEAD = {"causal": 0, "some ahead": 3}
MASKS = {
    "full": (None, False, False),
    "causal": ("causal", False, False),
    "some ahead": ("some ahead", False, False),
    "some ahead padding": ("some ahead", True, False),
    "padding": (None, True, False),
    "segments": (None, False, True),
    "causal padding": ("causal", True, False),
    "causal segments": ("causal", False, True),
    "padding segments": (None, True, True),
    "all": ("causal", True, True),
    "blocks of 8": (8, False, False),
    "blocks of 1": (1, False, False),
    "one block": (64, False, False),
    "blocks padding": (16, True, False),
    "blocks segments": (8, False, True),
    "blocks padding segments": (16, True, True),
}


def described(name, length):
    rule, padded, packed = MASKS[name]
    return AttentionMask(
        ahead=AHEAD.get(rule),
        halves=Halves(length // 2, rule) if isinstance(rule, int) else None,
        is_valid=jnp.asarray(padding(length)) if padded else None,
        segment_ids=jnp.asarray(segments(length)) if packed else None,
    )


def may_see(name, length):
    """The same, pair by pair: `[b l l]`."""
    rule, padded, packed = MASKS[name]
    seen = np.ones((B, length, length), bool)
    if rule in AHEAD:
        seen &= np.tri(length, k=AHEAD[rule], dtype=bool)
    if isinstance(rule, int):
        seen &= in_blocks(length // 2, rule)
    if padded:
        seen &= padding(length)[:, :, None] & padding(length)[:, None, :]
    if packed:
        seen &= segments(length)[:, :, None] == segments(length)[:, None, :]
    return seen


def in_blocks(length, size):
    """Block by block: what the rows [noised ; clean] of block diffusion may see."""
    seen = np.zeros((2 * length, 2 * length), bool)
    for start in range(0, length, size):
        noised, clean = slice(start, start + size), slice(length + start, length + start + size)
        seen[noised, noised] = True
        seen[noised, length : length + start] = True
        seen[clean, length : length + start + size] = True
    return seen


def expected(q, k, v, g, seen):
    """Output, and the gradients of (output * g).sum(), in float64, query by query."""
    q, k, v, g = (np.asarray(a, np.float64) for a in (q, k, v, g))
    out, dq, dk, dv = (np.zeros(q.shape) for _ in range(4))
    for b, i, h in np.ndindex(*q.shape[:3]):
        at = np.flatnonzero(seen[b, i])
        if not len(at):
            continue
        scores = k[b, at, h] @ q[b, i, h] / np.sqrt(q.shape[3])
        p = np.exp(scores - scores.max())
        p /= p.sum()
        out[b, i, h] = p @ v[b, at, h]
        dp = v[b, at, h] @ g[b, i, h]
        ds = p * (dp - p @ dp) / np.sqrt(q.shape[3])
        dq[b, i, h] = ds @ k[b, at, h]
        dk[b, at, h] += ds[:, None] * q[b, i, h]
        dv[b, at, h] += p[:, None] * g[b, i, h]
    return out, dq, dk, dv


def inputs(length, dtype, heads=H, width=D, batch=B):
    rng = np.random.default_rng(0)
    draw = lambda: jnp.asarray(2 * rng.normal(size=(batch, length, heads, width)), dtype)
    return draw(), draw(), draw(), draw()


def with_gradients(attend, mask):
    """(q, k, v, g) -> output and the three gradients."""

    def run(q, k, v, g):
        out, pull = jax.vjp(lambda *x: attend(*x, mask), q, k, v)
        return out, *pull(g)

    return run


def check(attend, dtype, name, length, **sizes):
    arrays = inputs(length, dtype, **sizes)
    if MASKS[name][1]:
        # What stands at padding must not matter, however large, in the gradients either.
        wild = jnp.asarray(~padding(length))[:, :, None, None] * jnp.asarray(1e3, dtype)
        arrays = tuple(x + wild for x in arrays)
    got = jax.jit(with_gradients(attend, described(name, length)))(*arrays)
    want = expected(*arrays, may_see(name, length))
    tolerance = 4e-2 if dtype == jnp.bfloat16 else 2e-5
    for what, mine, theirs in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        assert mine.dtype == dtype, what
        if MASKS[name][1]:
            assert (mine[~padding(length)] == 0).all(), what
        scale = np.abs(theirs).max() + 1e-9
        error = np.abs(np.asarray(mine, np.float64) - theirs).max() / scale
        assert error < tolerance, f"{what}: {error:.1e} of the largest entry"


@pytest.mark.parametrize("name", MASKS)
def test_equals_numpy(implementation, name, request):
    attend, dtype = implementation
    if "cudnn" in request.node.callspec.params["implementation"] and "block" in name:
        pytest.skip("cuDNN has no such mask, and says so")
    check(attend, dtype, name, L)


@pytest.mark.parametrize(
    "name, length",
    [("full", 150), ("causal", 150), ("padding segments", 150), ("blocks segments", 144)],
)
def test_any_length_and_width(implementation, name, length, request):
    attend, dtype = implementation
    if "cudnn" in request.node.callspec.params["implementation"] and "block" in name:
        pytest.skip("cuDNN has no such mask, and says so")
    if dtype == jnp.bfloat16 and "segments" in name:
        pytest.skip("cuDNN takes segments at lengths that are multiples of 128 only")
    check(attend, dtype, name, length, heads=1, width=24)


@pytest.mark.parametrize("name", ["full", "all", "blocks of 8", "blocks padding segments"])
@pytest.mark.parametrize("dtype, heads", [(jnp.float32, 4), (jnp.bfloat16, 3)])
def test_xla_in_halves_and_in_bfloat16(name, dtype, heads):
    length = 96 if "block" in name else 40
    check(functools.partial(attention, implementation="xla"), dtype, name, length, heads=heads)


def test_rows_noised_and_clean_need_no_square_of_scores():
    """The split form holds two thirds of what a dense mask does, and gives the same."""
    q, k, v, g = inputs(1024, jnp.float32, batch=1)
    mask = AttentionMask(halves=Halves(512, 16))
    split, dense = (
        jax.jit(with_gradients(attend, mask)).lower(q, k, v, g).compile()
        for attend in (attention_halves.attend, attention_xla.attend)
    )
    for one, other in zip(split(q, k, v, g), dense(q, k, v, g), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)
    bytes_of = lambda program: program.memory_analysis().temp_size_in_bytes
    assert bytes_of(split) < 0.67 * bytes_of(dense)


def test_under_scan_checkpoint_and_a_mesh(implementation):
    """As the network calls it: layer after layer, recomputed, the batch split over devices."""
    attend, dtype = implementation
    devices = 4 if len(jax.devices()) >= 4 else 1
    mesh = jax.make_mesh((devices, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4)
    is_valid = jnp.arange(L)[None] < jnp.array([L, 50, 7, L])[:, None]
    arrays = inputs(L, dtype, batch=4)

    def run(q, k, v, g, is_valid):
        mask = AttentionMask(ahead=0, is_valid=is_valid)
        body = jax.checkpoint(lambda x, _: (attend(x, k, v, mask), None), prevent_cse=False)
        out, pull = jax.vjp(lambda q: jax.lax.scan(body, q, None, length=2)[0], q)
        return out, *pull(g)

    here = jax.jit(run)(*arrays, is_valid)
    rows = PartitionSpec(("data", "fsdp"))
    with jax.set_mesh(mesh):
        split = jax.jit(run, in_shardings=rows, out_shardings=rows)
        compiled = split.lower(*arrays, is_valid).compile()
        there = split(*arrays, is_valid)
    assert "all-gather" not in compiled.as_text()
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)


def test_auto_is_what_the_device_is_good_at(monkeypatch):
    q = jnp.zeros((1, 256, 1, 64), jnp.bfloat16)
    packed = AttentionMask(segment_ids=jnp.zeros((1, 256), int))
    assert platform() == jax.default_backend()

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose(q, packed, "auto") == "cudnn"
    assert choose(q.astype(jnp.float32), packed, "auto") == "xla"
    assert choose(q[:, :192], packed, "auto") == "xla"
    assert choose(q[:, :192], AttentionMask(), "auto") == "cudnn"
    assert choose(q, packed, "xla") == "xla"
    assert choose(q, AttentionMask(halves=Halves(128, 4)), "auto") == "xla"

    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert choose(q, packed, "auto") == "splash"
    assert choose(q[:, :100], packed, "auto") == "xla"
    assert choose(q[:, :100], packed, "splash") == "splash"
    assert choose(q, AttentionMask(halves=Halves(128, 4)), "auto") == "splash"

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert choose(q, packed, "auto") == "xla"


@pytest.mark.parametrize(
    "where, implementation, shape, dtype, reason",
    [
        ("cpu", "cudnn", (1, 8, 1, 8), "bfloat16", "NVIDIA GPUs, and the platform is cpu"),
        ("cpu", "splash", (1, 8, 1, 8), "bfloat16", "TPUs, and the platform is cpu"),
        ("gpu", "cudnn", (1, 8, 1, 8), "float32", "float16, not float32"),
        ("gpu", "cudnn", (1, 8, 1, 12), "bfloat16", "multiple of 8, at most 128, not 12"),
        ("gpu", "cudnn", (1, 192, 1, 8), "bfloat16", "a multiple of 128, not 192"),
        ("tpu", "splash", (1, 8, 1, 12), "bfloat16", "multiple of 8, not 12"),
    ],
)
def test_what_cannot_be_done_is_said(where, implementation, shape, dtype, reason, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: where)
    x = jnp.zeros(shape, dtype)
    mask = AttentionMask(segment_ids=jnp.zeros(shape[:2], int))
    with pytest.raises(InputError, match=reason) as error:
        attention(x, x, x, mask, implementation)
    assert "\n" not in str(error.value)


def test_cudnn_has_no_mask_for_halves(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jnp.zeros((1, 8, 1, 8), jnp.bfloat16)
    with pytest.raises(InputError, match=r"no mask for rows \[noised ; clean\]"):
        attention(x, x, x, AttentionMask(halves=Halves(4, 2)), "cudnn")


def test_cudnn_is_not_for_gpus_of_amd():
    x = jnp.zeros((1, 128, 1, 64), jnp.bfloat16)
    for kind, chosen in {"NVIDIA H200": "cudnn", "AMD Instinct MI300X": "xla"}.items():
        device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
        mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert choose(x, AttentionMask(), "auto") == chosen
    with (
        jax.sharding.use_abstract_mesh(mesh),
        pytest.raises(InputError, match="NVIDIA GPUs, and these are AMD Instinct MI300X"),
    ):
        choose(x, AttentionMask(), "cudnn")


@pytest.mark.parametrize("size", [0, 3, 16])
def test_blocks_must_divide_the_length(size):
    with pytest.raises(ValueError, match=f"block_size={size} does not divide the length of 8"):
        Halves(8, size)


def test_cudnn_holds_no_matrix_of_scores(monkeypatch):
    """Lowered for a GPU that is not here: kernels are called, and nothing is [l, l]."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    x = jax.ShapeDtypeStruct((B, 96, H, D), jnp.bfloat16)
    for name, kernel_mask in (("causal", "CAUSAL"), ("causal padding", "PADDING_CAUSAL")):
        run = with_gradients(attention_cudnn.attend, described(name, 96))
        lowered = jax.jit(run).trace(x, x, x, x).lower(lowering_platforms=("cuda",)).as_text()
        assert "fmhaSoftmaxBackward" in lowered
        assert f"mask_type\\22: \\22{kernel_mask}\\22" in lowered or kernel_mask in lowered
        assert "96x96" not in lowered
