"""What an objective asks of texts that the current parameters write, and their rewards."""

from dataclasses import dataclass

from mdlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Texts for the prompts of the data, written by the experiment's sampler with the parameters
    as they are, and judged by a reward.

    Data with prompts (`PairData`) give these, and their responses are not used. Other data have
    no prompts: all texts are rows from their beginning.

    Args:
        reward: a Python function `(prompts, texts)`, two lists of text of one length, that returns
            a number for each text: "module:function", or the name of a function of the experiment
            file. It is called in training only; a run folder is opened without it.
        group: texts for each prompt, whose rewards are compared.
        updates: steps that are made with the same texts.
    """

    reward: str
    group: int = 8
    updates: int = 1

    def __post_init__(self):
        module, _, name = self.reward.rpartition(":")
        if not name.isidentifier() or (module and not module.replace(".", "_").isidentifier()):
            raise InputError(
                f"reward={self.reward!r}: must be module:function, or a function of the experiment"
                " file"
            )
        if self.group < 2:
            raise InputError(
                f"group={self.group}: must be at least 2, as the rewards of a prompt are compared"
            )
        if self.updates < 1:
            raise InputError(f"updates={self.updates}: must be at least 1")
