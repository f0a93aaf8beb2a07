"""Limits on what a file may ask for. Each may be raised by the variable of the environment that
bears its name, for a file that one trusts."""

import os

from mdlm.errors import InputError

LIMITS = {
    "MDLM_MAX_DOCUMENT": 2**30,  # bytes of a line of .jsonl, or of a row of Parquet
    "MDLM_MAX_EXPANSION": 1000,  # bytes of text for each byte of a packed file
    "MDLM_MAX_PIECE": 1000,  # characters of a token in a trace
    "MDLM_MAX_LENGTH": 2**20,  # tokens of a text in a trace
}
"""The limits, by name."""


def limit(name: str) -> int:
    """Returns a limit. Raises InputError if the environment has no whole number for it."""
    given = os.environ.get(name) or str(LIMITS[name])
    if not given.isdecimal() or len(given) > 18:
        raise InputError(f"{name}={given:.40}: must be a whole number, at least 0")
    return int(given)


def check_within(name: str, found: int, title: str) -> None:
    """Raises InputError, which begins with the title, if a number is above a limit."""
    if found > (most := limit(name)):
        raise InputError(
            f"{title} has {found:,}, above the limit of {most:,}; if you trust the file, raise it:"
            f" {name}={10 * found}"
        )
