"""Batches that are made from the current parameters: texts that they write, with rewards.

At each step, or each `updates` steps, the experiment's sampler (with its cache, if it has one)
fills the rows of the next prompts; the reward is computed on the host. What is drawn depends on
the run's seed, the step and the row, so a resumed run draws the same. No checkpoint lies within
the updates of one set of texts (`check`).

A reward that raises, or returns something else than a finite number for each text, is named with
the text. The advantages are then NaN, so that the step is skipped and counted
(`mdlm.train.guard`).
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, Int64

from mdlm.data.rows.shuffle import Order
from mdlm.data.tokens.special_tokens import end_of
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.model import Model
from mdlm.foreign.shown import visible
from mdlm.generation.generator import Generator
from mdlm.generation.programs import within_reach
from mdlm.generation.windows import window_of
from mdlm.keys import of_seed, stream
from mdlm.objectives.policy import Policy
from mdlm.objectives.rollouts import Rollouts
from mdlm.parallel.mesh import on, put_on_mesh
from mdlm.types import ArrayTree, Batch, Rollout

log = logging.getLogger(__name__)

Reward = Callable[[list[str], list[str]], Sequence[float]]
"""From prompts and texts to a number for each text."""


def check(e: Experiment) -> None:
    """Raises InputError if steps, batch or processes do not fit the objective's rollouts."""
    asked = e.objective.own_texts
    if asked is None:
        return
    if jax.process_count() > 1:
        raise InputError("rewards are computed by one process; start a single one")
    if e.train.batch_size % asked.group:
        raise InputError(
            f"train.batch_size={e.train.batch_size}: must be a multiple of the"
            f" {asked.group} texts of a prompt (objective.rollouts.group)"
        )
    if e.train.spike is not None:
        raise InputError("train.spike: a rewind skips data, which rewarded texts do not have")
    for name in ("steps", "log_every", "eval_every", "checkpoint_every"):
        value = getattr(e.train, name)
        if value % asked.updates:
            raise InputError(
                f"train.{name}={value}: must be a multiple of objective.rollouts.updates="
                f"{asked.updates}, so that no run ends between the updates from the same texts"
            )


class Repeated:
    """An order in which each row is taken `group` times in a row, and each batch `updates` times;
    a batch has `rows` prompts."""

    def __init__(self, order: Order, rollouts: Rollouts, rows: int):
        self.order, self.rollouts, self.rows = order, rollouts, rows

    def at(self, samples: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        batch, within = np.divmod(samples, self.rows * self.rollouts.group)
        number = batch // self.rollouts.updates * self.rows + within // self.rollouts.group
        return self.order.at(number)


class Written:
    """Writes the texts of a step and gives them their rewards.

    Args:
        model: the model, whose objective has rollouts.
        mesh: the devices of training.
        tokenizer: the run's.
        reward: the function that judges texts.
        joined: gives the parameters of the network (`step.joiner`).
    """

    def __init__(
        self,
        model: Model,
        mesh: Mesh,
        tokenizer: Tokenizer,
        reward: Reward,
        joined: Callable[[dict[str, Any], ArrayTree], ArrayTree],
    ):
        assert isinstance(model.objective, Policy)
        self.model, self.mesh, self.tokenizer = model, mesh, tokenizer
        self.reward, self.joined, self.objective = reward, joined, model.objective
        self._generator: Generator | None = None
        self._batch: Batch | None = None
        self._old: list[jax.Array] = []
        packing, vocab = model.experiment.data.packing, model.vocab
        eos = end_of(vocab)
        self.ends = set()
        if packing.is_one_document:
            self.ends = {*tokenizer.chat.ends, *(() if eos is None else (eos,))}
        key = stream(of_seed(model.experiment.seed), "train")

        def log_p(params: ArrayTree, step: Any, batch: Batch) -> jax.Array:
            with on(mesh):
                diffusion = model.diffusion(params).without_dropout()
                return self.objective.log_p(jax.random.fold_in(key, step), batch, diffusion)

        self._log_p = jax.jit(log_p)

    def order(self, order: Order) -> Order:
        """Returns the order in which training takes prompts that otherwise come in `order`."""
        asked = self.objective.rollouts
        return Repeated(order, asked, self.model.experiment.train.batch_size // asked.group)

    def batch(self, state: dict[str, Any], step: int, given: Batch) -> Batch:
        """Returns the batch of the step after `step` steps, for the prompts of `given`."""
        updates = self.objective.rollouts.updates
        number = step % updates
        if number == 0 or self._batch is None:
            params = self.joined(state, state["params"])
            self._batch = self._written(params, step, given)
            self._old = []
            if updates > 1:
                steps = range(step, step + updates)
                self._old = [self._log_p(params, np.int32(i), self._batch) for i in steps]
        if not self._old:
            return self._batch
        rollout = replace(self._batch.rollout, log_p_old=self._old[number])
        return replace(self._batch, rollout=rollout)

    def _written(self, params: ArrayTree, step: int, given: Batch) -> Batch:
        tokens, loss_mask = np.asarray(given.tokens), np.asarray(given.loss_mask)
        is_prompt = ~loss_mask
        if given.is_valid is not None:
            is_prompt &= np.asarray(given.is_valid)
        key = jax.random.fold_in(stream(of_seed(self.model.experiment.seed), "rollouts"), step)
        seed = int(jax.random.bits(key))
        written = self._filled(params, tokens, is_prompt, seed)
        counts = until_end(written, is_prompt, self.ends)
        texts = lambda mask: [
            self.tokenizer.decode(row[m]) for row, m in zip(written, mask, strict=True)
        ]
        advantage, reward = self._judged(step, texts(is_prompt), texts(counts))
        rows = put_on_mesh(
            self.mesh,
            {
                "tokens": written.astype(np.int32),
                "loss_mask": counts,
                "is_prompt": is_prompt,
                "advantage": advantage,
                "reward": reward,
            },
        )
        known = {name: rows.pop(name) for name in ("is_prompt", "advantage", "reward")}
        return Batch(**rows, row=given.row, rows=given.rows, rollout=Rollout(**known))

    def _filled(
        self,
        params: ArrayTree,
        tokens: Int[np.ndarray, "b l"],
        is_prompt: Bool[np.ndarray, "b l"],
        seed: int,
    ) -> Int[np.ndarray, "b l"]:
        params = within_reach(params)
        if self._generator is None:
            window = window_of(self.model.experiment.data.packing, self.model)
            self._generator = Generator(self.model, params, self.tokenizer, window)
        self._generator.load(params)
        return self._generator.fill(tokens, is_prompt, seed=seed)

    def _judged(
        self, step: int, prompts: list[str], texts: list[str]
    ) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
        """Returns the weight of each text and its reward; NaN if the reward failed."""
        rewards = judged(self.reward, prompts, texts, f"step {step + 1}")
        if rewards is None:
            nothing = np.full(len(texts), np.nan, np.float32)
            return nothing, nothing
        weights = self.objective.weights(rewards.reshape(-1, self.objective.rollouts.group))
        return weights.reshape(-1).astype(np.float32), rewards.astype(np.float32)


def judged(
    reward: Reward, prompts: list[str], texts: list[str], where: str
) -> Float[np.ndarray, " b"] | None:
    """Returns the reward of each text; None if the function failed, which is said with the text."""
    name = getattr(reward, "__name__", "reward")
    try:
        found = list(reward(prompts, texts))
        if len(found) != len(texts):
            raise ValueError(f"{len(found)} numbers for {len(texts)} texts")
    except Exception as error:
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        return _skipped(where, f"reward {name} failed ({words:.200})", texts[0])
    for value, text in zip(found, texts, strict=True):
        if not _is_number(value):
            return _skipped(where, f"reward {name} gave {value!r:.40}, no finite number,", text)
    return np.array([float(value) for value in found], np.float64)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _skipped(where: str, what: str, text: str) -> None:
    shown = visible(text).replace("\n", "\\n")
    short = shown if len(shown) <= 80 else f"{shown[:77]}..."
    log.warning("%s: %s for the text '%s'; the step is skipped", where, what, short)


def until_end(
    tokens: Int[np.ndarray, "b l"], is_prompt: Bool[np.ndarray, "b l"], ends: set[int]
) -> Bool[np.ndarray, "b l"]:
    """Returns which tokens are a response: those after the prompt, up to the first that ends it."""
    is_end = np.isin(tokens, list(ends)) & ~is_prompt
    ended_before = np.cumsum(is_end, axis=1) - is_end > 0
    return ~is_prompt & ~ended_before
