"""`mdlm prepare`."""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mdlm.cli.arguments import add_experiment, typed, whole
from mdlm.cli.command import Changes, Command
from mdlm.cli.progress import Progress
from mdlm.errors import InputError

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.data.preparation.prepare import Prepared, Progressed


def run(args: argparse.Namespace, changes: Changes) -> int:
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
            f"{args.experiment}: its data are a mixture; prepare each part separately, from a file "
            "that defines data = TextData(...)"
        )
    store = data.store if args.out is None else args.out
    if not store and args.out is not None:
        raise InputError("--out '': is no name of a folder")
    if store is None:
        raise InputError(
            f"{args.experiment}: no folder for the token store is given; add --out stores/NAME, or "
            "store=... in its TextData(...)"
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
        again = typed(sys.argv[1:])
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
    """Speed at which a split is prepared, measured since this command started or resumed it."""

    def __init__(self):
        self._first: Progressed | None = None
        self._start = time.monotonic()

    def words(self, event: "Progressed") -> str:
        """Formats documents, tokens and MB per second, and the time left."""
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
    """Formats seconds as `45 s`, `12 min` or `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def closing_words(prepared: "Prepared", store: str, seconds: float) -> str:
    """Describes what the store holds, and which documents were dropped."""
    manifest, lines = prepared.manifest, []
    if prepared.is_new:
        lines.append(f"{store} is complete ({duration(seconds)})")
    else:
        lines.append(f"{store} was complete already; all its shards match their checksums")
    if prepared.not_compared is not None:
        lines.append(f"  the text could not be compared with it: {prepared.not_compared}")
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
        if prepared.unknown.get(split):
            notes.append(f"{prepared.unknown[split] / tokens:.2%} of the tokens are unknown")
        lines += [f"         {note}" for note in notes]
    after = "nothing" if manifest.eos is None else f"EOS ({manifest.eos})"
    lines.append(
        f"  vocabulary of {manifest.vocab_size:,}, {manifest.dtype}, {after} after each document"
    )
    return "\n".join(lines)


def kept(store: str) -> str:
    """Describes how much of a store is finished."""
    from mdlm.data.store.manifest import Manifest

    manifest = Manifest.read(store)
    if manifest is None:
        return "nothing was written yet"
    records = manifest.splits.values()
    shards = sum(len(record.shards) for record in records)
    tokens = sum(record.total("tokens") for record in records)
    return f"{store} has {shards} finished shard(s), {tokens:,} tokens"


class Stopped(BaseException):
    """Raised by a signal that asks the command to stop."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


@contextmanager
def _stopped_at_once() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM raise Stopped at once: finished shards are always safe on disk."""

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

A token store is a folder that holds the tokens of every split, an EOS after each document, and the
tokenizer. Only the data of the experiment are used; a file with just `data = TextData(...)` is
enough. The length of rows is chosen when a store is read, so one store serves many experiments.
Train on it with `TextData(..., store=STORE)`, or `mdlm train EXPERIMENT --data.store STORE`.

After any interruption the same command resumes behind the last finished shard. The finished store
is the same byte for byte, with any number of workers. A finished store is checked and not changed.
A store made from another source or tokenizer is refused."""


def arguments(sub: argparse.ArgumentParser) -> None:
    add_experiment(sub)
    sub.add_argument(
        "--out",
        metavar="STORE",
        help="store to write: a folder, or a URL such as gs://... (default: data.store)",
    )
    sub.add_argument(
        "--workers",
        type=whole,
        metavar="N",
        help="number of tokenizing processes (default: one per core)",
    )
    sub.add_argument(
        "--shard-tokens",
        type=whole,
        metavar="N",
        help="tokens per shard, approximately (default: 67 million); an interruption loses less "
        "than a shard",
    )


COMMAND = Command(
    name="prepare",
    help="tokenize the text of an experiment once, into a token store on disk",
    epilog=PREPARE_HELP,
    arguments=arguments,
    run=run,
    takes_settings=True,
    computes=False,
    writes_files=True,
)
