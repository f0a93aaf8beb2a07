"""The value that objectives and samplers receive: noise, network, and reading of its output.

Each objective and sampler checks before any computation whether it fits the rest
(`incompatibility`). The checks that they share are here.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Protocol, Self, TypeVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Int, Key

from mdlm.parameterizations.base import Parameterization
from mdlm.processes.base import Process
from mdlm.types import Attends, Batch, Denoise, NetInput, Prediction, ReadHead

P = TypeVar("P", bound=Process, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Diffusion(Generic[P]):
    """A noising process and the network that reverses it.

    It is not a pytree. Its arrays, above all the network's parameters, enter a jitted function
    by closure, so build it inside that function.

    Args:
        process: how tokens are noised, with its learned values.
        parameterization: how the network's output is read as a distribution of the clean token.
        denoise: the network with its parameters.
        shift: whether the network computes the logits about a token at the one before it. (Position
            i of its prediction is about token i all the same.)
        head: the experiment's head with its parameters (`mdlm.models.heads`), which reads a
            prediction of `denoise`; None where the experiment has none.
        verifier: a causal network over the same vocabulary, for `mdlm.samplers.verified`.
        reference: the same process with the parameters that training began from, without dropout
            and without a gradient, for objectives with `needs_reference`; None for others.
    """

    process: P
    parameterization: Parameterization
    denoise: Denoise
    shift: bool = False
    head: ReadHead | None = None
    verifier: "Diffusion | None" = None
    reference: "Diffusion | None" = None

    def with_clean(self, tokens: Int[Array, "b l"]) -> Self:
        """Returns this diffusion with a network that also reads `tokens`, the clean ones."""
        denoise = self.denoise

        def ask(inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
            return denoise(replace(inputs, clean=tokens), key=key)

        return replace(self, denoise=ask)

    def without_dropout(self) -> Self:
        """Returns this diffusion with a network, and a head, whose dropout is off."""
        denoise, head = self.denoise, self.head
        certain = replace(self, denoise=lambda inputs, *, key=None: denoise(inputs))
        if head is None:
            return certain
        return replace(certain, head=lambda prediction, *, key=None: head(prediction))

    def with_prompts(self, batch: Batch) -> Self:
        """Returns this diffusion with a network that reads the clean tokens where the batch is
        valid and not scored, whatever noise put there, and so does its reference. If a process
        noises each position by itself, this is the process that noises the scored tokens only,
        given the others."""
        denoise = self.denoise
        is_valid = True if batch.is_valid is None else batch.is_valid
        is_given = is_valid & ~batch.loss_mask

        def ask(inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
            copies = inputs.tokens.shape[0] // batch.tokens.shape[0]  # of each row, one by one
            given, clean = (jnp.repeat(x, copies, axis=0) for x in (is_given, batch.tokens))
            tokens = jnp.where(given, clean, inputs.tokens)
            return denoise(replace(inputs, tokens=tokens), key=key)

        reference = None if self.reference is None else self.reference.with_prompts(batch)
        return replace(self, denoise=ask, reference=reference)


class NetworkTraits(Protocol):
    """The facts about a network's configuration that objectives and samplers check."""

    attends: ClassVar[Attends]

    @property
    def takes_labels(self) -> bool: ...
    @property
    def passes(self) -> int: ...
    @property
    def caches(self) -> bool: ...


class Component(Protocol):
    """The processes, parameterizations and networks that an objective or sampler is defined for."""

    processes: ClassVar[tuple[type[Process], ...]]
    parameterizations: ClassVar[tuple[type[Parameterization], ...]]
    attends: ClassVar[Attends]


def wrong_kind(
    component: Component,
    process: Process,
    parameterization: Parameterization,
    network: NetworkTraits | None,
) -> str | None:
    """Says why a component is not defined for these classes and this network; None if it is.

    Without a network, the network is not checked.
    """
    for name, chosen, kinds in (
        ("process", process, component.processes),
        ("parameterization", parameterization, component.parameterizations),
    ):
        if not isinstance(chosen, kinds):
            fitting = " or ".join(f"{kind.__name__}(...)" for kind in kinds)
            return f"needs {name}={fitting}, not {type(chosen).__name__}(...)"
    if network is not None and component.attends != network.attends:
        return (
            f"needs a network that attends to {ATTENDED[component.attends]};"
            f" network={type(network).__name__}(...) attends to {ATTENDED[network.attends]}"
        )
    return None


ATTENDED: dict[Attends, str] = {
    "all": "all tokens of the noised row",
    "causal": "the tokens before each position, and to no noised ones",
    "blocks": "a noised block and the clean blocks before it",
}
