"""text8: the first 100 million characters of a cleaned Wikipedia dump, a to z and space."""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mdlm.data.text.source import SPLITS, Source
from mdlm.errors import InputError

SIZES = {"train": 90_000_000, "valid": 5_000_000, "test": 5_000_000}
"""Characters of each split, in file order, as in all published results."""
SYMBOLS = b"abcdefghijklmnopqrstuvwxyz "


@dataclass(frozen=True, kw_only=True)
class Text8File(Source):
    """The file `text8`, or `text8.zip` with it inside (http://mattmahoney.net/dc/text8.zip).

    `path` is where it lies. Each split is one document. Reading it raises InputError if the file
    has another size or other characters, for example after an interrupted download.
    """

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str = "text8"

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    @property
    def name(self) -> str:
        return f"text8 in {self.path}"

    def _documents(self, split: str) -> list[str]:
        data = self._read()
        total = sum(SIZES.values())
        if len(data) != total:
            raise InputError(
                f"{self.path} has {len(data):,} bytes, text8 has {total:,}: download it again"
            )
        wrong = data.translate(None, SYMBOLS)
        if wrong:
            at = data.index(wrong[:1])
            raise InputError(
                f"{self.path}: {chr(wrong[0])!r} at byte {at} is neither a to z nor a space"
            )
        start = sum(SIZES[before] for before in SPLITS[: SPLITS.index(split)])
        return [data[start : start + SIZES[split]].decode("ascii")]

    def _read(self) -> bytes:
        path = Path(os.path.expanduser(self.path))
        try:
            if path.suffix != ".zip":
                return path.read_bytes()
            with zipfile.ZipFile(path) as packed:
                return packed.read("text8")
        except (zipfile.BadZipFile, KeyError) as error:
            raise InputError(f"{self.path} cannot be unpacked: {error}") from error
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from error
