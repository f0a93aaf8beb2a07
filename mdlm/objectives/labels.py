"""What belongs to a row, predicted from the clean row by the head of the experiment.

    Classification   L = -log softmax(y)_c, in nats          y [k] from the head, c the row's class
    Regression       L = (y - c)^2                           y [1], c the row's number

These are the losses of BERT's fine-tuning on GLUE (arXiv:1810.04805, sec. 4.1). Nothing is noised:
a network that is conditioned on a noise level reads t = 0. Each row counts once, at its one token
in the loss mask, so sums are divided by rows.
"""

import abc
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from mdlm.diffusion import Diffusion
from mdlm.keys import stream
from mdlm.objectives.base import Objective, ask
from mdlm.parameterizations.base import Parameterization
from mdlm.processes.base import Process
from mdlm.types import Batch, LossTerms


@dataclass(frozen=True, kw_only=True)
class OfRows(Objective):
    """Predicts what belongs to each row. The batch must have a `target`."""

    is_exact: ClassVar[bool] = True
    processes: ClassVar[tuple[type[Process], ...]] = (Process,)
    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Parameterization,)
    reads_head: ClassVar[Literal["rows", "tokens"] | None] = "rows"

    @abc.abstractmethod
    def loss(
        self, outputs: Float[Array, "b k"], target: Float[Array, " b"]
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Returns the loss of each row, and the head's answer in the form of the target."""

    def __call__(self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion) -> LossTerms:
        assert diffusion.head is not None  # experiments without one are refused
        prediction = ask(
            diffusion.denoise,
            batch,
            tokens=batch.tokens,
            t=jnp.zeros((len(batch.tokens), 1)),
            key=stream(key, "dropout"),
        )
        outputs = diffusion.head(prediction, key=stream(key, "head"))
        loss, answer = self.loss(outputs, batch.target)
        count = batch.loss_mask.astype(jnp.float32)
        values = count * loss[:, None]
        fixed = jax.lax.stop_gradient
        return LossTerms(
            total=values.sum(),
            values=fixed(values),
            bound=fixed(values),
            count=count,
            scored=jnp.zeros_like(count),
            scalars={},
            answers=fixed(jnp.stack([answer, batch.target], axis=-1)),
        )


@dataclass(frozen=True, kw_only=True)
class Classification(OfRows):
    """The cross-entropy of the row's class, in nats; the answer is the likeliest class."""

    protocol: ClassVar[str] = "class of the row, cross-entropy"
    loss_name: ClassVar[str] = "nats per row"
    of_rows: ClassVar[Literal["classes", "numbers"] | None] = "classes"

    def loss(
        self, outputs: Float[Array, "b k"], target: Float[Array, " b"]
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        true = target.astype(jnp.int32)[:, None]
        log_p = jax.nn.log_softmax(outputs.astype(jnp.float32), axis=-1)
        answer = jnp.argmax(outputs, axis=-1).astype(jnp.float32)
        return -jnp.take_along_axis(log_p, true, axis=-1)[:, 0], answer


@dataclass(frozen=True, kw_only=True)
class Regression(OfRows):
    """The square of the difference between the head's output and the row's number."""

    protocol: ClassVar[str] = "number of the row, squared error"
    loss_name: ClassVar[str] = "squared error"
    of_rows: ClassVar[Literal["classes", "numbers"] | None] = "numbers"

    def loss(
        self, outputs: Float[Array, "b k"], target: Float[Array, " b"]
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        answer = outputs[:, 0].astype(jnp.float32)
        return jnp.square(answer - target), answer
