"""What a published layout of checkpoints says: network, tokens, and names of tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mdlm.errors import InputError
from mdlm.interop.table import Table
from mdlm.models.network import Network
from mdlm.objectives.base import Objective
from mdlm.objectives.nelbo import Nelbo
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.subs import Subs
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.samplers.base import Sampler

LONGEST = 1024
"""Most tokens in a row of an imported network, unless another length is asked for."""


class Config:
    """The values of a config.json, each checked for its type when it is asked for.

    Raises InputError, with the name of the value, if one is missing or of another type.
    """

    def __init__(self, values: Mapping[str, Any], title: str):
        self.values, self.title = values, title

    def integer(self, name: str, default: int | None = None) -> int:
        return self._of(name, int, "a whole number", default)

    def number(self, name: str, default: float | None = None) -> float:
        return float(self._of(name, (int, float), "a number", default))

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.title}: {name}={value!r:.60} is not true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        return self._of(name, str, "a text", default)

    def token(self, name: str) -> int | None:
        """Returns a token id, the first of several; None if there is none."""
        value = self.values.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is None or value == -1:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"{self.title}: {name}={value!r:.60} is not a token id")
        return value

    def only(self, **supported: Any) -> None:
        """Raises InputError if one of these values is there and is another one."""
        for name, value in supported.items():
            found = self.values.get(name, value)
            if found != value:
                raise InputError(
                    f"{self.title}: {name}={found!r:.60} is not supported, only {value!r}"
                )

    def _of(self, name: str, kind: Any, expected: str, default: Any) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise InputError(f"{self.title}: {name} is missing")
        if isinstance(value, bool) or not isinstance(value, kind):
            raise InputError(f"{self.title}: {name}={value!r:.60} is not {expected}")
        return value


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The components and token ids that a config.json describes.

    Args:
        length: most tokens of a row that the network knows.
        mask, bos, eos, pad: token ids; None where the tokenizer tells.
        tokenizer: name on the hub of the tokenizer, for layouts that bring none in their folder.
    """

    network: Network
    sampler: Sampler
    length: int
    objective: Objective = Nelbo()
    process: Process = Masked()
    parameterization: Parameterization = Subs()
    time_condition: Literal["none", "t", "sigma", "log_snr"] = "none"
    mask: int | None = None
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    tokenizer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout of checkpoints.

    Args:
        name: what `mdlm export --layout` and the documents call it.
        model_types: the values of `model_type` in config.json that mean this layout.
        parts: the components from a config.json; raises InputError for options not supported.
        table: the names of the tensors of such a network, see `mdlm.interop.table`.
        matches: whether a config.json without model_type means this layout.
        ignored: pattern of names of tensors that may be there and mean nothing.
        wrapper: a prefix that files may have before each name of the table; exports have it.
        renames: other ends that names may have in older files, and what they mean.
        buffers: tensors of an export that are no parameters, by their names in the file.
        in_transformers: whether the library `transformers` has the network.
        config: config.json of a network, for export; raises InputError with the reason if public
            code has no such network. None: there is no export.
    """

    name: str
    model_types: tuple[str, ...]
    parts: Callable[[Config], Parts]
    table: Callable[[Any], Table]
    matches: Callable[[Config], bool] = lambda config: False
    ignored: str = ""
    wrapper: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    buffers: Callable[[Any], dict[str, np.ndarray]] = lambda network: {}
    in_transformers: bool = False
    config: Callable[[Any, int], dict[str, Any]] | None = None

    def plain(self, name: str) -> str:
        """Returns the name in the table of a tensor of a file."""
        name = name.removeprefix(self.wrapper)
        for end, usual in self.renames:
            if name.endswith(end):
                return name.removesuffix(end) + usual
        return name
