"""What comparing a checkpoint with its digests costs when it is loaded.

    python -m benchmarks.digests --megabytes 512

Random arrays of that size are saved as a training state, then restored with and without the
comparison, in turns. The files come from the page cache: a disk that has to read them reads them
once for both, and takes longer than either.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks import harness
from mdlm.errors import InputError
from mdlm.runs import digests
from mdlm.runs.checkpoints import Checkpoints

ARRAYS = 64


def restored(folder: Path, abstract: dict[str, jax.ShapeDtypeStruct], verify: bool) -> float:
    """Seconds to open a folder of checkpoints and restore the newest."""
    start = time.perf_counter()
    with Checkpoints(folder, read_only=True, verify=verify) as checkpoints:
        jax.block_until_ready(checkpoints.restore(abstract)[0])
    return time.perf_counter() - start


def run(argv: Sequence[str] | None = None) -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--megabytes", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.megabytes < 1 or args.repeats < 1:
        raise InputError("--megabytes and --repeats: must be at least 1")
    size = args.megabytes * 10**6 // (4 * ARRAYS)
    keys = jax.random.split(jax.random.key(0), ARRAYS)
    state = {f"array{i}": jax.random.normal(key, (size,)) for i, key in enumerate(keys)}
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.zeros_like, state))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(1, state, {})
            checkpoints.wait()
        stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        start = time.perf_counter()
        assert digests.damage(folder / "1") is None
        alone = time.perf_counter() - start
        times = [[restored(folder, abstract, verify) for verify in (False, True)] for _ in
                 range(args.repeats)]  # fmt: skip
    without, compared = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{stored / 1e6:.0f} MB on disk")
    print(f"restored without comparison   {without:.2f} s")
    print(f"restored with comparison      {compared:.2f} s")
    print(f"comparison alone              {alone:.2f} s, {stored / alone / 1e9:.2f} GB/s")


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
