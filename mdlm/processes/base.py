"""The noising process: the law q(z_t | x_0) and its reversal, one token independent of the others.

    prior     z_1, what q(z_1 | x_0) is (about) for every x_0
    corrupt   z_t ~ q(z_t | x_0)
    reverse   z_s ~ sum over x_0 of q(z_s | z_t, x_0) p(x_0), s < t

Rows are random by their own keys: what a row draws does not depend on the rest of its batch.
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
    """A noising process on tokens, in the time of its `schedule`."""

    schedule: Schedule

    @property
    def needs_counts(self) -> bool:
        """Whether the process is made from the counts of the training split's tokens."""
        return self.schedule.needs_counts

    def with_counts(self, counts: Int[np.ndarray, " v"]) -> Self:
        """This process on a corpus in which token i occurs `counts[i]` times."""
        return self._with_schedule(self.schedule.with_counts(counts))

    def init(self, key: Key[Array, ""]) -> ArrayTree:
        """Fresh values of what the process learns: `{}` where it learns nothing."""
        return self.schedule.init(key)

    def bind(self, arrays: ArrayTree) -> Self:
        """This process with learned values (possibly traced) in place."""
        return self._with_schedule(self.schedule.bind(arrays)) if arrays else self

    def _with_schedule(self, schedule: Schedule) -> Self:
        component: Any = self  # every process is a dataclass, which this base cannot say
        return dataclasses.replace(component, schedule=schedule)

    @abc.abstractmethod
    def with_vocab(self, vocab: Vocab) -> Self:
        """This process on the tokens of `vocab`.

        Raises ValueError where a token was set by hand and `vocab` says otherwise.
        """

    def is_noise(self, z_t: Int[Array, "*s"]) -> Bool[Array, "*s"]:
        """True where a token shows by itself that it is no clean one: at masks, if there are."""
        return jnp.zeros_like(z_t, bool)

    @abc.abstractmethod
    def prior(self, keys: Key[Array, " b"], length: int) -> Int[Array, "b l"]:
        """Pure noise, one row of `length` tokens per key."""

    @abc.abstractmethod
    def corrupt(
        self,
        keys: Key[Array, " b"],
        x_0: Int[Array, "b l"],
        t: Float[Array, " b #l"],
        may_change: Bool[Array, "b l"] | None = None,
    ) -> Int[Array, "b l"]:
        """`x_0` noised to time `t`; tokens where `may_change` is False stay clean."""

    @abc.abstractmethod
    def reverse(
        self,
        keys: Key[Array, " b"],
        log_p0: Float[Array, "b l v"],
        z_t: Int[Array, "b l"],
        t: Float[Array, " b #l"],
        s: Float[Array, " b #l"],
    ) -> Int[Array, "b l"]:
        """One step from `t` back to `s < t`, given log-probabilities of the clean tokens."""
