"""A causal network as the judge of texts: exact, token by token, in windows (see `windows`).

The feature of a text is the network's last hidden state after the last token, of the tokens that
fit a row (as in MAUVE's own package, there for GPT-2).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError
from mdlm.evals.generated.judge import Report, Tokens
from mdlm.evals.generated.windows import Context
from mdlm.evals.likelihood import by_length, lengths_of
from mdlm.evals.row_program import RowProgram
from mdlm.experiment.model import Model
from mdlm.keys import of_seed
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.parallel.mesh import SEQUENCE
from mdlm.types import ArrayTree, Batch, NetInput


class NetworkJudge:
    """Judges by a causal network.

    Args:
        name: what the protocol calls the judge.
        start: the token that its rows begin with; None if they have none.
        context, stride: see `Context`; by default rows of the network's length, half of each new.
        batch_size: rows evaluated at a time.

    Raises InputError if the network is not causal, or a number is out of range.
    """

    def __init__(
        self,
        model: Model,
        params: ArrayTree,
        tokenizer: Tokenizer,
        *,
        name: str,
        start: int | None,
        mesh: Mesh,
        context: int | None = None,
        stride: int | None = None,
        batch_size: int = 32,
    ):
        longest = model.experiment.data.packing.length
        if model.experiment.network.attends != "causal":
            raise InputError(
                f"{name}: its network does not go from left to right, so it gives no token a"
                " probability: a judge is an autoregressive run, or one imported from a causal"
                " Hugging Face folder"
            )
        length = longest if context is None else context
        if length > longest:
            raise InputError(f"context={length}: {name} reads at most {longest} tokens")
        self.rule = Context(context=length, stride=stride or max(1, length // 2))
        self.model, self.tokenizer, self.start = model, tokenizer, start
        self.lengths = lengths_of(longest, mesh.shape[SEQUENCE])
        settings: Any = dict(params=params, mesh=mesh, batch_size=batch_size)
        self._nats = RowProgram(self._of_tokens, what="the judge", **settings)
        self._features = RowProgram(self._of_texts, what="the judge's features", **settings)
        first = "first token of a text not scored" if start is None else "first token scored"
        after = "" if start is None else f" after {tokenizer.backend.id_to_token(start)}"
        self.protocol = (
            f"{name}; windows of {length} tokens, {self.rule.stride} new, {first}{after}"
        )

    def nats(self, sequences: Sequence[Tokens], report: Report) -> list[Float[np.ndarray, "..."]]:
        """Returns -log p of each token, NaN where no token is before it."""
        found = [np.full(len(own), np.nan) for own in sequences]
        parts = [
            (number, *window)
            for number, own in enumerate(sequences)
            for window in self.rule.windows(len(own))
            if window[1] < window[2]
        ]
        rows = [sequences[number][begin:end] for number, begin, _, end in parts]
        of_row = self._rows(self._nats, rows, report)
        for (number, begin, first, end), values in zip(parts, of_row, strict=True):
            found[number][first:end] = values[first - begin : end - begin]
        return found

    def features(self, sequences: Sequence[Tokens], report: Report) -> np.ndarray:
        """Returns the hidden state after the last token of each text that fits."""
        room, start = self.lengths[-1] - 1, [] if self.start is None else [self.start]
        rows = [np.array([*start, *own][:room], np.int64) for own in sequences]
        # The state after the last token is that of the prediction about the next position.
        return np.stack(self._rows(self._features, [np.r_[row, 0] for row in rows], report))

    def _rows(
        self, program: RowProgram, rows: Sequence[np.ndarray], report: Report
    ) -> list[np.ndarray]:
        """What a program returns for each row."""
        out: list[Any] = [None] * len(rows)
        done = 0

        def advance(some: int) -> None:
            nonlocal done
            done += some
            report(done, len(rows))

        for length, at in by_length(rows, self.lengths):
            tokens = np.full((len(at), length), int(self.model.vocab.mask_id == 0), np.int32)
            size = np.array([len(rows[i]) for i in at], np.int32)
            for row, i in zip(tokens, at, strict=True):
                row[: len(rows[i])] = rows[i]

            def make(index, tokens=tokens, size=size):
                return {"tokens": tokens[index], "size": size[index]}

            values = program(of_seed(0), make, len(at), advance)
            for i, value in zip(at, values, strict=True):
                out[i] = value
        return out

    def _of_tokens(self, params: ArrayTree, key: Any, rows: Any) -> Any:
        """-log p of each position, `[b l]`."""
        tokens = rows["tokens"]
        count = tokens.shape[0]
        is_there = jnp.arange(tokens.shape[1])[None] < rows["size"][:, None]
        batch = Batch(
            tokens=tokens,
            loss_mask=is_there,
            is_valid=is_there,
            row=jnp.arange(count),
            rows=jnp.asarray(count),
        )
        return Autoregressive()(key, batch, self.model.diffusion(params)).bound

    def _of_texts(self, params: ArrayTree, _: Any, rows: Any) -> Any:
        """The hidden state of the last position of each row, `[b d]`, float32."""
        diffusion = self.model.diffusion(params)
        prediction: Any = diffusion.denoise(NetInput(tokens=rows["tokens"]))
        last = (rows["size"] - 1)[:, None, None]
        return jnp.take_along_axis(prediction.hidden, last, axis=1)[:, 0].astype(jnp.float32)
