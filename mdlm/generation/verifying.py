"""A masked run drafts, an autoregressive run verifies (`mdlm.samplers.verified`)."""

from dataclasses import dataclass, replace

from mdlm.data.tokens.special_tokens import ends
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.experiment.model import Model
from mdlm.generation.windows import Windows
from mdlm.samplers.base import Sampler
from mdlm.samplers.verified import Verified
from mdlm.types import ArrayTree


@dataclass(frozen=True)
class Verifier:
    """An autoregressive run that verifies the drafts of another."""

    model: Model
    params: ArrayTree
    tokenizer: Tokenizer

    def check(self, tokenizer: Tokenizer, length: int) -> None:
        """Raises InputError if it cannot verify rows of `length` tokens of this tokenizer."""
        experiment = self.model.experiment
        network = experiment.network
        if network.attends != "causal" or not network.caches:
            raise InputError(
                f"verifier: its network={type(network).__name__}(...) is not a causal one with a"
                " cache; give an autoregressive run"
            )
        if self.tokenizer.fingerprint != tokenizer.fingerprint:
            raise InputError(
                "verifier: it has another tokenizer than the run that drafts; give a run with the"
                " same one"
            )
        longest = experiment.data.packing.length
        if longest < length:
            raise InputError(
                f"verifier: its rows have {longest} tokens, fewer than the {length} of the run that"
                " drafts; give one with longer rows"
            )

    def window(self, length: int) -> Windows:
        """Windows of this length, which begin with the start token that the verifier needs."""
        return Windows(length=length, frame=(ends(self.model.vocab)[0], None))


@dataclass(frozen=True)
class Drafted:
    """The diffusion of a masked model, with the verifier of its drafts. Its parameters are those of
    both: (those of the model, those of the verifier)."""

    model: Model
    verifier: Model

    def diffusion(self, params: ArrayTree) -> Diffusion:
        own, verifier = params
        return replace(self.model.diffusion(own), verifier=self.verifier.diffusion(verifier))


def check_verifier(sampler: Sampler, is_given: bool) -> None:
    """Raises InputError if the sampler needs a verifier and there is none, or takes none."""
    if isinstance(sampler, Verified) == is_given:
        return
    name = type(sampler).__name__
    if is_given:
        raise InputError(f"verifier: sampler={name}(...) takes none; use sampler=Verified(...)")
    raise InputError(
        f"sampler={name}(...) needs a verifier: an autoregressive run (--verifier RUN)"
    )
