"""The texts that a run generates while it is trained."""

from mdlm.data.dataset import Dataset
from mdlm.data.pair_data import PairData
from mdlm.data.tokens.special_tokens import end_of
from mdlm.experiment.model import Model
from mdlm.generation.generator import Generator
from mdlm.generation.programs import within_reach
from mdlm.generation.texts import Generation
from mdlm.generation.windows import window_of, window_of_answers
from mdlm.types import ArrayTree

SAMPLES = 2
"""Number of texts that are generated at a time."""


class Sampling:
    """Generates texts of the length of a row, or of `train.sample_length` tokens. If data are
    prompts and responses, the texts are answers to the first prompts of `split`. It compiles once.
    """

    def __init__(self, model: Model, dataset: Dataset, split: str):
        self.model, self.dataset, self.split = model, dataset, split
        self._generator: Generator | None = None
        self._prompts: list[list[int]] | None = None

    def __call__(self, params: ArrayTree, seed: int) -> Generation:
        """Returns texts by these parameters."""
        params, e = within_reach(params), self.model.experiment
        if self._generator is None:
            window = window_of(e.data.packing, self.model)
            self._generator = Generator(self.model, params, self.dataset.tokenizer, window)
        generator = self._generator
        generator.load(params)
        if isinstance(e.data, PairData):
            return self._answers(generator, e.data, seed)
        return generator.continue_from(
            [""] * SAMPLES,
            e.train.sample_length or generator.window.room,
            seed=seed,
            stop_at_eos=e.data.packing.is_one_document,
        )

    def _answers(self, generator: Generator, data: PairData, seed: int) -> Generation:
        tokenizer, e = self.dataset.tokenizer, self.model.experiment
        longest = data.packing.length
        if self._prompts is None:
            self._prompts = data.prompts(self.split, tokenizer, SAMPLES)
        found = self._prompts
        # Of a prompt that leaves no room the first half of a row is answered.
        prompts = [one if len(one) < longest else one[: longest // 2] for one in found]
        most = max(map(len, prompts))
        window = window_of_answers(prompts, longest - most, longest, e.network)
        length = min(e.train.sample_length or longest, longest - most)
        eos = end_of(self.model.vocab)
        ends = (*tokenizer.chat.ends, *(() if eos is None else (eos,)))
        totals = [len(one) + length for one in prompts]
        return generator.in_windows(window).continue_tokens(
            prompts, totals, seed=seed, stop_at=ends
        )
