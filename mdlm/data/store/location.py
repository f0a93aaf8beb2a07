"""Where a token store is: a folder of this machine, or a URL that fsspec opens."""

from typing import Any

import fsspec

from mdlm.errors import InputError


def opened(url: str) -> tuple[Any, str]:
    """Returns the file system of a store and its path there.

    Raises InputError if no file system has such URLs, its package is missing, or the name is no
    path.
    """
    try:
        url.encode()
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InputError(f"{url}: cannot be opened: {error}") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{url}: a name of a store must be UTF-8: choose another") from error
    except Exception as error:  # no such protocol, no address: each file system raises its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{url}: no folder, nor a URL of a store ({reason})") from error
