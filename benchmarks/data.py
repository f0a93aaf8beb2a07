"""Speed of `mdlm prepare`, compared with `datasets.map` with the same tokenizer.

    python -m benchmarks.data /work/shared/corpora/books          # a folder with train-*.txt.gz
    python -m benchmarks.data FOLDER --megabytes 40 --vocab 8192

Text of `--megabytes` is cut into documents of about `--document` characters, at line ends, and a
byte-level BPE is trained on it. `prepare` reads them from a `.jsonl` file, tokenizes, and writes a
store with checksums. `datasets.map` has them in an Arrow table in memory, tokenizes, and writes its
own Arrow file; it calls the tokenizer with a thousand documents at a time. Both run with one
process and with one process per core.

"MB/s" is text (UTF-8) per second; "MB/s per core" is text per second of processor time, including
all child processes and their start; "x map" is the speed relative to `datasets.map` with the same
number of processes, and "x map per core" the same for processor time (medians of the rounds).
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from mdlm.data.dataset import TextData
from mdlm.data.packing import Wrap
from mdlm.data.preparation.pool import cores
from mdlm.data.preparation.prepare import prepare
from mdlm.data.sources import TextFiles
from mdlm.data.tokenizers import BPE, Pretrained

SIZES = {"megabytes": 20, "vocab": 8192, "document": 4000}


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark; returns the report."""
    parser = harness.parser("data", __doc__, **SIZES)
    parser.add_argument("corpus", help="a folder with text files train-*.txt.gz")
    parser.set_defaults(rounds=3)
    args = parser.parse_args(argv)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # compare processes, not threads
    with tempfile.TemporaryDirectory() as folder:
        return measured(args, Path(folder))


def measured(args: Any, folder: Path) -> dict[str, Any]:
    """Times both on the same documents, in turns."""
    import datasets

    datasets.disable_progress_bars()
    # `datasets.map` forks, and JAX, used here only to describe the machine, has threads.
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
    with harness.working("reading and training the tokenizer"):
        documents = list(cut(args.corpus, args.megabytes * 10**6, args.document))
        rows = datasets.Dataset.from_dict({"text": documents})
        rows.to_json(folder / "text.jsonl", force_ascii=False)
        tokenizer = BPE(vocab_size=args.vocab).build(documents)
    tokenizer.save(folder / "tokenizer")
    size, backend = sum(len(text.encode()) for text in documents), tokenizer.backend
    files = str(folder / "text.jsonl")
    data = TextData(
        source=TextFiles(train=files, valid_fraction=0, test_fraction=0),
        tokenizer=Pretrained(name=str(folder / "tokenizer")),
        packing=Wrap(length=1024),
    )
    made: dict[str, Any] = {}

    def ours(workers: int) -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        *_, made["prepare"] = prepare(data, str(folder / "store"), workers=workers)

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = backend.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"input_ids": [encoding.ids for encoding in found]}

    def theirs(workers: int) -> None:
        made["map"] = rows.map(
            encode,
            batched=True,
            remove_columns=["text"],
            num_proc=None if workers == 1 else workers,
            load_from_cache_file=False,
            cache_file_name=str(folder / "map.arrow"),
        )

    used: dict[str, list[float]] = {}
    cases: dict[str, Callable[[], None]] = {}
    pairs = [(kind, n) for n in sorted({1, cores()}) for kind in ("prepare", "datasets.map")]
    for kind, workers in pairs:
        case = f"{kind}, {workers} process{'es' if workers > 1 else ''}"
        used[case] = []
        cases[case] = timed(ours if kind == "prepare" else theirs, workers, used[case])
    times = harness.alternate(cases, rounds=args.rounds, calls=1)

    split = made["prepare"].manifest.splits["train"]
    tokens = split.total("tokens") - len(documents)
    theirs_tokens = sum(len(ids) for ids in made["map"]["input_ids"])
    assert tokens == theirs_tokens, (tokens, theirs_tokens)
    table, mb = [], size / 1e6
    for (kind, _), case in zip(pairs, cases, strict=True):
        rival = case.replace(kind, "datasets.map")
        seconds = harness.median(times[case])
        table.append({
            "case": case,
            "MB/s": mb / seconds,
            "MB/s per core": mb / harness.median(used[case]),
            "tokens/s": tokens / seconds,
            "s": seconds,
            "IQR s": harness.spread(times[case]),
            "x map": harness.ratio(times[rival], times[case]),
            "x map per core": harness.ratio(used[rival], used[case]),
            "seconds": times[case],
            "processor_seconds": used[case],
        })  # fmt: skip
    title = (
        f"Tokenizing {mb:.1f} MB of text, {len(documents):,} documents, {tokens:,} tokens of a BPE "
        f"of {tokenizer.vocab.size:,}"
    )
    sizes = {name: getattr(args, name) for name in SIZES}
    return harness.report(
        title, table, args.json, sizes=sizes, bytes=size, tokens=tokens, others=times.others
    )


def cut(corpus: str, total: int, length: int) -> Iterator[str]:
    """Documents of about `length` characters each, `total` characters in all if available."""
    source = TextFiles(train=f"{corpus}/train-*.txt.gz", valid_fraction=0, test_fraction=0)
    for piece in source.pieces("train"):
        lines: list[str] = []
        for line in piece.text.splitlines(keepends=True):
            lines.append(line)
            if sum(map(len, lines)) >= length:
                text, lines = "".join(lines), []
                total -= len(text)
                yield text
                if total <= 0:
                    return


def timed(call: Callable[[int], None], workers: int, used: list[float]) -> Callable[[], None]:
    """The call, which also records its processor seconds, child processes included."""

    def case() -> None:
        before = sum(os.times()[:4])
        call(workers)
        used.append(sum(os.times()[:4]) - before)

    return case


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
