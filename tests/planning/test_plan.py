"""Plans on paper against what is there: compiled steps, loaders' batches, counted positions."""

import json
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from shipped_files import bert

from mdlm.cli.plan import PLAN_HELP, finite, rows_of
from mdlm.cli.plan_words import duration, words
from mdlm.data.loader import TrainLoader
from mdlm.data.packing import Packing, Pad, Wrap
from mdlm.data.pair_data import PairData, Pairs
from mdlm.data.responses import Responses
from mdlm.data.sentences import Sentences
from mdlm.data.tokenizers import Bytes
from mdlm.errors import InputError
from mdlm.experiment.experiment import Training
from mdlm.experiment.loading import load_file
from mdlm.experiment.model import Model
from mdlm.models.attention import dispatch
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.layers import compute_dtype
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.objectives.policy import GRPO
from mdlm.objectives.rollouts import Rollouts
from mdlm.parallel.mesh import MeshShape, device_kind, on, platform
from mdlm.planning.compiling import Compiled, compile_for, first, wanted
from mdlm.planning.memory import abstract_batch, given_bytes, kept_bytes, scored_share
from mdlm.planning.plan import plan
from mdlm.planning.topology import SHAPES, Topology
from mdlm.profiling.peak import CHIPS
from mdlm.samplers.left_to_right import LeftToRight
from mdlm.train.batches import in_training
from mdlm.types import Vocab

VOCAB = Vocab(size=61, mask_id=60, bos_id=0, eos_id=1, pad_id=2)
WIDE = DiT(width=128, depth=1, heads=2, cond_dim=16)
SLICE = Topology.parse("v5e:2x4")


@pytest.fixture
def experiment(tmp_path):
    return tiny.experiment(
        tiny.write_text(tmp_path / "text.txt"), network=WIDE, mesh=MeshShape(data=2, fsdp=4)
    )


@pytest.mark.slow
def test_memory_is_that_of_the_step(experiment):
    """On the CPU nothing is padded: the arguments are the state and the batch to the byte."""
    model = Model(experiment, VOCAB)
    compiled = compile_for(model, experiment.mesh.build(jax.devices()[:8]))
    given, gradients = given_bytes(model, SLICE.sizes(experiment.mesh))
    assert compiled.arguments == sum(given.values())
    assert given["parameters"] == given["average"] == gradients
    assert 2 * gradients < given["optimizer"] < 2.01 * gradients
    p = plan(model, SLICE, compiled)
    assert vars(p.memory) == given | {
        "temporaries": compiled.temporaries,
        "program": compiled.program,
    }
    # The matrices are split over four, what is small is not.
    assert p.parameters < p.memory.parameters < 4 * p.parameters / 2.5
    assert p.traffic is not None and p.traffic["all-gather"].bytes > p.parameters
    assert p.fits and not replace(p, refused="no").fits
    assert not replace(p, available=p.memory.total - 1).fits
    text = words(p)
    assert "data=2 fsdp=4" in text and "all-gather" in text and ": fits" in text


PACKINGS = [
    Wrap(length=30),
    Wrap(length=32, segments=True),
    Wrap(length=32, remainder="drop"),
    Pad(length=2**15),
    Pad(length=2**15, pad="as_published"),
    Pad(length=2**15, specials=False),
]


def test_every_packing_is_planned():
    planned = {type(packing) for packing in PACKINGS}
    assert planned | {Responses, Sentences} == set(Packing.__subclasses__())
    # ... and both values of every field that changes what a batch holds.
    assert {p.hides_padding for p in PACKINGS} == {p.splits_attention for p in PACKINGS}


@pytest.mark.parametrize("packing", PACKINGS, ids=repr)
def test_batches_are_those_of_the_loader(experiment, packing):
    check_batches(replace(experiment, data=replace(experiment.data, packing=packing)))


@pytest.mark.parametrize("settings", [{}, {"packed": True}, {"eos": "filled"}], ids=repr)
def test_batches_of_pairs_are_those_of_the_loader(experiment, settings, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n' * 99, encoding="utf-8")
    packing = Responses(length=32, **settings)
    data = PairData(source=Pairs(train=str(path)), tokenizer=Bytes(), packing=packing)
    check_batches(replace(experiment, data=data))


def check_batches(experiment):
    dataset = experiment.data.load()
    model = Model.on(experiment, dataset)
    rows = TrainLoader(dataset.train.rows, experiment.train.batch_size, 0).batch_at(0)
    made = {
        name: (value.shape, value.dtype)
        for name, value in in_training(rows, np.arange(experiment.train.batch_size)).items()
    }
    planned = vars(abstract_batch(model, SLICE.sizes(experiment.mesh)))
    planned = {name: (x.shape, x.dtype) for name, x in planned.items() if x is not None}
    assert planned == made


def test_scored_places(experiment):
    """Half of them, by a schedule that hides in proportion to the time; all; all but the first."""
    longer = replace(experiment, data=replace(experiment.data, packing=Wrap(length=256)))
    assert scored_share(Model(longer, VOCAB)) == pytest.approx(0.5, abs=0.02)
    causal = replace(
        experiment,
        network=CausalTransformer(width=32, depth=1, heads=2),
        objective=Autoregressive(),
        sampler=LeftToRight(),
    )
    assert scored_share(Model(causal, VOCAB)) == 31 / 32


def test_time_and_money(experiment):
    experiment = replace(experiment, train=Training(steps=1000, batch_size=64, accumulate=2))
    model = Model(experiment, VOCAB)
    p = plan(model, SLICE, None, mfu=0.25, price=2.0)
    forward = WIDE.flops(64, 32, p.scored * 64 * 32, 61)
    assert p.flops == 3 * forward and p.peak == 197e12
    assert p.seconds(p.mfu) == pytest.approx(3 * forward / (8 * 197e12 * 0.25))
    assert p.days * 86400 == pytest.approx(1000 * p.seconds(0.25))
    assert p.dollars == pytest.approx(p.days * 24 * 8 * 2.0)
    found = p.as_json()
    assert found["tokens_per_second"] == pytest.approx(64 * 32 / p.seconds(0.25))
    assert found["memory"]["total"] == p.memory.total and found["fits"]


def test_what_is_traced_is_for_the_devices_of_the_mesh(experiment):
    with on(SLICE.sizes(experiment.mesh)):
        assert platform() == "tpu" and compute_dtype("auto") == jnp.bfloat16
    with on(experiment.mesh.build()):
        assert platform() == "cpu" and compute_dtype("auto") == jnp.float32
    assert platform() == "cpu"


def attentions(monkeypatch) -> list[str]:
    """The implementation of every attention that is traced from here on."""
    chosen, attend = [], dispatch._attend

    def noted(name, *arguments):
        chosen.append(name)
        return attend(name, *arguments)

    monkeypatch.setattr(dispatch, "_attend", noted)
    return chosen


@pytest.mark.parametrize(
    ("topology", "implementation"),
    [("gpu:8xH100", "cudnn"), ("gpu:8xRTX4090", "cudnn"), ("gpu:8xMI300X", "xla")]
    + [("v4:2x2x2", "splash")],
)
def test_the_attention_is_that_of_the_devices(experiment, monkeypatch, topology, implementation):
    """Of the plan's own program, with rows that every kernel takes."""
    chosen = attentions(monkeypatch)
    longer = replace(experiment, data=replace(experiment.data, packing=Wrap(length=128)))
    there = Topology.parse(topology)
    plan(Model(longer, VOCAB), there, None)
    assert set(chosen) == {implementation}
    with on(there.sizes(experiment.mesh)):
        assert device_kind() == there.chip.kind
        assert platform() == ("tpu" if implementation == "splash" else "gpu")


@pytest.mark.parametrize("remat", ["auto", "none", "products"])
def test_a_gpu_keeps_no_scores(experiment, remat):
    """Of rows twice as long as before twice as much is kept, and of "auto" what "none" keeps."""

    def kept(remat, length):
        packing = Wrap(length=length)
        network, data = replace(WIDE, remat=remat), replace(experiment.data, packing=packing)
        model = Model(replace(experiment, network=network, data=data), VOCAB)
        return kept_bytes(model, Topology.parse("gpu:8xH100").sizes(experiment.mesh), 4)

    short, long, longer = (kept(remat, length) for length in (256, 512, 1024))
    assert longer - long == pytest.approx(2 * (long - short), rel=1e-3)
    if remat == "auto":
        assert long == kept("none", 512)


def test_what_is_kept(experiment):
    """Of twice the rows twice as much; of blocks their inputs, with products more, of all most."""

    def kept(remat, rows):
        network = replace(WIDE, remat=remat)
        model = Model(replace(experiment, network=network), VOCAB)
        return kept_bytes(model, SLICE.sizes(experiment.mesh), rows)

    blocks, products, everything = (kept(remat, 8) for remat in ("blocks", "products", "none"))
    inputs = 4 * 8 * 32 * 128 * WIDE.depth
    assert inputs < blocks < products < everything
    # qkv 3, attention and its end 1 each, MLP 4 and 1, in bfloat16.
    expected = 2 * 10 * 8 * 32 * 128 * WIDE.depth
    assert expected <= products - blocks < 1.1 * expected
    # What does not depend on the rows is little: no parameters are in it.
    fixed = 2 * products - kept("products", 16)
    assert 0 < fixed < 128 * 128 * 4


def test_extrapolated(experiment):
    """From half the devices: the state by its own shapes, temporaries less what gradients lose."""
    experiment = replace(experiment, mesh=MeshShape(data=1, fsdp=-1))
    large, small = Topology.parse("v5e:4x4"), SLICE
    assert rows_of(experiment, large, small) == experiment.train.batch_size / 2
    model = Model(experiment, VOCAB)
    compiled = Compiled(seconds=1.0, arguments=0, temporaries=1e6, traffic={})
    p = plan(model, large, compiled, on_smaller=small)
    assert p.method == "extrapolated from v5e:2x4" and str(MeshShape(**p.mesh)) == "fsdp=16"
    smaller = plan(model, small, None).gradients
    assert p.memory.temporaries == 1e6 + p.gradients - smaller < 1e6
    for other in ("v5e:8x8", "v6e:2x2"):
        with pytest.raises(
            InputError, match="must be a smaller slice of the same chips as v5e:4x4"
        ):
            rows_of(experiment, large, Topology.parse(other))


def test_what_xla_says():
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (122.50G) exceeds available HBM (15.75G). HLO module: jit.\n"
        "See https://openxla.org"
    )
    assert wanted(message) == 122.5 * 2**30
    assert first(message).startswith("Ran out of memory on HBM") and "openxla" not in first(message)
    assert wanted("RESOURCE_EXHAUSTED: something else") is None


def test_a_step_that_did_not_fit(experiment):
    model = Model(experiment, VOCAB)
    p = plan(model, SLICE, Compiled(seconds=3.0, refused="Ran out of memory"))
    assert not p.fits and math.isnan(p.memory.total)
    assert "DOES NOT FIT. Ran out of memory" in words(p) and "nan" not in words(p)


@pytest.mark.parametrize(
    ("text", "chips", "name"),
    [
        ("v5e:4x4", 16, "v5e"),
        ("v5p:2x2x4", 16, "v5p"),
        ("v4:2x2x1", 4, "v4"),
        ("gpu:8xH100", 8, "H100"),
        ("gpu:16xA100", 16, "A100"),
        ("gpu:1xRTX5090", 1, "RTX5090"),
    ],
)
def test_topologies(text, chips, name):
    found = Topology.parse(text)
    assert (found.chips, found.name) == (chips, name)
    assert found.is_compiled_for == (name in ("v5e", "v5p", "v6e"))


@pytest.mark.parametrize("name", CHIPS)
def test_every_chip_has_a_peak_and_a_place_in_the_help(name):
    text = f"{name}:{SHAPES[name]}" if name in SHAPES else f"gpu:1x{name}"
    assert Topology.parse(text).peak("bfloat16") > 0
    assert re.search(rf"\b{name}\b", PLAN_HELP)


def test_a_device_by_its_figures(experiment):
    """Of any name with both figures; of a known one with the other figure of its datasheet."""
    given = dict(memory=24 * 2.0**30, flops=165e12)
    p = plan(Model(experiment, VOCAB), Topology.parse("gpu:8xOther", **given), None)
    assert (p.chip, p.available, p.peak) == ("Other", *given.values())
    assert p.traffic is None and "8 x Other" in words(p) and "8 x 165 TFLOP/s" in words(p)
    assert json.loads(json.dumps(finite(p.as_json())))["link"] is None
    smaller = Topology.parse("gpu:8xA100", memory=4e10)
    assert smaller.chip.memory == 4e10 and smaller.peak("bfloat16") == 312e12
    faster = Topology.parse("gpu:8xA100", flops=1e15)
    assert faster.chip.memory == 8e10 and faster.peak("float32") == 1e15
    for figure in given.items():
        with pytest.raises(InputError, match="or of another name with --device-memory GIB and"):
            Topology.parse("gpu:8xOther", **dict([figure]))
        with pytest.raises(InputError, match="v5e:4x4: --device-memory and .* are for GPUs"):
            Topology.parse("v5e:4x4", **dict([figure]))
    with pytest.raises(InputError, match="unknown"):
        Topology.parse("gpu:8xv5e", **given)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 us"),
        (2.34e-5, "23.4 us"),
        (5.09e-3, "5.09 ms"),
        (0.1228, "122.8 ms"),
        (0.000203 * 86400, "17.5 s"),
        (100, "1.67 min"),
        (16560, "4.60 h"),
        (3.554 * 86400, "3.55 days"),
        (1234.5 * 86400, "1,234.5 days"),
    ],
)
def test_durations_have_the_unit_of_their_size(seconds, text):
    assert duration(seconds) == text


def test_what_a_short_run_takes(experiment):
    """Each duration in its own unit; hours and dollars are not rounded to 0."""
    p = plan(Model(experiment, VOCAB), Topology.parse("gpu:8xL4"), None, price=1.0)
    p = replace(p, steps=10, flops=10 * 8 * p.peak * p.mfu, compile_seconds=90.0)
    text = words(p)
    assert "in 1.50 min: fits" in text and "at 40% MFU          10.0 s  " in text
    assert "at 40% MFU: 1.67 min, 0.222 chip-hours, $0.222 at $1" in text


@pytest.mark.parametrize("text", ["v5e", "v5e:4", "v5p:4x4", "v9:2x2", "gpu:8xT4", "gpu:8xv5e", ""])
def test_unknown_topologies(text):
    with pytest.raises(InputError, match="unknown.*v5e:4x4.*gpu:8xH100"):
        Topology.parse(text)


def test_meshes_that_do_not_fit(experiment):
    odd = replace(experiment, mesh=MeshShape(data=-1, fsdp=3))
    with pytest.raises(InputError, match="fsdp=3 does not fit 8 devices"):
        plan(Model(odd, VOCAB), SLICE, None)
    few = replace(experiment, train=Training(steps=1, batch_size=4))
    with pytest.raises(InputError, match="batch of 4 rows does not divide over 8 devices"):
        plan(Model(few, VOCAB), SLICE, None)


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 2])
def test_objectives_with_rollouts_and_a_reference_are_planned(experiment, updates):
    """The batch has what the objective is given beside rows, and the state the reference."""
    asked = Rollouts(reward="any:reward", group=4, updates=updates)
    model = Model(replace(experiment, objective=GRPO(rollouts=asked)), VOCAB)
    mesh = SLICE.sizes(model.experiment.mesh)
    assert (abstract_batch(model, mesh).rollout.log_p_old is None) == (updates == 1)
    assert scored_share(model) == 1


def test_labelled_rows_are_planned():
    """Their batches have targets, and no logits of tokens are computed."""
    model = Model(load_file("glue", base=bert), VOCAB)
    batch = abstract_batch(model, MeshShape().build())
    assert batch.target.shape == (16,) and batch.token_types.shape == (16, 128)
    assert scored_share(model) == 0
