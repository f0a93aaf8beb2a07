"""Profiles: what a trace says, on the platforms that are here and on those that are not."""

import errno
import json
import os
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mdlm.errors import InputError
from mdlm.experiment import Training
from mdlm.profiling import profile, timeline
from mdlm.profiling.profile import WARM_UP, Profile, Profiler, read
from mdlm.profiling.timeline import Event, Instruction
from mdlm.run import load
from mdlm.train.events import Profiled, Stepped
from mdlm.train.session import Session

PAUSE = 60.0
"""Milliseconds that a test lets pass between two steps."""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


def layer(x, w):
    with jax.named_scope("attention"):
        x = jax.nn.softmax(x @ w)
    with jax.named_scope("mlp"):
        return jnp.tanh(x @ w.T), None


def train_step(w, x):
    def loss(w):
        out, _ = jax.lax.scan(jax.checkpoint(layer), x, w)
        with jax.named_scope("head"):
            return (out**2).sum()

    gradient = jax.grad(loss)(w)
    with jax.named_scope("optimizer"):
        return w - 1e-3 * gradient / (1 + jnp.abs(w)), {}


def test_time_by_part_of_a_program_that_runs(tmp_path):
    step = jax.jit(train_step, donate_argnums=0)
    elsewhere = jax.jit(lambda x: jnp.tanh(x @ x))
    w, x = jnp.ones((3, 256, 256)) / 256, jnp.ones((512, 256))
    profiler = Profiler(tmp_path, 4, begin=10, failed=lambda *said: pytest.fail(str(said)))
    found = None
    compilations = []

    def listen(name, *_, **__):
        if "backend_compile" in name:
            compilations.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    for number in range(10, 10 + WARM_UP + 5):
        before = len(compilations)
        profiler.before(number, step, w, x)
        if number == 10 + WARM_UP:
            assert len(compilations) == before > 0  # the program is there, it is not made again
        w, _ = step(w, x)
        if number == 10 + WARM_UP + 1:
            jax.block_until_ready(elsewhere(x.T @ x))
        if number == 10 + WARM_UP + 2:
            jax.block_until_ready(w)
            time.sleep(PAUSE / 1000)
        if (now := profiler.after(number + 1, w)) is not None:
            assert found is None and number == 10 + WARM_UP + 3
            found = now
    jax.monitoring.unregister_event_duration_listener(listen)
    assert isinstance(found, Profile) and found.steps == 4 and found.devices == 1
    parts = found.parts()
    assert {"attention", "mlp", "head", "optimizer"} <= set(parts)
    for name in ("attention", "mlp"):
        assert all(parts[name][direction] > 0 for direction in timeline.DIRECTIONS), parts
        assert 0 < found.products()[name] <= sum(parts[name].values())
    assert parts["optimizer"]["forward"] > 0 == parts["optimizer"]["recomputed"]
    assert found.products()["optimizer"] == 0
    # Everything that ran, and the time in which nothing did, is the whole.
    busy = sum(sum(times.values()) for times in parts.values())
    assert busy + found.idle == pytest.approx(found.step, rel=1e-6) and found.idle < found.step / 2
    # Three gaps at the most between four steps, one of them with the pause.
    assert found.between is not None and found.between >= PAUSE / 3
    products = [c for c in found.instructions if c.is_product]
    # Per layer: two forward, two again, and the gradients of both in both operands.
    assert sum(c.runs for c in products) == 3 * (2 + 2 + 4), [(c.name, c.runs) for c in products]
    stored = json.loads((tmp_path / "profile" / "profile.json").read_text())
    assert stored["parts"] == parts and stored["step"] == found.step
    text = (tmp_path / "profile" / "profile.txt").read_text()
    assert text == f"{found}\n" and "recomputed" in text and "4 steps traced" in text


@pytest.mark.parametrize("where", ["start", "stop", "write"])
def test_a_trace_that_has_no_room_does_not_end_the_run(where, tmp_path, monkeypatch):
    """Every step is made, and the run is told once."""
    stop_trace = jax.profiler.stop_trace

    def full(*_, **__):
        if where == "stop":
            stop_trace()  # another test may trace
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place = (profile, "write") if where == "write" else (jax.profiler, f"{where}_trace")
    monkeypatch.setattr(*place, full)
    step = jax.jit(lambda x, batch: x + batch)
    x, told = jnp.zeros(()), []
    profiler = Profiler(tmp_path, 2, begin=0, failed=lambda *said: told.append(said))
    for number in range(WARM_UP + 4):
        profiler.before(number, step, x, 1.0)
        x = step(x, 1.0)
        assert profiler.after(number + 1, x) is None
    profiler.close()
    assert x == WARM_UP + 4
    ((what, error),) = told
    assert what == f"tracing into {tmp_path / 'profile'}" and error.errno == errno.ENOSPC


def test_shares_of_overlapping_spans_add_up_to_covered_time():
    spans = [(0.0, 4.0, "a"), (2.0, 6.0, "b"), (2.0, 6.0, "b"), (10.0, 11.0, "a"), (7.0, 7.0, "c")]
    found = timeline.shares(spans)
    assert found == pytest.approx({"a": 2 + 2 / 3 + 1, "b": 4 / 3 + 2})
    assert sum(found.values()) == pytest.approx(7)
    assert timeline.shares([]) == {}


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        ("jit(train_step)/jvp()/while/body/closed_call/attention/dot_general", "attention forward"),
        ("jit(train_step)/transpose(jvp(head))/dot_general", "head backward"),
        ("jit(f)/transpose(jvp())/checkpoint/rematted_computation/mlp/tanh", "mlp recomputed"),
        ("jit(f)/optimizer/ema/mul", "ema forward"),
        ("jit(f)/jvp(embed)/transpose", "embed forward"),  # an operation of that name
        ("jit(f)/overhead/add", "other forward"),
        ("jit(f)/jvp()/while/body/dynamic_slice", "scan forward"),
    ],
)
def test_origin(op_name, expected):
    assert " ".join(timeline.origin(op_name)) == expected


PROGRAM = """\
HloModule jit_train_step, is_scheduled=true

%fused (p: f32[8,8], q: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %q = f32[8,8]{1,0} parameter(1)
  %dot.1 = f32[8,8]{1,0} dot(%p, %q), metadata={op_name="jit(train_step)/jvp(mlp)/dot_general"}
  ROOT %add.1 = f32[8,8]{1,0} add(%dot.1, %q), metadata={op_name="jit(train_step)/jvp(head)/add"}
}

%body (t: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %t = (s32[], /*index=1*/f32[8,8]{1,0}) parameter(0)
  %gte.1 = f32[8,8]{1,0} get-tuple-element(%t), index=1
  %fusion.1 = f32[8,8]{1,0:T(8,128)} fusion(%gte.1, %gte.1), kind=kOutput, calls=%fused
  %copy.1 = f32[8,8]{0,1} copy(%fusion.1)
  ROOT %tuple.1 = (s32[], f32[8,8]{1,0}) tuple(%t, %copy.1)
}

ENTRY %main (w: f32[8,8]) -> f32[8,8] {
  %w = f32[8,8]{1,0} parameter(0)
  %while.1 = (s32[], f32[8,8]{1,0}) while(%w), condition=%c, body=%body, metadata={op_name="jit"}
  %gemm.1 = (f32[8,8], s8[4]) custom-call(%w), custom_call_target="__cublas$gemm", \
metadata={op_name="jit(train_step)/transpose(jvp(attention))/dot_general"}
  %call.1 = s32[] call(%w), to_apply=%f, frontend_attributes={xla_cpu_small_call="true"}
  ROOT %negate.1 = f32[8,8]{1,0} negate(%w), metadata={op_name="jit(train_step)/optimizer/neg"}
}
"""


def test_instructions_of_a_program():
    found = timeline.instructions(PROGRAM)
    # A fusion is where its product is; a copy is where what it copies was made.
    assert found["fusion.1"] == Instruction("fusion", "mlp", "forward", True, False)
    assert found["copy.1"] == Instruction("copy", "mlp", "forward", False, False)
    assert found["gemm.1"] == Instruction("custom-call", "attention", "backward", True, False)
    assert found["while.1"].is_container and not found["call.1"].is_container
    assert found["negate.1"].part == "optimizer"


def space(*planes: str) -> jax.profiler.ProfileData:
    return jax.profiler.ProfileData.from_text_proto("\n".join(planes))


def plane(name: str, lines: dict[str, list[tuple]]) -> str:
    """A plane in text: events are (name, start, duration, statistics), in nanoseconds."""
    names, stats, text = [], [], ""
    for line, events in lines.items():
        text += f'lines {{ name: "{line}" timestamp_ns: 0\n'
        for event, start, duration, values in events:
            names.append(event)
            text += f"events {{ metadata_id: {len(names)} offset_ps: {start * 1000} "
            text += f"duration_ps: {duration * 1000} "
            for key, value in values.items():
                stats.append(key)
                held = (
                    f'str_value: "{value}"' if isinstance(value, str) else f"int64_value: {value}"
                )
                text += f"stats {{ metadata_id: {len(stats)} {held} }} "
            text += "}\n"
        text += "}\n"
    for kind, table in (("event_metadata", names), ("stat_metadata", stats)):
        for number, entry in enumerate(table, 1):
            text += f'{kind} {{ key: {number} value {{ id: {number} name: "{entry}" }} }}\n'
    return f'planes {{ name: "{name}"\n{text}}}'


def test_streams_of_a_gpu():
    def kernel(op, start, duration, module="jit_train_step"):
        return ("void kernel<128>", start, duration, {"hlo_op": op, "hlo_module": module})

    streams = {
        "Stream #13(Compute)": [
            kernel("fusion.1", 0, 100),
            ("MemcpyD2D", 150, 50, {}),
            kernel("negate.1", 200, 100),
            kernel("dot.9", 400, 50, "jit_score"),
            kernel("fusion.1", 1000, 100),
            kernel("negate.1", 1100, 100),
            kernel("fusion.1", 1270, 100),
            kernel("negate.1", 1370, 100),
        ],
        "Stream #14(Compute)": [kernel("gemm.1", at, 100) for at in (50, 1050, 1320)],
        "XLA Ops": [kernel("fusion.1", 0, 300)],  # derived from the streams: not counted again
    }
    host = plane("/host:CPU", {"t": [("x", 0, 9999, {"hlo_op": "f", "hlo_module": "jit_f"})]})
    events = timeline.events(space(plane("/device:GPU:0", streams), host))
    assert len(events) == 11 and {e.device for e in events} == {"/device:GPU:0"}
    found = read(events, "jit_train_step", timeline.instructions(PROGRAM), 3)
    assert found.step * 1e6 == pytest.approx((300 + 200 + 200) / 3)
    # After the first step another program ran: how long that took says nothing of the steps.
    assert found.between is not None and found.between * 1e6 == pytest.approx(70)
    assert found.idle == pytest.approx(0)
    ms = {cost.name: cost.ms * 1e6 for cost in found.instructions}
    assert ms["fusion.1"] == pytest.approx(50 + 25)
    assert ms["gemm.1"] == pytest.approx((25 + 50) / 3 + 2 * (25 + 25) / 3)
    assert found.parts()["other"]["forward"] * 1e6 == pytest.approx(50 / 3)  # the unnamed copy


def test_on_a_cpu_one_thread_may_end_what_another_began():
    def began(op, start, duration, flow, module="jit_train_step"):
        stats = {"hlo_op": op, "hlo_module": module, "run_id": 1, "_p": flow}
        return (op, start, duration, stats)

    threads = {
        "one": [began("fusion.1", 0, 5, 70), ("Threadpool", 6, 9, {"hlo_op": "x"})],
        "two": [("end: dot.1", 100, 1, {"_c": 70}), began("negate.1", 100, 50, 71)],
    }
    events = timeline.events(space(plane("/host:CPU", threads)))
    assert [(e.instruction, e.start, e.end) for e in events] == [
        ("fusion.1", 0, 100),
        ("negate.1", 100, 150),
    ]


def test_instructions_of_a_tpu_belong_to_the_module_around_them():
    lines = {
        "XLA Modules": [
            ("jit_train_step(77)", 0, 100, {}),
            ("jit_score(5)", 150, 20, {}),
            ("jit_train_step(77)", 200, 100, {}),
        ],
        "XLA Ops": [
            ("%while.1 = (s32[]) while(...)", 0, 90, {}),
            ("%fusion.1 = bf16[8,8]{1,0} fusion(...)", 10, 30, {}),
            ("%negate.1 = bf16[8,8]{1,0} negate(...)", 90, 10, {}),
            ("%fusion.1 = bf16[8,8]{1,0} fusion(...)", 150, 20, {}),
            ("%while.1 = (s32[]) while(...)", 200, 90, {}),
            ("%fusion.1 = bf16[8,8]{1,0} fusion(...)", 210, 30, {}),
            ("%negate.1 = bf16[8,8]{1,0} negate(...)", 290, 10, {}),
        ],
        "Async XLA Ops": [("%copy-start.1 = ...", 0, 100, {})],
    }
    planes = [plane(f"/device:TPU:{number}", lines) for number in (0, 1)]
    found = read(
        timeline.events(space(*planes)), "jit_train_step", timeline.instructions(PROGRAM), 2
    )
    assert found.devices == 2 and found.step * 1e6 == pytest.approx(100)
    assert found.idle * 1e6 == pytest.approx(60) and found.between is None
    assert {c.name: (round(c.ms * 1e6), c.runs) for c in found.instructions} == {
        "fusion.1": (30, 1),
        "negate.1": (10, 1),
    }
    assert "between the steps" not in str(found)


def test_a_trace_without_the_program_is_an_error():
    with pytest.raises(ValueError, match="no run of jit_f"):
        read([Event("d", "jit_g", "x", 0, 1)], "jit_f", {}, 1)


SETTINGS = Training(steps=12, batch_size=16, ema_decay=0.9, log_every=1, eval_every=5)


def session(tmp_path, out: str, profile: int = 0, **changes) -> Session:
    text = tmp_path / "text.txt"
    if not text.exists():
        tiny.write_text(text)
    experiment = tiny.experiment(text, train=replace(SETTINGS, **changes))
    # What the folder is opened with again must be what ran.
    overrides = [
        (f"train.{name}", str(getattr(experiment.train, name)))
        for name in ("steps", "log_every", "eval_every", "checkpoint_every")
    ]
    file = tiny.FILE.format(text=str(text))
    return Session(experiment, tmp_path / out, source=file, overrides=overrides, profile=profile)


@pytest.mark.slow
def test_profiling_changes_nothing_and_says_how_fast(tmp_path):
    plain = list(session(tmp_path, "plain").train())
    traced = list(session(tmp_path, "traced", profile=3).train())
    assert not any(isinstance(event, Profiled) for event in plain)
    (found,) = [event for event in traced if isinstance(event, Profiled)]
    assert found.step == WARM_UP + 3
    assert {"attention", "mlp", "head", "optimizer", "ema", "noise"} <= set(found.profile.parts())
    a, b = load(tmp_path / "plain"), load(tmp_path / "traced")
    assert a.step == b.step == 12
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_array_equal(x, y)
    lines = [event.metrics for event in plain if isinstance(event, Stepped)]
    timed = [line for line in lines if "tokens_per_second" in line]
    assert len(lines) == 12 and len(timed) > 5
    for line in timed:
        assert 0 < line["mfu"] < 1.5 and 0 < line["scored"] <= 16 * 32
    rates = [line["flops_per_second"] / line["mfu"] for line in timed]
    assert max(rates) == pytest.approx(min(rates))
    one, two = (tmp_path / name / "metrics.jsonl" for name in ("plain", "traced"))
    assert one.read_text().count("\n") == two.read_text().count("\n")


@pytest.mark.slow
def test_mfu_is_left_out_where_no_peak_is_known(tmp_path, monkeypatch):
    from mdlm.profiling.peak import Peak
    from mdlm.train import meter

    monkeypatch.setattr(meter, "peak_flops", lambda dtype, devices: Peak(None, "unknown"))
    events = list(session(tmp_path, "run", steps=3).train())
    lines = [event.metrics for event in events if isinstance(event, Stepped)]
    assert any("flops_per_second" in line for line in lines)
    assert not any("mfu" in line for line in lines)


@pytest.mark.slow
def test_a_run_stopped_while_it_is_traced_ends_the_trace(tmp_path):
    stop = [False]
    for event in session(tmp_path, "run", profile=6).train(lambda: stop[0]):
        stop[0] = event.step >= WARM_UP + 1
    assert not (tmp_path / "run" / "profile" / "profile.json").exists()
    with jax.profiler.trace(tmp_path / "another"):
        pass


@pytest.mark.slow
def test_more_steps_than_are_left_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="--profile -1: must be at least 1"):
        session(tmp_path, "run", profile=-1)
    with pytest.raises(
        InputError, match="--profile 10: must be at most 9: 12 steps are left, of which the first 3"
    ):
        session(tmp_path, "run", profile=10)
    assert not (tmp_path / "run").exists()
    list(session(tmp_path, "run", steps=8).train())
    with pytest.raises(InputError, match="--profile 3: must be at most 1: 4 steps are left"):
        session(tmp_path, "run", profile=3)
