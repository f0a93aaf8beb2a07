"""Tokens per second of the training loader, compared with `datasets` and with the training step.

    python -m benchmarks.loading                       # a synthetic store of 2**27 tokens
    python -m benchmarks.loading --store STORE         # one that `mdlm prepare` made
    python -m benchmarks.loading --batch 512 --length 1024 --no-step

"mdlm" makes batches of shuffled rows (full rows, wrapped) from the store's memory-mapped shards;
"mdlm, on the device" also puts them on the device in the loader's thread, as the training loop
does. "datasets" is the map-style reader of the Hugging Face library on the same rows, stored as
Arrow lists of fixed length and int32 (of the layouts tried, the one that it reads fastest), with
its numpy format, and reads the same random batches. "training step" is the step of
`benchmarks.train_step` on batches of that size, with that benchmark's network.

"x step" is the token rate relative to the training step's: at 1 the loader just keeps up.
"x datasets" is relative to the reader. All files are read once before, into the page cache.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import harness, synthetic
from mdlm.data.loader import TrainLoader
from mdlm.data.packing import Wrap
from mdlm.data.rows.base import RowSet
from mdlm.data.store.manifest import Manifest, Shard, SplitRecord
from mdlm.data.store.reader import Store
from mdlm.errors import InputError
from mdlm.parallel.mesh import MeshShape, put_on_mesh
from mdlm.types import Vocab

DOCUMENT = 1000
"""Tokens of a document of the synthetic store, EOS included."""
READER = 2**25
"""Most tokens given to the other reader, which needs its own copy of four bytes per token."""


NO_SUM = "0" * 64
"""Stands for the checksum of a file that is not read whole."""


def made_up(folder: Path, tokens: int, vocab: Vocab) -> None:
    """A store of random tokens, in shards of 2**26, without a tokenizer."""
    draw, shards = np.random.default_rng(0), []
    for number, start in enumerate(range(0, tokens, 2**26)):
        n = min(2**26, tokens - start)
        name = f"train-{number:05d}"
        ids = draw.integers(0, vocab.size - 3, n, np.uint16)
        ids[DOCUMENT - 1 :: DOCUMENT] = vocab.eos_id
        ids.astype("<u2").tofile(folder / f"{name}.bin")
        ends = np.arange(DOCUMENT, n + 1, DOCUMENT)
        ends.astype("<u8").tofile(folder / f"{name}.ends")
        counts = {"documents": len(ends), "empty": 0, "bytes": 4 * n, "characters": 4 * n}
        shards.append(Shard(name=name, tokens=n, sha256=NO_SUM, ends_sha256=NO_SUM, **counts))
    Manifest(
        source="made up",
        revision=None,
        tokenizer="none",
        fingerprint="",
        vocab_size=vocab.size,
        eos=vocab.eos_id,
        dtype="uint16",
        splits={"train": SplitRecord(shards=tuple(shards), complete=True)},
    ).write(str(folder))


def other_reader(rows: RowSet, folder: Path, batch: int) -> Callable[[], np.ndarray]:
    """The map-style reader on the same rows (the first `READER` tokens); a call reads a batch."""
    import datasets
    import pyarrow

    datasets.disable_progress_bars()
    n = min(len(rows), READER // rows.length)
    tokens = np.concatenate([some.tokens for some in rows.first(n).chunks()]).astype(np.int32)
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(tokens.ravel()), rows.length)
    datasets.Dataset(pyarrow.table({"tokens": column})).save_to_disk(folder)
    reader: Any = datasets.load_from_disk(folder).with_format("numpy")
    order = np.random.default_rng(0).permutation(n)
    state = {"at": 0}

    def read() -> np.ndarray:
        at = order[np.arange(state["at"], state["at"] + batch) % n]
        state["at"] += batch
        return np.asarray(reader[at]["tokens"], np.int32)

    return read


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark; returns the report."""
    parser = harness.parser("loading", __doc__, **synthetic.SIZES, tokens=2**27)
    parser.add_argument(
        "--store", metavar="URL", help="token store (default: a synthetic one of --tokens tokens)"
    )
    parser.add_argument("--no-step", action="store_true", help="do not measure the training step")
    args, others = parser.parse_known_args(argv)
    if others:
        raise InputError(f"{others[0]}: no such option; see --help")
    with tempfile.TemporaryDirectory() as folder:
        if args.store is None:
            vocab = Vocab(size=8192, mask_id=8191, bos_id=8190, eos_id=8189)
            with harness.working("writing a synthetic store"):
                made_up(Path(folder), args.tokens, vocab)
            store = Store.open(folder)
        else:
            store = Store.open(args.store)
            vocab = store.tokenizer().vocab
        rows = Wrap(length=args.length, remainder="drop").over(store.stream("train"), vocab)
        return _measured(args, rows, Path(folder) / "arrow")


def _measured(args: Any, rows: RowSet, folder: Path) -> dict[str, Any]:
    loader = TrainLoader(rows, args.batch, 0)
    mesh = MeshShape(data=1).build(jax.devices()[:1])
    state = {"at": 0}
    with harness.working("reading everything once"):
        for some in rows.chunks():
            some.tokens.max()

    def alone() -> np.ndarray:
        batch = loader.batch_at(state["at"])
        state["at"] += args.batch
        return batch["tokens"]

    prefetcher = loader.iterate(0, lambda batch: jax.block_until_ready(put_on_mesh(mesh, batch)))
    cases: dict[str, Callable[[], Any]] = {
        "mdlm": alone,
        "mdlm, on the device": lambda: next(prefetcher)[1],
        "datasets": other_reader(rows, folder, args.batch),
    }
    if not args.no_step:
        from benchmarks.train_step import Ours

        cases["training step"] = Ours(synthetic.experiment(args), args.vocab).step
    try:
        times = harness.alternate(cases, rounds=args.rounds, seconds=args.seconds)
    finally:
        prefetcher.close()
    positions = args.batch * args.length
    table = []
    for name, seconds in times.items():
        typical = harness.median(seconds)
        step = times.get("training step")
        table.append({
            "case": name,
            "tokens/s": positions / typical,
            "ms/batch": 1e3 * typical,
            "IQR ms": 1e3 * harness.spread(seconds),
            "x step": harness.ratio(step, seconds) if step else None,
            "x datasets": harness.ratio(times["datasets"], seconds),
            "seconds": seconds,
        })  # fmt: skip
    total = len(rows) * args.length
    title = (
        f"Loading: batches of {args.batch} rows of {args.length} tokens, shuffled,"
        f" from {total:,} tokens"
    )
    facts = {"store": args.store or "made up", "tokens": total, "others": times.others}
    return harness.report(title, table, args.json, **facts)


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
