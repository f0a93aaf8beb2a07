"""Likelihoods of responses against the public code of LLaDA and Dream, with their networks.

Their softmax gives the mask a share too, which no clean token is. For the comparison `as_published`
leaves it there; ours without it is a little larger.
"""

import dataclasses
import itertools
import json

import checkpoint_maker
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdlm
from mdlm.data.pairs import Encoded
from mdlm.evals.likelihood import Likelihood
from mdlm.evals.log_likelihood import Passes
from mdlm.evals.orders import ChainRule, Greedy
from mdlm.interop.importing import import_folder
from mdlm.objectives.base import score_masked
from mdlm.parameterizations.mean import Mean
from mdlm.types import Batch

pytestmark = pytest.mark.golden
TOKENS = dict(t63="<mask>", t62="<eot>", t61="<eos>", t60="<bos>")
MASK = 63


def imported(folder, golden_folder, name, net):
    """The run of a reference network."""
    settings = json.loads((golden_folder / f"interop_{name}.json").read_text(encoding="utf-8"))
    source = checkpoint_maker.folder(
        folder / "source",
        settings["configs"][net],
        golden_folder / f"interop_{name}_{net}.safetensors",
        checkpoint_maker.tokenizer(64, **TOKENS),
    )
    import_folder(source, folder / "run", overrides=[])
    return mdlm.load(folder / "run")


@pytest.fixture(scope="module")
def llada(tmp_path_factory, golden_folder):
    return imported(tmp_path_factory.mktemp("llada"), golden_folder, "llada", "mha")


@pytest.fixture(scope="module")
def dream(tmp_path_factory, golden_folder):
    return imported(tmp_path_factory.mktemp("dream"), golden_folder, "dream", "untied")


def pair(prompt, response):
    return Encoded(prompt=tuple(map(int, prompt)), response=tuple(map(int, response)), where="x")


def as_published(run):
    """The diffusion of a run in which the mask has a probability."""

    def diffusion(params):
        return dataclasses.replace(
            run.model.diffusion(params),
            parameterization=Mean(mask_has_mass=True).with_vocab(run.tokenizer.vocab),
        )

    return diffusion


def nats_of(run, tokens, z, weight):
    """Weighted cross-entropies of the masked tokens of given noised rows, by row."""

    @jax.jit
    def evaluate(params, tokens, z, weight):
        n = len(z)
        batch = Batch(tokens=tokens, loss_mask=z == MASK, row=jnp.arange(n), rows=jnp.asarray(n))
        terms = score_masked(
            batch, as_published(run)(params), z_t=z, t=jnp.ones((n, 1)), weight=weight
        )
        return terms.bound.sum(-1)

    z = np.asarray(z, np.int32)
    rows = np.broadcast_to(np.asarray(tokens, np.int32), z.shape)
    weight = np.broadcast_to(np.asarray(weight, np.float32), z.shape)
    return np.asarray(evaluate(run.params, rows, z, weight), np.float64)


def every_order(run, tokens, given):
    at = np.flatnonzero(~given)
    orders = np.array(list(itertools.permutations(at)))
    return ChainRule(as_published(run), run.params, mesh=run.mesh)(tokens, orders, given)


def test_weights_of_llada(llada, golden):
    """For their masks, the cross-entropies times n / K."""
    g = golden("interop_llada_loglik.npz")
    tokens = np.concatenate([g["prompt"], g["answer"]])
    z = g["perturbed"].reshape(-1, len(tokens))
    n, masked = len(g["answer"]), (z == MASK).sum(-1)
    np.testing.assert_allclose(g["p_mask"].reshape(z.shape)[:, 0], masked / n, rtol=1e-6)
    found = nats_of(llada, tokens, z, (n / masked)[:, None])
    np.testing.assert_allclose(found, g["plain__per_sample"].ravel(), rtol=2e-5)
    assert -found.mean() == pytest.approx(float(g["plain__result"]), rel=1e-5)


def test_what_the_estimate_of_llada_converges_to(llada, golden):
    g = golden("interop_llada_loglik.npz")
    answer, limit = g["answer"][:4], float(g["exhaustive__result"])
    tokens = np.concatenate([g["prompt"], answer])
    given = np.arange(len(tokens)) < len(g["prompt"])
    # Over all masks, over all orders, and drawn.
    z, k = g["exhaustive__perturbed"], g["exhaustive__num_masked"]
    ce = nats_of(llada, tokens, z, 1.0)
    np.testing.assert_allclose(ce, g["exhaustive__ce_sum"], rtol=2e-5)
    over_masks = -np.mean([4 / size * ce[k == size].mean() for size in range(1, 5)])
    assert over_masks == pytest.approx(limit, rel=1e-6)
    assert every_order(llada, tokens, given).mean() == pytest.approx(limit, rel=1e-6)
    chain = ChainRule(llada.model.diffusion, llada.params, mesh=llada.mesh)
    orders = np.array(list(itertools.permutations(np.flatnonzero(~given))))
    without_mask = chain(tokens, orders, given).mean()
    assert limit < without_mask < limit + 0.02
    likelihood = llada.likelihood(batch_size=512)
    assert likelihood.protocol.startswith("log p(response | prompt) >= -NELBO, order-agnostic")
    found = likelihood([pair(g["prompt"], answer)] * 40, Passes(passes=32))
    values = np.array([one.value for one in found])
    assert values.mean() == pytest.approx(without_mask, abs=4 * values.std() / np.sqrt(40))
    assert values.std() < 0.1 * abs(limit)
    assert np.mean([one.stderr**2 for one in found]) == pytest.approx(values.var(), rel=0.6)


def test_greedy_decoding_as_llada_checks_it(llada, golden):
    g = golden("interop_llada_loglik.npz")
    prompt, written = g["greedy__states"][-1][:5], g["greedy__states"][-1][5:]
    check = Greedy(
        llada.model.diffusion,
        llada.params,
        mesh=llada.mesh,
        vocab=llada.tokenizer.vocab,
        lengths=[len(prompt) + len(written)],
    )
    others = [np.where(np.arange(6) == i, (written + 1) % 60, written) for i in range(6)]
    pairs = [pair(prompt, response) for response in (written, *others)]
    assert check(pairs).tolist() == [True] + [False] * 6


def test_dream_by_times_and_in_two_orders(dream, golden):
    """Upstream never masks the last token; with all of them masked the sums are these."""
    g = golden("interop_dream_loglik.npz")
    tokens = np.concatenate([g["prefix"], g["target"]])
    is_target = np.arange(len(tokens)) >= len(g["prefix"])
    t = g["t"].reshape(-1)
    hidden = (g["u"].reshape(len(t), -1) < t[:, None]) & is_target
    z = np.where(hidden, MASK, tokens)
    found = nats_of(dream, tokens, z, (1 / t)[:, None])
    np.testing.assert_allclose(found, g["per_sample_all_target"].ravel(), rtol=2e-5)
    assert found.mean() == pytest.approx(float(g["nll_all_target"]), rel=1e-5)
    at = np.flatnonzero(is_target)
    chain = ChainRule(as_published(dream), dream.params, mesh=dream.mesh)
    ltr, rtl = chain(tokens, np.stack([at, at[::-1]]), ~is_target)
    assert -ltr == pytest.approx(float(g["chain_ltr__nll"]), rel=1e-5)
    assert -rtl == pytest.approx(float(g["chain_rtl__nll"]), rel=1e-5)


def test_a_pair_of_texts(llada):
    """From text to the same numbers: the tokenizer of these runs has a token per character."""
    ids = llada.tokenizer.encode(["abcde", "fghi"])
    [found] = llada.log_likelihood([("abcde", "fghi")], passes=4)
    [other] = llada.likelihood()([pair(*ids)], Passes(passes=4))
    assert found == other and found.tokens == 4
    assert isinstance(llada.likelihood(), Likelihood)
