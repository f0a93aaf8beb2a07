"""How the law of a token is reshaped before it is drawn, in every sampler alike.

    the network's law -> hook -> bans -> temperature -> top-k -> top-p

What a sampler judges its draws by (`Proposal.confidence`) is the network's law, before all of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

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
"""`hook(log_p, at, tokens)`: new log-probabilities, up to a constant, for each of the rows `at`
(`sequence * l + position`), given the tokens as they stand (masks and all). It is traced."""


@dataclass(frozen=True, kw_only=True)
class Annealed:
    """A temperature that runs from `first`, where all open positions of a row are masks, towards
    `last`, where none is: linear in the share of them that are written."""

    first: float
    last: float

    def __post_init__(self):
        for name in ("first", "last"):
            check_temperature(f"temperature.{name}", getattr(self, name))

    def at(self, written: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The temperature where a share of `written` is written."""
        return self.first + (self.last - self.first) * written


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """The law of a written token, from the network's.

    Args:
        temperature: the law becomes proportional to p^(1 / temperature); 0 takes the likeliest
            token. `Annealed` has it change as a row fills.
        top_k: then only the likeliest that many are kept (0: all).
        top_p: then, of what is left, the likeliest that hold this mass.
        top_p_rule: whether the token that crosses `top_p` is kept ("reach") or not ("below").
        banned: ids of tokens that are never written. Fixed ones stay.
        hook: changes the law before all else; see `Hook`.
    """

    temperature: float | Annealed = 1.0
    top_k: int = 0
    top_p: float = 1.0
    top_p_rule: TopP = "reach"
    banned: tuple[int, ...] = ()
    hook: Hook | None = None

    def __post_init__(self):
        if not isinstance(self.temperature, Annealed):
            check_temperature("temperature", self.temperature)
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} is below 0 (0 keeps all tokens)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is not in (0, 1]")
        if self.top_p_rule not in get_args(TopP):
            raise ValueError(f'top_p_rule={self.top_p_rule!r} is neither "reach" nor "below"')
        if any(token < 0 for token in self.banned):
            raise ValueError(f"banned={self.banned} holds an id below 0")

    @property
    def is_plain(self) -> bool:
        """Whether the law stays the network's own."""
        settings = (self.temperature, self.top_k, self.top_p, self.banned, self.hook)
        return settings == (1, 0, 1, (), None)

    def misshapes(self, process: Process) -> str | None:
        """Why laws cannot be reshaped so under a process; None if they can."""
        if isinstance(self.temperature, Annealed) and not isinstance(process, Masked):
            return (
                "temperature=Annealed(...) follows the share of masks that are filled, and"
                f" process={type(process).__name__}(...) does not fill masks alone; use a number"
            )
        if self.banned and not isinstance(process, Masked):
            left = float(process.schedule.one_minus_alpha(jnp.zeros(())))
            if left > 0:
                return (
                    f"banned={self.banned}: the schedule ends with alpha={1 - left:g}, and the"
                    " noise that it leaves is any token"
                )
        return None

    def check_ids(self, vocab: Vocab) -> None:
        """InputError where a banned token is none of the vocabulary, or all are banned."""
        for token in self.banned:
            if token >= vocab.size:
                raise InputError(
                    f"banned token {token} is outside the vocabulary of {vocab.size} tokens"
                )
        if len({*self.banned, vocab.mask_id}) == vocab.size:
            raise InputError(f"banned: all {vocab.size - 1} tokens are, and none is left to write")

    def shape(
        self,
        log_p: Float[Array, "n v"],
        at: Int[Array, " n"],
        tokens: Int[Array, "b l"],
        is_fixed: Bool[Array, "b l"],
        *,
        mask_id: int,
        size: int,
    ) -> Float[Array, "n v"]:
        """The laws that the tokens at the rows `at` are drawn from.

        ValueError where the hook gives back another shape than it was given.
        """
        if self.hook is not None:
            hooked = self.hook(log_p, at, tokens)
            if hooked.shape != log_p.shape:
                raise ValueError(f"hook: laws of shape {log_p.shape} came back as {hooked.shape}")
            log_p = hooked.astype(jnp.float32)
        if self.banned or self.hook is not None:
            log_p = restrict(log_p, self.banned, mask_id=mask_id, size=size)
        temperature = self.temperature
        if isinstance(temperature, Annealed):
            is_open = ~is_fixed
            left = (is_open & (tokens == mask_id)).sum(-1)
            written = 1 - left / jnp.maximum(is_open.sum(-1), 1)
            temperature = temperature.at(written)[at // tokens.shape[1]][:, None]
        return filter_log_p(
            log_p,
            temperature=temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            rule=self.top_p_rule,
        )

    def shaped(
        self, log_p: Float[Array, "b l v"], state: SampleState, parameterization: Parameterization
    ) -> Float[Array, "b l v"]:
        """The laws of all positions, reshaped."""
        b, l, v = log_p.shape
        mask_id, size = parameterization.ids()
        flat, at = log_p.reshape(b * l, v), jnp.arange(b * l)
        shaped = self.shape(flat, at, state.tokens, state.is_fixed, mask_id=mask_id, size=size)
        return shaped.reshape(b, l, v)


def check_temperature(name: str, value: float) -> None:
    """ValueError where it is none."""
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name}={value} is not a finite number of at least 0")
