"""Bits per byte and per character divide by the text of the tokens that were scored."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import tiny
from held import Held

from mdlm.data import BPE, Bytes, Characters, Pad, WordPiece, Wrap
from mdlm.data.tokens.text_size import TextSizes
from mdlm.evals.scorer import Scorer
from mdlm.experiment import Perplexity
from mdlm.experiment.model import Model
from mdlm.models import CausalTransformer, DiT
from mdlm.objectives import Autoregressive
from mdlm.samplers import LeftToRight

TEXT = "naïve café, 東京 🙂 the the quick brown fox. " * 40


def scored(experiment, mask=None):
    """Metrics by name of a validation split whose loss mask is `mask(rows)`."""
    dataset = experiment.data.load()
    valid = dataset.valid
    if mask is not None:
        rows = valid.rows.all()
        held = Held(dataclasses.replace(rows, loss_mask=mask(rows)))
        vars(held).update(placed=valid.rows.placed, dropped=valid.rows.dropped)
        dataset.valid = dataclasses.replace(valid, rows=held)
    model = Model.on(experiment, dataset)
    scorer = Scorer(model, experiment.mesh.build(), dataset)
    how = Perplexity(split="valid", passes=1, ngrams=True)
    params = jax.jit(model.init)(jax.random.key(0))
    return {metric.name: metric for metric in scorer.run(params, how)}


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)

    def make(tokenizer, packing, **changes):
        changes = {"network": DiT(width=8, depth=1, heads=2, cond_dim=8), **changes}
        made = tiny.experiment(path, **changes)
        return dataclasses.replace(
            made, data=dataclasses.replace(made.data, tokenizer=tokenizer, packing=packing)
        )

    return make


PLAIN = Wrap(length=16, row_specials=False, eos=False)


def test_a_byte_tokenizer_has_the_bits_of_its_tokens_for_any_mask(experiment):
    random = np.random.default_rng(0)
    for mask in (None, lambda rows: rows.loss_mask & (random.random(rows.tokens.shape) < 0.3)):
        found = scored(experiment(Bytes(), PLAIN), mask)
        per_token = found["nats per token"].value / math.log(2)
        assert found["bits per byte"].value == pytest.approx(per_token, rel=1e-6)
        assert found["bits per byte"].n == found["nats per token"].n
        assert found["bits per character"].n < found["bits per byte"].n
        for name in ("unigram", "bigram"):
            nats = found[f"{name} nats per token"].value
            assert found[f"{name} bits per byte"].value == pytest.approx(nats / math.log(2))


def test_a_first_token_that_is_given_is_no_text_scored(experiment):
    """An autoregressive objective without BOS does not score the first byte of each row."""
    network = CausalTransformer(width=8, depth=1, heads=2)
    changes = {"objective": Autoregressive(), "sampler": LeftToRight(), "network": network}
    found = scored(experiment(Bytes(), PLAIN, **changes))
    per_token = found["nats per token"].value / math.log(2)
    assert found["bits per byte"].value == pytest.approx(per_token, rel=1e-6)


@pytest.mark.parametrize(
    "packing", [PLAIN, Pad(length=12), Wrap(length=16)], ids=["plain", "padded", "framed"]
)
@pytest.mark.parametrize(
    "tokenizer",
    [Bytes(), BPE(vocab_size=280), Characters(), WordPiece(vocab_size=80)],
    ids=lambda config: type(config).__name__,
)
def test_the_text_of_scored_tokens_is_counted(experiment, tokenizer, packing):
    """All that is scored is all the text; what is scored of a part is that part."""
    made = experiment(tokenizer, packing)
    dataset = made.data.load()
    sizes = TextSizes.of(dataset.tokenizer)
    text = dataset.data.source.documents("valid")
    if not isinstance(tokenizer, WordPiece):
        assert sizes.is_exact
        ids = dataset.tokenizer.encode(text)
        expected = [sum(len(t.encode()) for t in text), sum(map(len, text))]
        np.testing.assert_array_equal(sum(sizes.total(i) for i in ids), expected)
    whole = scored(made)
    assert whole["bits per byte"].n == pytest.approx(dataset.valid.bytes, rel=0.1)
    if packing is PLAIN:
        assert whole["bits per byte"].n == pytest.approx(dataset.valid.bytes)
        assert whole["bits per character"].n == pytest.approx(dataset.valid.characters)
    first = scored(made, lambda rows: rows.loss_mask & (np.arange(rows.tokens.shape[1]) < 5))
    assert 0 < first["bits per byte"].n < 0.6 * whole["bits per byte"].n


@pytest.mark.filterwarnings("error")
def test_a_text_of_unknown_tokens_has_no_size(experiment):
    """So no bits per byte are given for it."""
    made = experiment(WordPiece(vocab_size=80), PLAIN)
    dataset = made.data.load()
    rows = dataset.valid.rows.all()
    unknown = np.full_like(rows.tokens, dataset.tokenizer.unk_id)
    held = Held(dataclasses.replace(rows, tokens=unknown))
    vars(held).update(placed=dataset.valid.rows.placed, dropped=0)
    dataset.valid = dataclasses.replace(dataset.valid, rows=held)
    scorer = Scorer(Model.on(made, dataset), made.mesh.build(), dataset)
    assert scorer._units("valid", np.zeros(2)) == {}
