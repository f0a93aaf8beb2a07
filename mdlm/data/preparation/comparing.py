"""Compares a text with that of a store's shards, when a store is resumed or verified."""

from collections.abc import Iterable, Iterator

from mdlm.data.store.manifest import Manifest, SplitRecord
from mdlm.data.store.text_digest import TextDigest
from mdlm.data.store.writer import Folder
from mdlm.data.text.files import Piece
from mdlm.data.text.source import Source
from mdlm.data.tokens.tokenizer import Report
from mdlm.errors import InputError


def compare(
    source: Source, folder: Folder, manifest: Manifest, report: Report | None
) -> str | None:
    """Compares the text with that of the finished shards; returns why not, if it cannot be read.

    Raises InputError if it has changed.
    """
    for split, record in manifest.splits.items():
        if not record.shards or not source.is_near:
            continue
        try:
            pieces = source.pieces(split)
            where = changed_in(_told(pieces, f"comparing the text of {split}", report), record)
        except (InputError, OSError) as error:
            return str(error)
        if where is not None:
            remedy = "restore it" if not record.complete else f"delete {folder.url} to make it anew"
            raise InputError(
                f"{folder.url} was made from another text of {source.name} (it differs {where}):"
                f" {remedy}, or prepare another store"
            )
    return None


def _told(pieces: Iterator[Piece], task: str, report: Report | None) -> Iterator[Piece]:
    """Yields the pieces and reports, in percent, how many of them were read."""
    for piece in pieces:
        if report and piece.done is not None:
            report(f"{task}, %", round(100 * piece.done), 100)
        yield piece


def changed_in(pieces: Iterable[Piece], record: SplitRecord) -> str | None:
    """Returns where a split's text, read from its beginning, is not that of its finished shards.

    None if it is the same. Behind the shards of a split that is not complete it may be any text.
    """
    left, read = list(record.shards), TextDigest()
    if all(shard.text_sha256 is None for shard in left):
        return None
    behind = f"behind {left[-1].name}" if record.complete else None
    for piece in pieces:
        text = piece.text
        while text or (piece.ends and left and read.documents == left[0].documents):
            room = left[0].characters - read.characters if left else 0
            if text and room:
                read.add(text[:room])
                text = text[room:]
                continue
            if not left:
                return behind
            if not read.is_of(left[0]):
                return f"in {left[0].name}"
            del left[0]
            read = TextDigest()
        if piece.ends:
            if not left:
                return behind
            read.end()
    if left and not read.is_of(left[0]):
        return f"in {left[0].name}"
    return f"in {left[1].name}" if left[1:] else None
