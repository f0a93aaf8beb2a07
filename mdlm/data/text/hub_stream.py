"""Rows of a Hugging Face data set read over the network, in order, and resumed when it fails.

The library's state of a stream is costly to copy, so it is saved only once in `STATE_EVERY` rows. A
row's position is the last saved state and the number of rows after it.
"""

import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from mdlm.errors import InputError

STATE_EVERY = 1000
"""Rows between two saved states: at most so many are read again when a stream is resumed."""
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds before each successive attempt to reconnect."""
ANSWER = 5.0
"""Seconds that the hub has to answer when it is first asked."""
NETWORK = (
    "aiohttp", "botocore", "fsspec", "gcsfs", "http", "httpcore", "httpx", "huggingface_hub",
    "requests", "s3fs", "urllib3",
)  # fmt: skip
"""Packages whose errors may be temporary."""
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

log = logging.getLogger(__name__)


def stream(
    open_rows: Callable[[], Any], position: dict[str, Any], name: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yields each row and the position after it: `{"state", "behind", "row"}`, JSON.

    `state` is the last saved state, `behind` the number of rows read since, `row` the number of
    rows read in all. `open_rows` opens the `datasets.IterableDataset`. When the connection is
    lost, it is opened again and resumed, after longer and longer waits.

    Raises InputError if all attempts fail, or at once for an error that is not temporary.
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
                raise InputError(f"{name} ended before row {row}, from which reading was resumed")
            for values in found:
                failures, row, behind = 0, row + 1, behind + 1
                if row % STATE_EVERY == 0:  # the same rows wherever the stream was resumed
                    state, behind = rows.state_dict(), 0
                yield values, {"state": state, "behind": behind, "row": row}
            return
        except Exception as error:  # every library below raises its own kinds of errors
            if isinstance(error, InputError) and not may_pass(error.__cause__):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if not may_pass(error):
                raise InputError(f"{name} cannot be read after row {row}: {reason}") from error
            if failures == len(WAITS):
                raise InputError(
                    f"{name}: connection lost after row {row}, and {failures} attempts to "
                    f"reconnect failed ({reason}); run the same command again to resume"
                ) from error
            wait = WAITS[failures]
            failures += 1
            log.warning("%s: connection lost after row %d (%s)", name, row, reason)
            log.warning("attempt %d of %d to reconnect in %.0f s", failures, len(WAITS), wait)
            time.sleep(wait)


@functools.cache
def hub_trouble() -> str | None:
    """Asks the hub once whether it can be reached; returns the reason if not, else None.

    If not, the libraries read what they have kept, and do not try again and again.
    """
    import huggingface_hub
    from datasets import config
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        try:
            huggingface_hub.utils.get_session().head(constants.ENDPOINT, timeout=ANSWER)
            return None
        except Exception as error:  # of whatever library asks
            constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
            return (str(error).strip() or type(error).__name__).splitlines()[0]
    return "HF_HUB_OFFLINE is set"


def may_pass(error: BaseException | None) -> bool:
    """Returns whether an error, or one that caused it, may be temporary, as network errors are."""
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
