"""A worker process that tokenizes: it reads chunks of text and writes tokens until the input ends.

    python -m mdlm.data.preparation.worker

It is a separate program, so it neither imports nor copies anything of the process that starts it.
JAX is not imported either: it costs 0.4 s and 115 MB per worker.
"""

import os
import pickle
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from mdlm.data.text.chunks import Encoded
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The first message to a worker. `eos` is added after each document; `dtype` is the shards'."""

    tokenizer: dict[str, str]  # `Tokenizer.files`
    eos: int | None
    dtype: str


def encode(tokenizer: Tokenizer, setting: Setting, texts: tuple[str, ...], is_open: bool):
    """Returns the tokens of a chunk. Raises InputError if `Tokenizer.encode` does."""
    parts = tokenizer.encode(list(texts))
    stop = np.array([] if setting.eos is None else [setting.eos], np.int32)
    ended = len(parts) - is_open
    sizes = np.array([len(part) for part in parts[:ended]], np.int64) + len(stop)
    joined = [x for i, part in enumerate(parts) for x in ((part, stop) if i < ended else (part,))]
    tokens = np.concatenate(joined) if joined else np.zeros(0, np.int32)
    return Encoded(
        tokens=tokens.astype(setting.dtype),
        ends=np.cumsum(sizes),
        bytes=sum(len(text.encode()) for text in texts),
    )


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answers each `(texts, is_open)` with an Encoded, or with the message of an InputError."""
    setting: Setting | None = _next(source)
    if setting is None:
        return
    tokenizer = Tokenizer.from_files(setting.tokenizer)
    while (found := _next(source)) is not None:
        texts, is_open = found
        try:
            answer: Encoded | str = encode(tokenizer, setting, texts, is_open)
        except InputError as error:
            answer = str(error)
        pickle.dump(answer, sink, protocol=pickle.HIGHEST_PROTOCOL)
        sink.flush()


def _next(source: BinaryIO) -> Any:
    """Returns the next message; None where they end, which may be within one."""
    try:
        return pickle.load(source)
    except (EOFError, pickle.UnpicklingError):
        return None


if __name__ == "__main__":
    from mdlm.data.preparation import worker  # under the module name that the pickles use

    # Output printed by libraries must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker.serve(sys.stdin.buffer, answers)
