"""Judges: a bigram whose law is enumerated, networks against log-likelihoods, what is scored."""

import itertools
import math

import numpy as np
import pytest
import tiny
from made_run import made

from mdlm.data import Bytes, Characters, NoText, TextData, Wrap
from mdlm.data.tokens.text_size import TextSizes
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError
from mdlm.evals.generated.judge import NgramJudge, judged
from mdlm.evals.generated.windows import Context
from mdlm.models import CausalTransformer
from mdlm.objectives import Autoregressive
from mdlm.samplers import LeftToRight
from mdlm.types import Vocab

FIRST = {"a": 2, "b": 1, "c": 1}
AFTER = {"a": {"a": 1, "b": 3}, "b": {"b": 2, "c": 2}, "c": {"a": 4}}
"""A Markov chain of three letters, in quarters."""
LENGTH = 4


class Bigram:
    """Judges by the chain itself."""

    start, protocol = None, "a bigram"

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def nats(self, sequences, report):
        return [
            np.array(
                [
                    -math.log((AFTER[own[i - 1]] if i else FIRST)[letter] / 4)
                    for i, letter in enumerate(own)
                ]
            )
            for own in (self.tokenizer.decode(ids) for ids in sequences)
        ]

    def features(self, sequences, report):
        return None


def law():
    """Each text with its probability in parts of 4^LENGTH."""
    for text in itertools.product("abc", repeat=LENGTH):
        weight = FIRST[text[0]] * math.prod(
            AFTER[one].get(other, 0) for one, other in itertools.pairwise(text)
        )
        if weight:
            yield "".join(text), weight


@pytest.fixture(scope="module")
def tokenizer():
    return Bytes().build([])


def test_the_nll_of_a_bigram_s_own_texts_is_its_entropy(tokenizer):
    """Each text as often as the law says: the mean is the expectation, exactly. It is the entropy
    of the first letter, and of each next one under the distribution of the letter before."""
    texts = [[text] for text, weight in law() for _ in range(weight)]
    assert len(texts) == 4**LENGTH
    found = judged(Bigram(tokenizer), texts)

    def entropy(quarters):
        return -sum(q / 4 * math.log(q / 4) for q in quarters.values())

    before = {letter: q / 4 for letter, q in FIRST.items()}
    expected = entropy(FIRST)
    for _ in range(LENGTH - 1):
        expected += sum(p * entropy(AFTER[letter]) for letter, p in before.items())
        before = {
            letter: sum(p * AFTER[one].get(letter, 0) / 4 for one, p in before.items())
            for letter in "abc"
        }
    assert found.nats.mean() == pytest.approx(expected, rel=1e-12)
    assert (found.tokens == LENGTH).all() and (found.bytes == LENGTH).all()


def test_n_grams_learn_that_bigram(tokenizer):
    """Of all texts of the law they know the chain, up to what Kneser-Ney takes for the unseen."""
    texts = [text for text, weight in law() for _ in range(weight)]
    packing = Wrap(length=LENGTH, row_specials=False, eos=False)
    rows = packing.of(tokenizer.encode(texts * 40), tokenizer.vocab)
    counted = NgramJudge.of(rows, tokenizer, start=None, order=2)
    exact = judged(Bigram(tokenizer), [[text] for text in texts])
    found = judged(counted, [[text] for text in texts])
    assert found.nats.sum() == pytest.approx(exact.nats.sum(), rel=1e-3)
    assert found.nats.sum() > exact.nats.sum()
    assert "Kneser-Ney 2-gram of the 40,960 tokens of the training split" in counted.protocol


def causal(folder, rows=32, row_specials=True):
    data = TextData(
        source=NoText(), tokenizer=Bytes(), packing=Wrap(length=rows, row_specials=row_specials)
    )
    changes = dict(
        network=CausalTransformer(width=16, depth=1, heads=2),
        objective=Autoregressive(),
        sampler=LeftToRight(),
    )
    return made(folder / "run", tiny.experiment(folder, data=data, **changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return causal(tmp_path_factory.mktemp("judge"))


def test_a_network_gives_the_log_likelihood_of_each_text(run):
    texts = ["the quick brown", "fox", "a"]
    found = judged(run.judge(), [[text] for text in texts])
    expected = [-one.value for one in run.log_likelihood([("", text) for text in texts])]
    assert found.nats == pytest.approx(expected, rel=1e-5)
    assert found.tokens.tolist() == [15, 3, 1] == found.bytes.tolist()
    assert found.features.shape == (3, 16) and np.isfinite(found.features).all()
    assert run.judge().protocol == (
        f"{run.folder.path}, step 0; windows of 32 tokens, 16 new, first token scored after"
        f" {run.tokenizer.backend.id_to_token(run.tokenizer.vocab.bos_id)}"
    )


def test_windows_have_the_context_that_they_say(run):
    """Each token's -log p is that of the text from the beginning of its window."""
    text = "pack my box with five dozen liquor jugs, he said"
    found = run.judge(context=12, stride=5).nats(
        [np.array([run.tokenizer.vocab.bos_id, *run.tokenizer.encode([text])[0]])],
        lambda done, of: None,
    )[0]
    ids = [run.tokenizer.vocab.bos_id, *run.tokenizer.encode([text])[0].tolist()]
    assert math.isnan(found[0]) and np.isfinite(found[1:]).all()
    whole = run.judge(context=32, stride=1)
    for i in (1, 11, 12, 16, 17, len(ids) - 1):
        begin = next(
            b
            for b, first, end in Context(context=12, stride=5).windows(len(ids))
            if first <= i < end
        )
        alone = whole.nats([np.array(ids[begin : i + 1])], lambda done, of: None)[0]
        assert found[i] == pytest.approx(alone[-1], rel=1e-4)
        assert i < 12 or i - begin >= 7


def test_features_are_of_the_text_alone(run):
    """They do not depend on the batch, and do on the last token."""
    judge, report = run.judge(), lambda done, of: None
    ids = run.tokenizer.encode(["five dozen", "jugs", "jugs!"])
    both = judge.features(ids, report)
    assert judge.features(ids[1:2], report)[0] == pytest.approx(both[1], abs=1e-5)
    assert np.abs(both[1] - both[2]).max() > 1e-3


def test_rows_without_a_first_token(tmp_path):
    judge = causal(tmp_path, row_specials=False).judge()
    found = judged(judge, [["ab"], ["a"], [""]])
    assert found.tokens.tolist() == [1, 0, 0] == found.bytes.tolist()
    assert "first token of a text not scored" in judge.protocol


def test_ends(run):
    """A text of two documents, of which the second ended too: ends are read always, and scored as
    asked for."""
    texts = [["ab", "c", ""]]
    counts = {ends: judged(run.judge(), texts, ends) for ends in ("none", "first", "all")}
    assert [found.tokens.tolist() for found in counts.values()] == [[3], [4], [5]]
    assert [found.bytes.tolist() for found in counts.values()] == [[3]] * 3
    end = run.tokenizer.vocab.eos_id
    a, b, c = run.tokenizer.encode(["abc"])[0]
    assert counts["none"].read[0].tolist() == [a, b, end, c, end]
    assert counts["none"].nats < counts["first"].nats < counts["all"].nats


class NoEnd(Bigram):
    """A judge whose tokenizer has no end token."""

    def nats(self, sequences, report):
        return [np.arange(len(own), dtype=float) for own in sequences]


def test_a_judge_without_an_end_token_reads_each_document_by_itself(tokenizer):
    letters = Characters().build(["abc"])
    vocab = Vocab(size=letters.vocab.size, mask_id=letters.vocab.mask_id)
    judge = NoEnd(Tokenizer(letters.backend, vocab, closed_alphabet=True))
    found = judged(judge, [["ab", "abc", ""], ["c"]])
    assert found.nats.tolist() == [1 + 3, 0] and found.tokens.tolist() == [5, 1]
    with pytest.raises(InputError, match="text 1: the judge has no tokens for it: .*'z'.*another"):
        judged(judge, [["ab"], ["zz"]])


def test_bytes_are_those_of_the_text(run):
    text = "naïve €"
    [size] = judged(run.judge(), [[text]]).bytes
    assert size == len(text.encode()) == 10
    assert TextSizes.of(run.tokenizer).is_exact


def test_a_network_that_is_no_judge(tmp_path):
    data = TextData(source=NoText(), tokenizer=Bytes(), packing=Wrap(length=32))
    run = made(tmp_path / "run", tiny.experiment(tmp_path, data=data))
    with pytest.raises(InputError, match="does not go from left to right.*autoregressive run"):
        run.judge()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 33}, "context=33: .* reads at most 32 tokens"),
        ({"context": 1}, "context=1: must be at least 2"),
        ({"context": 8, "stride": 9}, r"stride=9: must be in 1\.\.8, the context"),
    ],
)
def test_windows_that_cannot_be(run, settings, message):
    with pytest.raises(InputError, match=message):
        run.judge(**settings)
