"""A plan as `mdlm plan` prints it."""

from mdlm.parallel.mesh import MeshShape
from mdlm.planning.plan import Plan

GIB = 2**30


def words(p: Plan) -> str:
    """Formats a plan for printing."""
    mesh = MeshShape(**p.mesh)
    micro = f", {p.accumulate} micro-batches" if p.accumulate > 1 else ""
    lines = [
        f"{p.experiment} on {p.topology}: {p.chips} x {p.chip}, mesh {mesh}",
        f"  {p.parameters:,} parameters, vocabulary of {p.columns:,} ({p.columns_from})",
        f"  {p.batch_size:,} rows of {p.length:,} = {p.tokens_per_step:,} tokens a step{micro}",
        f"  {verdict(p)}",
        *memory_words(p),
        "time of a step",
        f"  {p.flops:.3g} FLOPs of the model; logits at {p.scored:.0%} of the positions",
        f"  at peak          {duration(p.seconds(1)):>9s}  {p.chips} x {p.peak / 1e12:.4g} TFLOP/s",
        f"  at {p.mfu:.0%} MFU{'':7s}{duration(p.seconds(p.mfu)):>9s}  "
        f"{p.tokens_per_step / p.seconds(p.mfu):,.0f} tokens/s",
    ]
    if p.traffic is not None and p.sent is not None and p.sending is not None:
        lines += [
            f"  communication    {duration(p.sending):>9s}  at least, overlapped with compute or "
            f"not: {amount(p.sent)} a chip at {p.link / 1e9:.0f} GB/s",
            "collectives of a step, on each chip",
            *(f"  {k:16s} {t.count:8,}  {amount(t.bytes)}" for k, t in sorted(p.traffic.items())),
        ]
    elif p.method != "estimated" and p.refused is None:
        lines.append(
            "collectives: unknown, because this jax cannot read programs of this libtpu: "
            "pip install 'jax[tpu]' installs the libtpu that fits it"
        )
    hours = p.days * 24 * p.chips
    money = "" if p.dollars is None else f", ${number(p.dollars)} at ${p.price:g} a chip-hour"
    lines.append(
        f"run of {p.steps:,} steps at {p.mfu:.0%} MFU: {duration(p.run_seconds)}, "
        f"{number(hours)} chip-hours{money}"
    )
    return "\n".join(lines)


def verdict(p: Plan) -> str:
    """How the memory is known, and whether the step fits."""
    how = p.method
    if p.compile_seconds is not None:
        how += f" in {duration(p.compile_seconds)}"
    if p.refused is not None:
        return f"{how}: DOES NOT FIT. {p.refused}"
    return f"{how}: {'fits' if p.fits else 'DOES NOT FIT'}"


def memory_words(p: Plan) -> list[str]:
    """Formats the memory of a chip, by part."""
    source = "estimated" if p.method == "estimated" else "reported by XLA"
    rows = [
        ("parameters", p.memory.parameters, ""),
        ("optimizer state", p.memory.optimizer, ""),
        ("EMA parameters", p.memory.average, ""),
        ("batch, padding", p.memory.other, ""),
        (
            "temporaries",
            p.memory.temporaries,
            f"{source}: gradients ({p.gradients / GIB:.2f}), activations, workspace",
        ),
        ("program", p.memory.program, ""),
        ("total", p.memory.total, f"of {p.available / GIB:.2f}"),
    ]
    return ["memory of a chip, GiB", *(f"  {name:16s} {gib(n)}  {note}" for name, n, note in rows)]


def gib(size: float) -> str:
    """Bytes as GiB, eight characters wide; an unknown number is a question mark."""
    return f"{'?':>8s}" if size != size else f"{size / GIB:8.2f}"


def duration(seconds: float) -> str:
    """Formats seconds in the largest unit that gives at least 1: `122.8 ms`, `3.55 days`."""
    units = {"days": 86400, "h": 3600, "min": 60, "s": 1, "ms": 1e-3, "us": 1e-6}
    unit = next((unit for unit, size in units.items() if seconds >= size), "us")
    value = seconds / units[unit]
    return f"{value:,.{2 if value < 10 else 1}f} {unit}"


def number(value: float) -> str:
    """Formats hours or dollars: whole from 10 on, with three digits below."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def amount(size: float) -> str:
    """Formats bytes as `123.4 MB` or `12.34 GB`."""
    return f"{size / 1e6:8.1f} MB" if size < 1e9 else f"{size / 1e9:8.2f} GB"
