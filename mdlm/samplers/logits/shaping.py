"""Logits processing: how every sampler changes a token's distribution before drawing it.

    the network's distribution -> hook -> bans -> temperature -> top-k -> top-p

The confidence of a draw (`Proposal.confidence`) is that of the network's distribution, before all
of these.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, get_args

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from mdlm.errors import InputError
from mdlm.parameterizations.base import Parameterization
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.samplers.logits.filters import TopP, filter_log_p, restrict
from mdlm.samplers.state import SampleState
from mdlm.types import Vocab

Hook = Callable[
    [Float[Array, "n v"], Int[Array, " n"], Int[Array, "b l"]],
    Float[Array, "n v"],
]
"""`hook(log_p, at, tokens)`: new log-probabilities, up to a constant, for each flat position `at`
(`row * l + position`), given the current tokens, masks included. JAX traces it."""


@dataclass(frozen=True, kw_only=True)
class Annealed:
    """A temperature that changes as a row fills: `first` while all open positions of the row are
    masks, towards `last` when none is, linear in the share that is written."""

    first: float
    last: float

    def __post_init__(self):
        for name in ("first", "last"):
            check_temperature(f"temperature.{name}", getattr(self, name))

    def at(self, written: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The temperature when a share `written` of the open positions is written."""
        return self.first + (self.last - self.first) * written


class Shaping(Protocol):
    """The settings of logits processing, which are fields of every sampler."""

    @property
    def temperature(self) -> float | Annealed: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_p_rule(self) -> TopP: ...
    @property
    def banned(self) -> tuple[int, ...]: ...
    @property
    def hook(self) -> Hook | None: ...


def check_settings(settings: Shaping) -> None:
    """Raises ValueError if a setting is out of range."""
    if not isinstance(settings.temperature, Annealed):
        check_temperature("temperature", settings.temperature)
    if settings.top_k < 0:
        raise ValueError(f"top_k={settings.top_k}: must be at least 0 (0 keeps all tokens)")
    if not 0 < settings.top_p <= 1:
        raise ValueError(f"top_p={settings.top_p}: must be in (0, 1]")
    if settings.top_p_rule not in get_args(TopP):
        raise ValueError(f'top_p_rule={settings.top_p_rule!r}: must be "reach" or "below"')
    if any(token < 0 for token in settings.banned):
        raise ValueError(f"banned={settings.banned}: ids must be at least 0")


def check_banned(banned: tuple[int, ...], vocab: Vocab, name: str = "banned") -> None:
    """Raises InputError if a banned token is not in the vocabulary, or if all are banned; `name` is
    that of the setting."""
    for token in banned:
        if token >= vocab.size:
            raise InputError(
                f"{name} token {token} is outside the vocabulary of {vocab.size} tokens"
            )
    if len({*banned, vocab.mask_id}) == vocab.size:
        raise InputError(
            f"{name}: all {vocab.size - 1} tokens are {name}; leave at least one to write"
        )


def is_plain(settings: Shaping) -> bool:
    """Whether the settings leave the network's distribution unchanged."""
    s = settings
    return (s.temperature, s.top_k, s.top_p, s.banned, s.hook) == (1, 0, 1, (), None)


def unshapeable(settings: Shaping, process: Process) -> str | None:
    """Why a process does not allow these settings; None if it does."""
    if isinstance(settings.temperature, Annealed) and not isinstance(process, Masked):
        return (
            "temperature=Annealed(...) follows the share of masks that are filled, but"
            f" process={type(process).__name__}(...) does not fill masks alone; use a number"
        )
    if settings.banned and not isinstance(process, Masked):
        left = float(process.schedule.one_minus_alpha(jnp.zeros(())))
        if left > 0:
            return (
                f"banned={settings.banned}: the schedule has alpha(0)={1 - left:g}, not 1, and the"
                " noise that it leaves is any token, banned ones included"
            )
    return None


def shape(
    settings: Shaping,
    log_p: Float[Array, "n v"],
    at: Int[Array, " n"],
    tokens: Int[Array, "b l"],
    is_fixed: Bool[Array, "b l"],
    *,
    mask_id: int,
    size: int,
) -> Float[Array, "n v"]:
    """The distributions from which the tokens at the flat positions `at` are drawn.

    Raises ValueError if the hook returns another shape than that of its input.
    """
    if settings.hook is not None:
        hooked = settings.hook(log_p, at, tokens)
        if hooked.shape != log_p.shape:
            raise ValueError(f"hook: returned shape {hooked.shape}, must be {log_p.shape}")
        log_p = hooked.astype(jnp.float32)
    if settings.banned or settings.hook is not None:
        log_p = restrict(log_p, settings.banned, mask_id=mask_id, size=size)
    temperature = settings.temperature
    if isinstance(temperature, Annealed):
        is_open = ~is_fixed
        left = (is_open & (tokens == mask_id)).sum(-1)
        written = 1 - left / jnp.maximum(is_open.sum(-1), 1)
        temperature = temperature.at(written)[at // tokens.shape[1]][:, None]
    return filter_log_p(
        log_p,
        temperature=temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        rule=settings.top_p_rule,
    )


def shape_all(
    settings: Shaping,
    log_p: Float[Array, "b l v"],
    state: SampleState,
    parameterization: Parameterization,
) -> Float[Array, "b l v"]:
    """Applies `shape` at all positions."""
    b, l, v = log_p.shape
    mask_id, size = parameterization.ids()
    flat, at = log_p.reshape(b * l, v), jnp.arange(b * l)
    shaped = shape(settings, flat, at, state.tokens, state.is_fixed, mask_id=mask_id, size=size)
    return shaped.reshape(b, l, v)


def check_temperature(name: str, value: float) -> None:
    """Raises ValueError if `value` is not a finite number of at least 0."""
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name}={value}: must be a finite number, at least 0")
