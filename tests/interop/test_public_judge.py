"""An imported causal folder as the judge of texts, against the public network's logits."""

import numpy as np
import pytest

from mdlm.evals import judged

pytestmark = pytest.mark.golden
MASK = 63


def test_it_gives_the_log_probabilities_of_that_network(llama, golden):
    """All but the mask's: no clean token is one, so it takes no part in the softmax."""
    data = golden("interop_ar.npz")
    judge = llama.run.judge()
    logits = np.delete(data["llama__logits_causal"].astype(float), MASK, axis=-1)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = judge.nats(list(data["x"]), lambda done, of: None)
    for nats, x, rows in zip(found, data["x"], log_p, strict=True):
        known = np.flatnonzero(x[1:] != MASK)
        assert np.isnan(nats[0]) and len(known) > 10
        np.testing.assert_allclose(
            nats[1:][known], -rows[:-1][known, x[1:][known]], rtol=1e-4, atol=1e-4
        )
    assert "first token of a text not scored" in judge.protocol


def test_it_reads_texts_in_its_own_tokens(llama):
    text = llama.run.tokenizer.decode([3, 5, 8, 13, 21])
    found = judged(llama.run.judge(), [[text, ""], [text]])
    ends = [int(np.sum(ids == llama.run.tokenizer.vocab.eos_id)) for ids in found.read]
    assert ends == [1, 0] and found.tokens[0] == found.tokens[1] == len(found.read[1]) - 1
    assert found.nats[0] == pytest.approx(found.nats[1], rel=1e-6)
    assert found.features.shape[0] == 2
