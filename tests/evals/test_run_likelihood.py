"""Scoring pairs with runs: exact where it can be, texts and conversations, refusals."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from made_run import made

from mdlm.data import Bytes, NoText, Pad, TextData, Wrap
from mdlm.data.pairs import as_pairs
from mdlm.data.tokens.chat import Chat
from mdlm.errors import InputError
from mdlm.evals.log_likelihood import totals
from mdlm.models import BlockDiT, CausalTransformer
from mdlm.objectives import Autoregressive, BlockNelbo, MaskedLM, Nelbo
from mdlm.samplers import BlockByBlock, LeftToRight
from mdlm.types import NetInput

WRAP = Wrap(length=32, row_specials=False)
SIZES = dict(width=32, depth=2, heads=2)
PAIRS = [("the quick ", "brown fox"), ("a", " lazy dog while"), ("", "seven wizards")]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def new(folder, packing=WRAP, **changes):
    """A run with random parameters, rows of 32 bytes."""
    data = TextData(source=NoText(), tokenizer=Bytes(), packing=packing)
    return made(folder / "run", tiny.experiment(folder, data=data, **changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return new(tmp_path_factory.mktemp("dit"))


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return new(
        tmp_path_factory.mktemp("causal"),
        network=CausalTransformer(**SIZES),
        objective=Autoregressive(),
        sampler=LeftToRight(),
    )


def in_blocks(folder, size):
    return new(
        folder,
        network=BlockDiT(**SIZES, cond_dim=16, block_size=size),
        objective=BlockNelbo(block_size=size),
        sampler=BlockByBlock(block_size=size),
    )


def chain(run, prompt, response):
    """The sum of log p of the tokens of a response, each given those before it, in float64: the
    row alone, without padding; the network reads the mask at each token that it predicts."""
    tokens, mask = np.array([[*prompt, *response]]), run.tokenizer.vocab.mask_id
    is_causal = run.experiment.network.attends == "causal"

    @jax.jit
    def logits_of(params, clean):
        noised = clean if is_causal else jnp.full(clean.shape, mask)
        inputs = NetInput(tokens=noised, clean=clean, t=jnp.ones((1, 1)))
        return run.model.diffusion(params).denoise(inputs).logits()[0]

    logits = np.array(logits_of(run.params, jnp.asarray(tokens, jnp.int32)), np.float64)
    logits[:, mask] = -np.inf
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return sum(log_p[i, tokens[0, i]] for i in range(len(prompt), tokens.shape[1]))


def test_a_causal_network_is_exact(causal):
    found = causal.log_likelihood(PAIRS)
    for pair, one in zip(causal.encoded(as_pairs(PAIRS)), found, strict=True):
        assert pair.prompt[0] == causal.tokenizer.vocab.bos_id
        assert one.value == pytest.approx(chain(causal, pair.prompt, pair.response), rel=1e-4)
        assert one.stderr is None and one.passes == 1
        assert one.protocol == "log p(response | prompt), exact, token by token"
    assert [one.tokens for one in found] == [len(response) for _, response in PAIRS]


def test_blocks_of_one_are_exact(tmp_path):
    run = in_blocks(tmp_path, 1)
    for pair, one in zip(run.encoded(as_pairs(PAIRS)), run.log_likelihood(PAIRS), strict=True):
        assert one.value == pytest.approx(chain(run, pair.prompt, pair.response), rel=1e-4)
        assert one.stderr is None and one.protocol.endswith("exact, token by token")


def test_larger_blocks_give_their_bound(tmp_path):
    run = in_blocks(tmp_path, 8)
    [one] = run.log_likelihood(PAIRS[:1], passes=64)
    assert one.protocol.startswith("log p(response | prompt) >= -NELBO, blocks of 8")
    [again] = run.log_likelihood(PAIRS[:1], passes=64, seed=1)
    assert one.value == pytest.approx(again.value, abs=5 * math.hypot(one.stderr, again.stderr))
    assert 0 < one.stderr < 0.2 * abs(one.value)
    with pytest.raises(InputError, match="by=counts: needs a network.*use by=nelbo"):
        run.log_likelihood(PAIRS, by="counts")


def test_two_bounds_of_one_network_agree(run):
    """A network that is not conditioned on time has one bound, by counts and by times."""
    counts = run.log_likelihood(PAIRS, passes=256, batch_size=256)
    times = run.log_likelihood(PAIRS, passes=256, batch_size=256, by="nelbo")
    for a, b in zip(counts, times, strict=True):
        # The schedule ends at alpha = 1e-3, which is 1e-3 of the tokens.
        assert a.value == pytest.approx(b.value, abs=5 * math.hypot(a.stderr, b.stderr) + 0.1)
        assert a.stderr < b.stderr
        assert "order-agnostic" in a.protocol and "continuous time" in b.protocol
    per_token, perplexity = (m for m in totals(counts) if "bits" not in m.name)
    n = sum(len(response) for _, response in PAIRS)
    assert per_token.value == pytest.approx(-sum(a.value for a in counts) / n)
    error = math.sqrt(sum(a.stderr**2 for a in counts)) / n
    assert per_token.stderr == pytest.approx(error)
    assert perplexity.value == pytest.approx(math.exp(per_token.value))
    assert perplexity.stderr == pytest.approx(perplexity.value * error)


def test_what_is_no_bound_is_not_called_one(tmp_path):
    only = new(tmp_path / "a", objective=MaskedLM())
    with pytest.raises(InputError, match="by=nelbo: this run reports masked-LM.*use by=counts"):
        only.log_likelihood(PAIRS, by="nelbo")
    assert ">= -NELBO" in only.likelihood().protocol
    short = new(tmp_path / "b", objective=Nelbo(reconstruction=False))
    assert "prompt) ~ -NELBO without the reconst" in short.likelihood("nelbo").protocol


def test_until_sure(run):
    found = run.log_likelihood(PAIRS, passes=16, sure=0.5, batch_size=64)
    assert all(one.stderr <= 0.5 for one in found)
    assert max(one.passes for one in found) > 32


def test_a_conversation(run):
    messages = [{"role": "user", "content": "why"}]
    with pytest.raises(InputError, match="pair 1: this run has no chat template"):
        run.log_likelihood([(messages, "so")])
    run.tokenizer.chat = Chat(template=TEMPLATE)
    try:
        [pair] = run.encoded(as_pairs([(messages, "so")]))
        assert run.tokenizer.decode(pair.prompt) == "user: why\nassistant: "
        assert run.tokenizer.decode(pair.response) == "so"
        [one] = run.log_likelihood([(messages, "so")])
        [same] = run.log_likelihood([("user: why\nassistant: ", "so")])
        assert one == same
    finally:
        run.tokenizer.chat = Chat()


def test_rows_begin_as_those_of_the_data(tmp_path):
    for packing, begins in ((Pad(length=32), 1), (Wrap(length=32), 1), (WRAP, 0)):
        run = new(tmp_path / str(packing), packing)
        [pair] = run.encoded(as_pairs([("ab", "c")]))
        assert len(pair) == 3 + begins
        assert not begins or pair.prompt[0] == run.tokenizer.vocab.bos_id


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", "b"), ("a", "")], "pair 2: the response is empty"),
        ([("a" * 30, "b" * 3)], r"pair 1: prompt and response have 30 \+ 3 tokens, a row of this"),
        ([("a", "b")], "passes=3: must be even"),
    ],
)
def test_refusals(run, pairs, message):
    with pytest.raises(InputError, match=message):
        run.log_likelihood(pairs, passes=3 if "passes" in message else 2)


def test_marginals(run, causal):
    [tokens] = run.tokenizer.encode(["the quick brown fox jumps over a"])
    known = np.arange(len(tokens)) < 6
    one = run.log_marginal(tokens, known, orders=16)
    given = np.arange(len(tokens)) < 2
    first, rest = (
        run.log_marginal(tokens, given, orders=16),
        run.log_marginal(tokens, known, given, orders=16),
    )
    assert (one.tokens, first.tokens, rest.tokens) == (6, 2, 4)
    assert one.stderr > 0 and one.passes == 16 * 6
    assert one.value == pytest.approx(first.value + rest.value, abs=1.0)
    [alone] = np.flatnonzero(known)[:1]
    single = np.arange(len(tokens)) == alone
    # One token, nothing else seen: the network's own answer, in every order.
    mask = run.tokenizer.vocab.mask_id
    z = jnp.full((1, len(tokens)), mask)
    logits = run.model.diffusion(run.params).denoise(NetInput(tokens=z)).logits()[0, alone]
    log_p = jax.nn.log_softmax(logits.at[mask].set(-jnp.inf))[tokens[alone]]
    found = run.log_marginal(tokens, single, orders=3)
    assert found.value == pytest.approx(float(log_p), abs=1e-4) and found.stderr < 1e-5
    for arguments, message in (
        ((tokens, ~known & known), "known: at least one token"),
        ((tokens, known[:-1]), "must be equally long, not 32, 31 and 32"),
    ):
        with pytest.raises(InputError, match=message):
            run.log_marginal(*arguments)
    with pytest.raises(InputError, match="log_marginal: needs a masked process and a network"):
        causal.log_marginal(tokens, known)


def test_lines_of_json_have_no_nan(run):
    [one] = run.log_likelihood(PAIRS[:1], passes=2)
    assert json.loads(json.dumps(vars(one)))["tokens"] == 9
