"""The noising process: the distribution q(z_t | x_0) and its reversal, independent by token.

    prior     z_1 from (nearly) q(z_1 | x_0), which is nearly the same for every x_0
    corrupt   z_t ~ q(z_t | x_0)
    reverse   z_s ~ sum over x_0 of q(z_s | z_t, x_0) p(x_0), s < t

Each row has a key of its own: its draws do not depend on the rest of the batch.
"""

import abc
import dataclasses
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.schedules.base import Schedule
from mdlm.types import ArrayTree, Vocab


class Process(abc.ABC):
    """A noising process on tokens; `schedule` sets the noise level by time."""

    schedule: Schedule

    @property
    def needs_counts(self) -> bool:
        """True if the process depends on the token counts of the training split."""
        return self.schedule.needs_counts

    def with_counts(self, counts: Int[np.ndarray, " v"]) -> Self:
        """Returns this process for a corpus in which token i occurs `counts[i]` times."""
        return self._with_schedule(self.schedule.with_counts(counts))

    def init(self, key: Key[Array, ""]) -> ArrayTree:
        """Returns initial learned values: `{}` for a process that learns nothing."""
        return self.schedule.init(key)

    def bind(self, arrays: ArrayTree) -> Self:
        """Returns this process with these learned values, which may be traced."""
        return self._with_schedule(self.schedule.bind(arrays)) if arrays else self

    def _with_schedule(self, schedule: Schedule) -> Self:
        component: Any = self  # every process is a dataclass, which this base cannot say
        return dataclasses.replace(component, schedule=schedule)

    @abc.abstractmethod
    def with_vocab(self, vocab: Vocab) -> Self:
        """Returns this process on the tokens of `vocab`.

        Raises ValueError if a field was set by hand to another value than that of `vocab`.
        """

    def is_noise(self, z_t: Int[Array, "*s"]) -> Bool[Array, "*s"]:
        """True where a token is known to be noised: at masks, in processes that have them."""
        return jnp.zeros_like(z_t, bool)

    @abc.abstractmethod
    def prior(self, keys: Key[Array, " b"], length: int) -> Int[Array, "b l"]:
        """Draws pure noise, one row of `length` tokens per key."""

    @abc.abstractmethod
    def corrupt(
        self,
        keys: Key[Array, " b"],
        x_0: Int[Array, "b l"],
        t: Float[Array, " b #l"],
        may_change: Bool[Array, "b l"] | None = None,
    ) -> Int[Array, "b l"]:
        """Draws `x_0` noised to time `t`; tokens where `may_change` is False stay clean."""

    @abc.abstractmethod
    def reverse(
        self,
        keys: Key[Array, " b"],
        log_p0: Float[Array, "b l v"],
        z_t: Int[Array, "b l"],
        t: Float[Array, " b #l"],
        s: Float[Array, " b #l"],
    ) -> Int[Array, "b l"]:
        """Draws one step from `t` back to `s < t`, given log-probabilities of the clean tokens."""
