"""Checksums of files, which say whether a text is still the one that was read."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mdlm.data.text.files import matching_files

DIGEST = "sha256:"
"""How a checksum of the contents of files begins."""


def digest_of(groups: Iterable[Iterable[str]]) -> str:
    """Returns a checksum of the names and contents of the files of each group of patterns.

    Files are read side by side, at the speed of the disk.
    """
    paths = [matching_files(patterns) for patterns in groups]

    def contents(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as pool:
        found = [list(pool.map(contents, group)) for group in paths]
    state = hashlib.sha256()
    for group, digests in zip(paths, found, strict=True):
        for path, digest in zip(group, digests, strict=True):
            state.update(f"{path.name}\0{digest}\0".encode(errors="surrogateescape"))
        state.update(b"\1")
    return DIGEST + state.hexdigest()
