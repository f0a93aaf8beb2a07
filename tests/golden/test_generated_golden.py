"""Generative perplexity and entropy of the MDLM and BD3-LM repositories, by their toy evaluator.

Its logits are W[token] + sin(0.01 i) r, i counted inside a window.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tokenizers

from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.evals.generated.judge import judged
from mdlm.evals.generated.windows import Context
from mdlm.types import Vocab

pytestmark = pytest.mark.golden
EOS, MASK = 2, 40


@dataclass
class Toy:
    """The toy evaluator. Token i is spelled by the character number 200 + i."""

    data: Any
    rule: Context
    start: None = None
    protocol: str = "toy"

    def __post_init__(self):
        names = {chr(200 + i): i for i in range(40)}
        names["<eos>"] = names.pop(chr(200 + EOS))
        names["<mask>"] = MASK
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token=None))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
        backend.decoder = tokenizers.decoders.Fuse()
        backend.add_special_tokens(["<eos>", "<mask>"])
        self.tokenizer = Tokenizer(backend, Vocab(size=41, mask_id=MASK, eos_id=EOS))

    def nats(self, sequences, report):
        found = [np.full(len(own), np.nan) for own in sequences]
        for out, own in zip(found, sequences, strict=True):
            for begin, first, end in self.rule.windows(len(own)):
                i = np.arange(end - begin)
                read = own[begin:end]
                logits = self.data["W"][read] + np.sin(0.01 * i)[:, None] * self.data["r"]
                log_p = logits - np.log(np.exp(logits.astype(float)).sum(-1, keepdims=True))
                values = np.r_[np.nan, -log_p[i[:-1], read[1:]]]
                out[first:end] = values[first - begin :]
        return found

    def features(self, sequences, report):
        return None


def written(rows):
    """The documents of rows of tokens."""
    text = ["".join("\n" if i == EOS else chr(200 + i) for i in row) for row in rows]
    return [one.split("\n") for one in text]


@pytest.fixture
def data(golden):
    return golden("gen_metrics.npz")


@pytest.mark.parametrize(("ends", "name"), [("none", "bd3_gen_ppl"), ("first", "mdlm_gen_ppl")])
def test_perplexity(data, ends, name):
    judge = Toy(data, Context(context=1024, stride=512))
    found = judged(judge, written(data["tokens"]), ends)
    assert all(np.array_equal(a, b) for a, b in zip(found.read, data["tokens"], strict=True))
    perplexity = np.exp(found.nats.sum() / found.tokens.sum())
    assert perplexity == pytest.approx(float(data[name]), rel=1e-6)
    if ends == "none":
        assert found.tokens.sum() == data["bd3_gen_length"]


def test_entropy_is_summed_over_texts_there(data):
    judge = Toy(data, Context(context=1024, stride=512))
    for tokens, name in (("tokens", "bd3_gen_entropy"), ("long_tokens", "bd3_long_gen_entropy")):
        found = judged(judge, written(data[tokens]))
        assert found.entropy.sum() == pytest.approx(float(data[name]), rel=1e-6)


def test_long_texts_in_windows(data):
    found = judged(Toy(data, Context(context=1024, stride=512)), written(data["long_tokens"]))
    assert found.tokens.sum() == data["bd3_long_gen_length"]
    perplexity = np.exp(found.nats.sum() / found.tokens.sum())
    assert perplexity == pytest.approx(float(data["bd3_long_gen_ppl"]), rel=1e-6)
