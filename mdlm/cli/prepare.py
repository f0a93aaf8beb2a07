"""`mdlm prepare`."""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mdlm.cli.common import Command, add_experiment
from mdlm.cli.progress import Progress
from mdlm.errors import InputError

if TYPE_CHECKING:  # what a `--help` need not wait for
    from mdlm.data.preparation.prepare import Prepared, Progressed


def run(args: argparse.Namespace, changes: list[tuple[str, str]]) -> int:
    from mdlm.config.overrides import apply
    from mdlm.data.mixture import Mixture
    from mdlm.data.preparation.prepare import SHARD_TOKENS, Prepared
    from mdlm.data.preparation.prepare import prepare as prepared
    from mdlm.experiment.experiment import Experiment
    from mdlm.experiment.loading import load_data_file

    loaded = apply(load_data_file(args.experiment), changes)
    data = loaded.data
    if isinstance(data, Mixture):
        raise InputError(
            f"{args.experiment}: its data are a mixture; prepare each part from a file of its own, "
            "which defines data = TextData(...)"
        )
    store = args.out or data.store
    if store is None:
        raise InputError(
            "where shall the store be? name it: --out stores/NAME, or store=... in TextData(...)"
        )
    start, finished = time.monotonic(), None
    shard_tokens = SHARD_TOKENS if args.shard_tokens is None else args.shard_tokens
    try:
        with _stopped_at_once(), Progress() as progress:
            speed = Speed()
            for event in prepared(
                data,
                store,
                workers=args.workers,
                shard_tokens=shard_tokens,
                report=progress.stage,
            ):
                if isinstance(event, Prepared):
                    finished = event
                else:
                    progress.share(f"preparing {event.split}", event.done, speed.words(event))
    except Stopped as stopped:
        again = " ".join(["mdlm", *sys.argv[1:]])
        print(f"mdlm: stopped; {kept(store)}; to continue: {again}", file=sys.stderr)
        return 128 + stopped.signal
    assert finished is not None
    print(closing_words(finished, store, time.monotonic() - start))
    if isinstance(loaded, Experiment):
        others = [word for name, value in changes for word in (f"--{name}", value)]
        words = ["mdlm", "train", args.experiment, "--data.store", store, *others]
        print(f"next: {shlex.join(words)}")
    else:
        print(f"next: an experiment with data=TextData(..., store={store!r})")
    return 0


class Speed:
    """How fast a split is being prepared, since it was begun or gone on with."""

    def __init__(self):
        self._first: Progressed | None = None
        self._start = time.monotonic()

    def words(self, event: "Progressed") -> str:
        """Documents, and tokens, per second, MB/s, and how long it will take."""
        now, first = time.monotonic(), self._first
        if first is None or first.split != event.split:
            self._first, self._start = event, now
            return f"{event.tokens:,} tokens"
        seconds = max(now - self._start, 1e-3)
        words = (
            f"{event.tokens:,} tokens, {(event.documents - first.documents) / seconds:,.0f} "
            f"documents/s, {(event.tokens - first.tokens) / seconds:,.0f} tokens/s, "
            f"{(event.bytes - first.bytes) / seconds / 1e6:.1f} MB/s"
        )
        if event.done is None or first.done is None or event.done <= first.done:
            return words
        left = seconds * (1 - event.done) / (event.done - first.done)
        return f"{words}, {duration(left)} left"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def closing_words(prepared: "Prepared", store: str, seconds: float) -> str:
    """What the store holds, and what was left out."""
    manifest, lines = prepared.manifest, []
    if prepared.is_new:
        lines.append(f"{store} is complete ({duration(seconds)})")
    else:
        lines.append(f"{store} was complete; all of its shards are as they were written")
    for split, record in manifest.splits.items():
        tokens, size = record.total("tokens"), record.total("bytes")
        shards = f"{len(record.shards)} shard{'' if len(record.shards) == 1 else 's'}"
        lines.append(
            f"  {split:5s}  {record.total('documents'):,} documents, {tokens:,} tokens, "
            f"{size:,} bytes ({size / max(tokens, 1):.2f} per token), {shards}"
        )
        notes = [f"{count:,} dropped: {reason}" for reason, count in record.dropped.items()]
        if record.total("empty"):
            notes.append(f"{record.total('empty'):,} empty, kept")
        lines += [f"         {note}" for note in notes]
    after = "nothing" if manifest.eos is None else f"EOS ({manifest.eos})"
    lines.append(
        f"  vocabulary of {manifest.vocab_size:,}, {manifest.dtype}, {after} after each document"
    )
    return "\n".join(lines)


def kept(store: str) -> str:
    """How much of a store is finished, in words."""
    from mdlm.data.store.manifest import Manifest

    manifest = Manifest.read(store)
    if manifest is None:
        return "nothing was written yet"
    records = manifest.splits.values()
    shards = sum(len(record.shards) for record in records)
    tokens = sum(record.total("tokens") for record in records)
    return f"{store} keeps {shards} finished shard(s), {tokens:,} tokens"


class Stopped(BaseException):
    """A signal to stop."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


@contextmanager
def _stopped_at_once() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise Stopped: what is finished is safe at every moment."""

    def stop(number, frame):
        raise Stopped(number)

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


PREPARE_HELP = """\
examples:
  mdlm prepare books --out stores/books
  mdlm prepare owt_small --out gs://bucket/owt --workers 32
  mdlm prepare data.py --data.source.train 'books/*.parquet' --data.tokenizer.vocab_size 8192

Of an experiment only the data matter; a file with `data = TextData(...)` alone is enough. The store
holds the tokens of every split, an EOS after each document, and the tokenizer; the length of rows
is chosen when it is read, so one store serves many experiments. Train on it with
`TextData(..., store=STORE)`, or with `mdlm train EXPERIMENT --data.store STORE`.

Interrupted, by whatever, the same command goes on behind the last finished shard, and the store is
the same to the byte in the end, with any number of workers. A finished store is read through, and
left as it is. A store of another source or tokenizer is refused."""


def arguments(sub: argparse.ArgumentParser) -> None:
    add_experiment(sub)
    sub.add_argument(
        "--out", metavar="STORE", help="folder, or a URL such as gs://... (default: data.store)"
    )
    sub.add_argument(
        "--workers", type=int, metavar="N", help="processes that tokenise (default: one per core)"
    )
    sub.add_argument(
        "--shard-tokens",
        type=int,
        metavar="N",
        help="tokens of a shard, about (default: 67 million); no more is lost when interrupted",
    )


COMMAND = Command(
    name="prepare",
    help="turn text into a token store, once",
    epilog=PREPARE_HELP,
    arguments=arguments,
    run=run,
    takes_settings=True,
    computes=False,
)
