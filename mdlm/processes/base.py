"""The noising process: the law q(z_t | x_0) and its reversal, one token independent of the others.

    prior     z_1, what q(z_1 | x_0) is (about) for every x_0
    corrupt   z_t ~ q(z_t | x_0)
    reverse   z_s ~ sum over x_0 of q(z_s | z_t, x_0) p(x_0), s < t

Rows are random by their own keys: what a row draws does not depend on the rest of its batch.
"""

import abc
from typing import Self

from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.schedules import Schedule
from mdlm.types import Vocab


class Process(abc.ABC):
    """A noising process on tokens, in the time of its `schedule`."""

    schedule: Schedule

    @abc.abstractmethod
    def with_vocab(self, vocab: Vocab) -> Self:
        """This process on the tokens of `vocab`.

        Raises ValueError where a token was set by hand and `vocab` says otherwise.
        """

    @abc.abstractmethod
    def prior(self, keys: Key[Array, " b"], length: int) -> Int[Array, "b l"]:
        """Pure noise, one row of `length` tokens per key."""

    @abc.abstractmethod
    def corrupt(
        self,
        keys: Key[Array, " b"],
        x_0: Int[Array, "b l"],
        t: Float[Array, "b #l"],
        may_change: Bool[Array, "b l"] | None = None,
    ) -> Int[Array, "b l"]:
        """`x_0` noised to time `t`; tokens where `may_change` is False stay clean."""

    @abc.abstractmethod
    def reverse(
        self,
        keys: Key[Array, " b"],
        log_p0: Float[Array, "b l v"],
        z_t: Int[Array, "b l"],
        t: Float[Array, "b #l"],
        s: Float[Array, "b #l"],
    ) -> Int[Array, "b l"]:
        """One step from `t` back to `s < t`, given log-probabilities of the clean tokens."""
