"""From text to a token store: read in order, tokenized by several workers, written in order.

The result depends on the text, the tokenizer and `shard_tokens` alone: not on the number of
workers, nor on how often the work was interrupted (except `position` in the manifest: a stream of
the hub may describe the same position in several ways). After an interruption, finished shards
stay, and the next call resumes after the last of them.
"""

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mdlm.config.component_text import to_text
from mdlm.config.records import is_same
from mdlm.data.dataset import TextData
from mdlm.data.preparation.comparing import compare
from mdlm.data.preparation.pool import Pool, cores
from mdlm.data.preparation.worker import Setting
from mdlm.data.store.manifest import NAME, Manifest, SplitRecord
from mdlm.data.store.writer import Folder, ShardWriter, Tally, verify, write_counts
from mdlm.data.text.chunks import CHUNK, Chunk, chunks, start_of
from mdlm.data.text.hub_stream import may_pass
from mdlm.data.text.source import Source
from mdlm.data.tokenizers import TokenizerConfig
from mdlm.data.tokens.tokenizer import FILES, Report, Tokenizer
from mdlm.errors import InputError

SHARD_TOKENS = 2**26
"""Approximate tokens of a shard."""
MOST_WORKERS = 1024
TRAINING_CHUNK = 2**20
"""Approximate characters of a chunk of text when a tokenizer is trained."""
WORDS = re.compile(r"(?<=\S) ")
"""A space before which every trained tokenizer ends a word (`tokens.cuts.safe_cut`)."""


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """The state of a split so far, in shards finished or not; `done` is the fraction of its text,
    if known."""

    split: str
    documents: int
    tokens: int
    bytes: int
    done: float | None

    @classmethod
    def of(
        cls, split: str, record: SplitRecord, writer: ShardWriter, done: float | None
    ) -> "Progressed":
        """Adds the shard that is being written to those of the record."""
        return cls(
            split=split,
            documents=record.total("documents") + writer.documents,
            tokens=record.total("tokens") + writer.tokens,
            bytes=record.total("bytes") + writer.bytes,
            done=done,
        )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The store is complete. `is_new`: shards were written by this call. `unknown` has, by split,
    the number of unknown tokens; it is empty if the tokenizer has no such token. `not_compared` is
    the reason why the text could not be compared with that of the shards, None if it was."""

    manifest: Manifest
    is_new: bool
    unknown: dict[str, int] = field(default_factory=dict)
    not_compared: str | None = None


def prepare(
    data: TextData,
    url: str,
    *,
    workers: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    report: Report | None = None,
) -> Iterator[Progressed | Prepared]:
    """Makes the token store of `data` at `url`, or resumes it; the last event is Prepared.

    `workers` processes tokenize (default: one for each core). A complete store is verified and not
    changed; its text may be gone. Raises InputError if the store has another source, tokenizer or
    EOS, the text of its shards has changed, shards are damaged, or text cannot be read or encoded.
    """
    workers = cores() if workers is None else workers
    if not 1 <= workers <= MOST_WORKERS:
        raise InputError(f"workers={workers}: must be from 1 to {MOST_WORKERS}")
    if shard_tokens < 1:
        raise InputError(f"shard_tokens={shard_tokens}: must be at least 1")
    folder = Folder(url)
    with _writing(folder), contextlib.ExitStack() as stack:
        stack.enter_context(folder.locked())
        folder.remove_parts()
        manifest, tokenizer = _begun(data, folder, report)
        splits = tuple(manifest.splits)
        tallies = {split: verify(folder, manifest, split, report) for split in splits}
        todo = [split for split in splits if not manifest.splits[split].complete]
        not_compared = compare(data.source, folder, manifest, report)
        if todo and not_compared is not None:
            raise InputError(not_compared)
        if todo:
            dtype = manifest.stored_dtype.str
            setting = Setting(tokenizer=tokenizer.files(), eos=manifest.eos, dtype=dtype)
            pool = stack.enter_context(Pool(workers, setting))
            for split in todo:
                tally = tallies[split]
                yield from _write(data.source, split, folder, tokenizer, tally, pool, shard_tokens)
        manifest = _known(folder)
        assert manifest is not None
        for split in splits:
            write_counts(folder, split, tallies[split].counts)
    unk = tokenizer.unk_id
    unknown = {} if unk is None else {s: int(tallies[s].counts[unk]) for s in splits}
    yield Prepared(manifest=manifest, is_new=bool(todo), unknown=unknown, not_compared=not_compared)


def _write(
    source: Source,
    split: str,
    folder: Folder,
    tokenizer: Tokenizer,
    tally: Tally,
    pool: Pool,
    shard_tokens: int,
) -> Iterator[Progressed]:
    """Writes the missing shards of a split, one after the other."""
    manifest, writer = _known(folder), None
    assert manifest is not None
    record = manifest.splits[split]
    dropped, position = Counter(record.dropped), record.position
    pieces = source.pieces(split, start_of(position))
    size = min(CHUNK, shard_tokens)
    found = chunks(pieces, tokenizer.cut_before, position, size=size)

    def keep(**changes: Any) -> SplitRecord:
        changed = dataclasses.replace(record, dropped=dict(dropped), **changes)
        splits = {**manifest.splits, split: changed}
        dataclasses.replace(manifest, splits=splits).write(folder.url)
        return changed

    try:
        for chunk, encoded in pool.encode(_resumed(found, record, folder)):
            position = chunk.position
            dropped.update(chunk.dropped)
            if not chunk.texts:
                continue
            if writer is None:
                writer = ShardWriter(folder, f"{split}-{len(record.shards):05d}")
            writer.add(encoded, chunk, tally.add(encoded, manifest.eos))
            yield Progressed.of(split, record, writer, chunk.done)
            if writer.tokens >= shard_tokens:
                shards = (*record.shards, writer.finish())
                writer = None
                record = keep(shards=shards, position=position)
        shards = record.shards
        if writer is not None:
            shards = (*shards, writer.finish())
            writer = None
        write_counts(folder, split, tally.counts)
        keep(shards=shards, position=position, complete=True)
    finally:
        if writer is not None:
            writer.abandon()


def _resumed(found: Iterator[Chunk], record: SplitRecord, folder: Folder) -> Iterator[Chunk]:
    """Yields the chunks. Raises InputError if the manifest's position is none of this source."""
    try:
        first = next(found, None)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        if record.position is None or isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder.url}/{NAME}: the position in the text is damaged: prepare another store"
        ) from error
    if first is not None:
        yield first
        yield from found


def _begun(data: TextData, folder: Folder, report: Report | None) -> tuple[Manifest, Tokenizer]:
    """Returns the manifest and the tokenizer of a store; makes them if it is new."""
    manifest = _known(folder)
    if manifest is None:
        return _new(data, folder, report)
    tokenizer = tokenizer_of(folder)
    _check(data, folder, manifest, tokenizer)
    manifest = _whole(data.source, folder, manifest)
    if not all(record.complete for record in manifest.splits.values()):
        version = data.source.version()
        if version is not None and manifest.revision not in (None, version):
            raise InputError(
                f"{folder.url} was begun with another version of {data.source.name} (then "
                f"{manifest.revision}, now {version}): restore that, or prepare another store"
            )
    return manifest, tokenizer


def _whole(source: Source, folder: Folder, manifest: Manifest) -> Manifest:
    """Returns the manifest with all splits of the source: those that it lacks have yet to be made.

    A complete store does not need its source.
    """
    missing = {split: SplitRecord() for split in source.lacking(manifest.splits)}
    if missing:
        manifest = dataclasses.replace(manifest, splits={**manifest.splits, **missing})
        manifest.write(folder.url)
    return manifest


def _new(data: TextData, folder: Folder, report: Report | None) -> tuple[Manifest, Tokenizer]:
    ours = {*FILES, ".lock", f".{NAME}"}
    others = sorted(set(folder.names()) - ours)
    if others:
        raise InputError(
            f"{folder.url} has {others[0]} and no {NAME}, so it is not a token store: name an "
            "empty or a new folder"
        )
    data.source.check_apart()
    splits = data.source.splits
    texts = training_text(data.source) if data.tokenizer.needs_text else ()
    tokenizer = data.tokenizer.build(texts, report)
    manifest = Manifest(
        source=to_text(data.source),
        revision=data.source.version(),
        tokenizer=to_text(data.tokenizer),
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab.size,
        eos=data.packing.separator(tokenizer.vocab),
        dtype="uint16" if tokenizer.vocab.size <= 2**16 else "uint32",
        splits={split: SplitRecord() for split in splits},
    )
    if folder.exists("tokenizer.json"):
        _check_tokenizer(data, folder, tokenizer_of(folder))
    for name, text in tokenizer.files().items():
        folder.write(name, text.encode())
    manifest.write(folder.url)
    return manifest, tokenizer


def _check(data: TextData, folder: Folder, manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Raises InputError if a store has another source, tokenizer or EOS than an experiment."""
    if not is_same(manifest.source, data.source, Source):
        raise InputError(
            f"{folder.url} was made from {manifest.source}, this experiment has "
            f"{to_text(data.source)}: name another store"
        )
    _check_tokenizer(data, folder, tokenizer)
    if tokenizer.fingerprint != manifest.fingerprint:
        raise InputError(
            f"{folder.url}: its tokenizer is not the one of its tokens (fingerprint "
            f"{tokenizer.fingerprint[:12]}, not {manifest.fingerprint[:12]}): put it back"
        )
    eos = data.packing.separator(tokenizer.vocab)
    if eos != manifest.eos:
        there, here = ("no EOS" if e is None else f"EOS {e}" for e in (manifest.eos, eos))
        raise InputError(
            f"{folder.url} has {there} after each document, this experiment's packing asks for "
            f"{here}: name another store"
        )


def _check_tokenizer(data: TextData, folder: Folder, tokenizer: Tokenizer) -> None:
    if not is_same(tokenizer.made_by, data.tokenizer, TokenizerConfig):
        raise InputError(
            f"{folder.url} was made with the tokenizer {tokenizer.made_by}, this experiment has "
            f"{to_text(data.tokenizer)}: name another store"
        )


def training_text(source: Source) -> Iterator[str]:
    """Yields the training text, for training a tokenizer, in parts that end where words end."""
    for chunk in chunks(source.pieces("train"), WORDS, size=TRAINING_CHUNK, limit=2**60):
        yield from chunk.texts


def tokenizer_of(folder: Folder) -> Tokenizer:
    """Returns the tokenizer of a store. Raises InputError if it cannot be read."""
    try:
        return Tokenizer.from_files({name: folder.read(name).decode() for name in FILES})
    except OSError as error:
        raise InputError(
            f"{folder.url}: its tokenizer cannot be read: {error.strerror or error}"
        ) from error
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"{folder.url}: its tokenizer cannot be read: {error}") from error


def _known(folder: Folder) -> Manifest | None:
    return Manifest.read(folder.url)


@contextlib.contextmanager
def _writing(folder: Folder) -> Iterator[None]:
    """Turns errors of writing (disk full, no permission, network lost) into one InputError line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not may_pass(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise InputError(
            f"{folder.url} cannot be used: {reason.splitlines()[0]}: finished shards stay; run "
            "the same command again to resume"
        ) from error
