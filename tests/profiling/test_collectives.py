"""Collectives read from the text of programs: made-up ones, and one that is compiled."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mdlm.parallel.mesh import AXES, FSDP, MeshShape
from mdlm.profiling.collectives import Traffic, collectives, sent, size_of

TEXT = """\
HloModule made_up, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p.1: (s32[], f32[8,4])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %limit = s32[]{:T(128)} constant(7)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

%body (p.2: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p.2 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %two = s32[]{:T(128)} constant(2)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %copied = s32[]{:T(128)S(6)} copy(%i.2)
  %next = s32[]{:T(128)} add(%copied, %two)
  %x = f32[8,4]{1,0:T(8,128)} get-tuple-element(%p.2), index=1
  %start = (f32[8,4]{1,0}, f32[8,4]{1,0:S(1)}, u32[], u32[]) collective-permute-start(%x), \
channel_id=3, source_target_pairs={{0,1},{1,0}}
  %done = f32[8,4]{1,0:T(8,128)} collective-permute-done(%start)
  ROOT %both = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) tuple(%next, /*index=1*/%done)
}

%part.1 (p.3: bf16[2,4]) -> bf16[8,4] {
  %p.3 = bf16[2,4]{1,0} parameter(0)
  ROOT %gather.1 = bf16[8,4]{1,0} all-gather(%p.3), channel_id=9, dimensions={0}
}

%part.2 (p.4: bf16[2,4]) -> bf16[8,4] {
  %p.4 = bf16[2,4]{1,0} parameter(0)
  ROOT %gather.2 = bf16[8,4]{1,0} all-gather(%p.4), channel_id=9, dimensions={0}
}

%all-reduce-scatter (p.5: f32[8,4]) -> f32[2,4] {
  %p.5 = f32[8,4]{1,0} parameter(0)
  %sum.1 = f32[8,4]{1,0} all-reduce(%p.5), channel_id=13, to_apply=%add
  %nought = s32[] constant(0)
  ROOT %mine = f32[2,4]{1,0} dynamic-slice(%sum.1, %nought, %nought), dynamic_slice_sizes={2,4}
}

ENTRY %main (arg: f32[8,4]) -> f32[8,4] {
  %arg = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %in = (s32[], f32[8,4]{1,0}) tuple(%zero, %arg)
  %loop = (s32[], f32[8,4]{1,0}) while(%in), condition=%condition, body=%body
  %out = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  %half = bf16[2,4]{1,0} custom-call(%out), custom_call_target="x", metadata={op_name="a (b)"}
  %first = bf16[8,4]{1,0} fusion(%half), kind=kCustom, calls=%part.1
  %second = bf16[8,4]{1,0} fusion(%half), kind=kCustom, calls=%part.2
  %begun = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%half), channel_id=10, dimensions={0}
  %ended = bf16[8,4]{1,0} all-gather-done(%begun)
  %scattered = f32[2,4]{1,0} reduce-scatter(%out), channel_id=11, to_apply=%add
  %cut = f32[2,4]{1,0} fusion(%out), kind=kCustom, calls=%all-reduce-scatter
  ROOT %all = f32[8,4]{1,0} all-reduce(%out), channel_id=12, to_apply=%add
}
"""


def test_made_up():
    """0, 2, 4, 6 is four trips; two parts of one gathering are one; half-open ones count once;
    a sum that is cut where it is made is a reduce-scatter."""
    assert collectives(TEXT) == {
        "collective-permute": Traffic(count=4, bytes=4 * 128),
        "all-gather": Traffic(count=2, bytes=2 * 64),
        "reduce-scatter": Traffic(count=2, bytes=2 * 128),
        "all-reduce": Traffic(count=1, bytes=128),
    }
    assert sent(collectives(TEXT)) == 512 + 128 + 2 * 128 + 2 * 128


def test_trips_that_are_said():
    said = TEXT.replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"},"known_init":1}'
    )
    assert collectives(said)["collective-permute"].count == 5
    unknown = TEXT.replace("direction=LT", "direction=NE")
    assert collectives(unknown)["collective-permute"].count == 1


def test_what_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("nothing")


@pytest.mark.parametrize(
    ("type", "size"),
    [
        ("f32[3,5]{1,0:T(8,128)S(1)}", 60),
        ("(bf16[4]{0}, s32[], pred[7], token[])", 8 + 4 + 7),
        ("f8e4m3fn[10]", 10),
        ("s4[6]", 3),
    ],
)
def test_sizes(type, size):
    assert size_of(type) == size


def test_compiled():
    """Three times: four devices gather an [8, 8], all add up an [8]."""
    mesh = MeshShape(data=2, fsdp=4).build(jax.devices()[:8])

    def on_device(x, w):
        whole = jax.lax.all_gather(w, FSDP, tiled=True)
        return jax.lax.psum(whole.sum() * x.sum(0), AXES)

    def run(x, w):
        specs = (PartitionSpec(AXES), PartitionSpec(FSDP))
        summed = jax.shard_map(
            on_device, in_specs=specs, out_specs=PartitionSpec(), mesh=mesh, check_vma=False
        )
        return jax.lax.fori_loop(0, 3, lambda _, w: w + summed(x, w)[:, None], w)

    def array(*shape, axes):
        sharding = NamedSharding(mesh, PartitionSpec(axes))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    compiled = jax.jit(run).lower(array(16, 8, axes=AXES), array(8, 8, axes=FSDP)).compile()
    assert collectives(compiled.as_text()) == {
        "all-gather": Traffic(count=3, bytes=3 * 256),
        "all-reduce": Traffic(count=3, bytes=3 * 32),
    }
