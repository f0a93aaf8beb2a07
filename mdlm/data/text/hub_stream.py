"""Rows of a Hugging Face data set that come over the network: kept in order, and gone on with.

A stream's place is the library's own state, which is costly to copy: it is taken now and then, and
a row's position is the last one taken and the number of rows behind it.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from mdlm.errors import InputError

STATE_EVERY = 1000
"""Rows between two states; so many are read again, at most, where a stream is gone on with."""
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds before each new attempt in a row to reach a stream that broke off."""
NETWORK = (
    "aiohttp", "botocore", "fsspec", "gcsfs", "http", "httpcore", "httpx", "huggingface_hub",
    "requests", "s3fs", "urllib3",
)  # fmt: skip
"""Packages whose errors may pass when one waits."""
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

log = logging.getLogger(__name__)


def stream(
    open_rows: Callable[[], Any], position: dict[str, Any], name: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row, and the position after it: `{"state", "behind", "row"}`, JSON.

    `open_rows` makes the `datasets.IterableDataset` anew. Where the connection is lost it is made
    again and gone on with, after longer and longer waits; InputError, saying how far it came, when
    these have no end, and at once for what no waiting mends.
    """
    state, behind, row = position["state"], position["behind"], position["row"]
    failures = 0
    while True:
        try:
            rows = open_rows()
            if state is not None:
                rows.load_state_dict(state)
            found = iter(rows)
            passed = sum(1 for _ in itertools.islice(found, behind))
            if passed < behind:
                raise InputError(f"{name} has ended before row {row}, where it was read on from")
            for values in found:
                failures, row, behind = 0, row + 1, behind + 1
                if row % STATE_EVERY == 0:  # the same rows, wherever it was gone on from
                    state, behind = rows.state_dict(), 0
                yield values, {"state": state, "behind": behind, "row": row}
            return
        except Exception as error:  # every library below has its own kinds
            if isinstance(error, InputError) and not may_pass(error.__cause__):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if not may_pass(error):
                raise InputError(f"{name} cannot be read behind row {row}: {reason}") from error
            if failures == len(WAITS):
                raise InputError(
                    f"{name}: connection lost behind row {row}, and {failures} attempts to go on "
                    f"failed ({reason}); the same command continues from what is finished"
                ) from error
            wait = WAITS[failures]
            failures += 1
            log.warning("%s: connection lost behind row %d (%s)", name, row, reason)
            log.warning("attempt %d of %d to go on in %.0f s", failures, len(WAITS), wait)
            time.sleep(wait)


def may_pass(error: BaseException | None) -> bool:
    """Whether an error, or what it was caused by, is one of a network."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, LASTING):
            return False
        if isinstance(error, (OSError, EOFError)):
            return True
        if type(error).__module__.partition(".")[0] in NETWORK:
            return True
        error = error.__cause__ or error.__context__
    return False
