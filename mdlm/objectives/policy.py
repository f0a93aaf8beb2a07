"""Learning from rewards: diffu-GRPO (d1) and wd1, on texts that the current parameters wrote.

Both need log-probabilities of a response, which a masked diffusion does not have, and take those of
one call in which the whole response is masked (d1, arXiv:2504.12216, section 3.1):

    log p(y | x) ~ sum_i log p_i,      p_i = p(y_i | x', all of y masked)

where x' is the prompt, masked with probability `prompt_mask`. They are exact if all tokens are
written in one step. A text that is written in several steps has other probabilities, and only the
prediction from a wholly masked response is trained.

**GRPO**, for each token, with rho_i = p_i / p_i,old and the advantage A = r - mean r of the group:

    L_i = -min(rho_i A, clip(rho_i, 1 - clip, 1 + clip) A) + kl D_i

    form "k3"   D = exp(d) - d - 1,  d = log p_ref - log p    as published
    form "k2"   D = d^2 / 2

The gradient of "k3", under texts of the policy itself, is that of KL(p_ref || p): its expectation
is -E_ref grad log p. Its optimum is p_i = kl p_ref,i / (c - r), not an exponential. The gradient of
"k2" is that of KL(p || p_ref), whose optimum, where the reward is a sum over tokens, is
p_ref exp(r / kl) / Z. In both, r is (group - 1) / group times the reward, since a text's own
reward is in the mean of its group.

**wd1** (arXiv:2507.08838) has no ratios: texts are weighted in their group of prompt x by

    L = -sum_y (w+ - w-) sum_i log p_i,     w+ = softmax(psi A),  w- = softmax(-psi A)

Nothing holds it to a reference: its only fixed points have one reward for all texts of a prompt.
"""

import abc
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.draws import uniforms
from mdlm.errors import InputError
from mdlm.keys import by_row, stream
from mdlm.objectives.base import Objective, ask, weighted_cross_entropy, weighted_sum
from mdlm.objectives.nelbo import Nelbo
from mdlm.objectives.rollouts import Rollouts
from mdlm.processes.masked import Masked
from mdlm.types import Batch, LossTerms, Prediction


@dataclass(frozen=True, kw_only=True)
class Policy(Objective):
    """Trains by rewards of texts that the current parameters write; reports the NELBO of the data.

    Dropout is off. The log has `reward`, the mean over the texts of a step.

    Args:
        rollouts: which texts, and their reward.
        prompt_mask: probability that a token of the prompt is masked, for each token.
    """

    noises_prompts: ClassVar[bool] = True

    rollouts: Rollouts
    prompt_mask: float = 0.15

    def __post_init__(self):
        if not 0 <= self.prompt_mask < 1:
            raise InputError(f"prompt_mask={self.prompt_mask}: must be in [0, 1)")

    @property
    def own_texts(self) -> Rollouts:
        return self.rollouts

    def reported(self) -> Nelbo:
        return Nelbo()

    def on_data(self) -> Nelbo:
        return self.reported()

    @abc.abstractmethod
    def weights(self, rewards: Float[np.ndarray, "n g"]) -> Float[np.ndarray, "n g"]:
        """Returns the weight of each text, from the rewards of the texts of each prompt."""

    def masked(
        self, key: Key[Array, ""], batch: Batch, process: Masked
    ) -> tuple[Int[Array, "b l"], Float[Array, "b 1"]]:
        """Returns the rows with responses masked, and prompts in part; and their time, 1."""
        rows, length = batch.tokens.shape
        u = uniforms(by_row(stream(key, "prompt"), batch.row), length)
        is_masked = ~batch.rollout.is_prompt | (u < self.prompt_mask)
        masks = process.prior(by_row(stream(key, "prior"), batch.row), length)
        return jnp.where(is_masked, masks, batch.tokens), jnp.ones((rows, 1))

    def asked(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> tuple[Prediction, LossTerms]:
        """Returns the prediction of the responses, and their cross-entropies as loss terms."""
        z_t, t = self.masked(key, batch, diffusion.process)
        prediction = ask(diffusion.denoise, batch, tokens=z_t, t=t, key=None)
        return prediction, self.scored(batch, diffusion, prediction, z_t, t, jnp.ones_like(t))

    def scored(self, batch, diffusion, prediction, z_t, t, weight) -> LossTerms:
        terms = weighted_cross_entropy(
            prediction,
            batch,
            parameterization=diffusion.parameterization,
            z_t=z_t,
            t=t,
            weight=weight,
        )
        return replace(terms, t=None, weight=None)

    def log_p(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> Float[Array, "b l"]:
        """Returns the log-probabilities of the counted tokens, without a gradient; 0 elsewhere."""
        return -self.asked(key, batch, diffusion)[1].values


@dataclass(frozen=True, kw_only=True)
class GRPO(Policy):
    """diffu-GRPO: clipped ratios of one-step probabilities, with a penalty on leaving the network
    that training began from.

    The log also has `kl`, the mean of the penalty D over tokens, and `clipped`, the share of tokens
    whose ratio was cut.

    Args:
        clip: how far the ratio of probabilities may be from 1 for a token to count further.
        kl: factor of the penalty; 0 for none, which needs no --init-from.
        form: of the penalty; "k3" as published, or "k2".
    """

    clip: float = 0.2
    kl: float = 0.04
    form: Literal["k3", "k2"] = "k3"

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.clip < 1:
            raise InputError(f"clip={self.clip}: must be between 0 and 1")
        if not 0 <= self.kl < float("inf"):
            raise InputError(f"kl={self.kl}: must be a number, at least 0")

    @property
    def needs_reference(self) -> bool:
        return self.kl > 0

    def weights(self, rewards: Float[np.ndarray, "n g"]) -> Float[np.ndarray, "n g"]:
        return rewards - rewards.mean(axis=1, keepdims=True)

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> LossTerms:
        diffusion, given = diffusion.without_dropout(), batch.rollout
        z_t, t = self.masked(key, batch, diffusion.process)
        prediction, own = self.asked(key, batch, diffusion)
        before = -own.values if given.log_p_old is None else given.log_p_old
        rows = {
            "x_0": batch.tokens,
            "z_t": z_t,
            "t": jnp.broadcast_to(t, z_t.shape),
            "advantage": jnp.broadcast_to(given.advantage[:, None], z_t.shape),
            "before": before,
        }
        if self.needs_reference:
            if diffusion.reference is None:
                raise ValueError("kl > 0 needs a reference: Model.loss(..., reference=...)")
            rows["reference"] = self.log_p(key, batch, diffusion.reference)

        def loss(logits, rows, _):
            log_p = -diffusion_loss(logits, rows)
            ratio = jnp.exp(log_p - rows["before"])
            cut = jnp.clip(ratio, 1 - self.clip, 1 + self.clip)
            gain = jnp.minimum(ratio * rows["advantage"], cut * rows["advantage"])
            if "reference" not in rows:
                return -gain
            return -gain + self.kl * self.penalty(rows["reference"] - log_p)

        def diffusion_loss(logits, rows):
            return -diffusion.parameterization.log_p0_of(
                rows["x_0"], logits, rows["z_t"], rows["t"]
            )

        terms = weighted_sum(prediction, batch, loss, rows, jnp.ones_like(t), t)
        ratio, advantage = jnp.exp(-own.values - before), rows["advantage"]
        is_cut = jnp.where(advantage > 0, ratio > 1 + self.clip, ratio < 1 - self.clip)
        mean = lambda values: (values * own.count).sum() / jnp.maximum(own.count.sum(), 1)
        scalars = {"reward": given.reward.mean(), "clipped": mean(is_cut & (advantage != 0))}
        if self.needs_reference:
            scalars["kl"] = mean(self.penalty(rows["reference"] + own.values))
        return replace(terms, bound=own.bound, t=None, scalars=scalars)

    def penalty(self, gap: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Returns D of the log-probabilities of the reference less those of the policy."""
        return jnp.square(gap) / 2 if self.form == "k2" else jnp.exp(gap) - gap - 1


@dataclass(frozen=True, kw_only=True)
class WeightedPolicy(Policy):
    """wd1: the likelihoods of the better texts are raised, those of the worse ones lowered, by
    weights from their rewards alone.

    Args:
        psi: how much a difference of rewards weighs.
    """

    psi: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.psi < float("inf"):
            raise InputError(f"psi={self.psi}: must be a number above 0")

    def weights(self, rewards: Float[np.ndarray, "n g"]) -> Float[np.ndarray, "n g"]:
        scaled = self.psi * (rewards - rewards.mean(axis=1, keepdims=True))
        return softmax(scaled) - softmax(-scaled)

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> LossTerms:
        diffusion, given = diffusion.without_dropout(), batch.rollout
        z_t, t = self.masked(key, batch, diffusion.process)
        prediction, own = self.asked(key, batch, diffusion)
        terms = self.scored(batch, diffusion, prediction, z_t, t, given.advantage[:, None])
        return replace(
            terms,
            bound=own.bound,
            scored=own.scored,
            examples=jnp.asarray(len(batch.tokens) / self.rollouts.group, jnp.float32),
            scalars={"reward": given.reward.mean()},
        )


def softmax(x: Float[np.ndarray, "n g"]) -> Float[np.ndarray, "n g"]:
    """Returns weights proportional to exp(x), which sum to 1 in each row."""
    weight = np.exp(x - x.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True)
