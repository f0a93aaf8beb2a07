"""What objectives and samplers are handed: the noise, the network, and how its output is read.

Which of these fit together is asked before anything is computed, by the `incompatibility` of each
objective and sampler; what all of them ask is here.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Protocol, Self, TypeVar

from jax import Array
from jaxtyping import Int, Key

from mdlm.parameterizations.base import Parameterization
from mdlm.processes.base import Process
from mdlm.types import Attends, Denoise, NetInput, Prediction

P = TypeVar("P", bound=Process, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Diffusion(Generic[P]):
    """A noising process and the network that reverses it. No pytree: arrays in it, the
    parameters of the network above all, enter a jitted function by closure, so it is made inside
    that function.

    Args:
        process: how tokens are noised, with what it has learned.
        parameterization: how the network's output is read as a distribution of the clean token.
        denoise: the network with its parameters.
    """

    process: P
    parameterization: Parameterization
    denoise: Denoise

    def with_clean(self, tokens: Int[Array, "b l"]) -> Self:
        """This diffusion with a network that also reads `tokens` as the clean ones."""
        denoise = self.denoise

        def ask(inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
            return denoise(replace(inputs, clean=tokens), key=key)

        return replace(self, denoise=ask)


class NetworkTraits(Protocol):
    """What is asked of a network's configuration."""

    attends: ClassVar[Attends]

    @property
    def takes_labels(self) -> bool: ...


class Component(Protocol):
    """What an objective and a sampler say they are defined for."""

    processes: ClassVar[tuple[type[Process], ...]]
    parameterizations: ClassVar[tuple[type[Parameterization], ...]]
    attends: ClassVar[Attends]


def wrong_kind(
    component: Component,
    process: Process,
    parameterization: Parameterization,
    network: NetworkTraits | None,
) -> str | None:
    """Why a component is not defined for these, by their classes and by what the network reads;
    None if it is. Without a network, nothing is asked of one."""
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
    "causal": "the tokens before each, and nothing noised",
    "blocks": "a noised block and the clean blocks before it",
}
