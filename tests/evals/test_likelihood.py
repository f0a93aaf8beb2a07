"""log p(response | prompt) of single pairs, against enumerated distributions and networks."""

import itertools
import math
from dataclasses import replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.data.pairs import Encoded
from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.evals.likelihood import Likelihood, lengths_of
from mdlm.evals.log_likelihood import Passes
from mdlm.evals.oracles import Enumerated
from mdlm.evals.orders import ChainRule, Greedy
from mdlm.objectives import (
    GeneralizedNelbo,
    HybridNelbo,
    LLaDA,
    Nelbo,
    OrderAgnostic,
    UniformNelbo,
)
from mdlm.parallel.mesh import MeshShape
from mdlm.parameterizations.mean import Mean
from mdlm.parameterizations.subs import Subs
from mdlm.processes.hybrid import Hybrid
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.schedules.closed_form import LogLinear
from mdlm.schedules.per_token import Spindle
from mdlm.types import DenseLogits, Vocab

LENGTH, SYMBOLS = 4, 3
VOCAB = Vocab(size=SYMBOLS + 1, mask_id=SYMBOLS)
LAW = Enumerated(length=LENGTH, symbols=SYMBOLS, seed=3, concentration=2.0)


class Wrong(Enumerated):
    """A network that is no posterior of any distribution: one with noise in its logits."""

    def denoise(self, inputs, *, key=None):
        digits = (SYMBOLS + 1) ** jnp.arange(LENGTH)[::-1]
        number = (inputs.tokens * digits[None]).sum(-1)
        return DenseLogits(jnp.asarray(self.logits, jnp.float32)[number])

    @cached_property
    def logits(self):
        random = np.random.default_rng(0)
        return 1.5 * random.normal(size=((SYMBOLS + 1) ** LENGTH, LENGTH, SYMBOLS + 1))

    def log_p(self, z, i, v):
        number = int(np.array(z) @ (SYMBOLS + 1) ** np.arange(LENGTH)[::-1])
        logits = self.logits[number, i, :SYMBOLS]
        return logits[v] - np.log(np.exp(logits).sum())

    def by_order(self, x, given, order):
        """The chain rule in one order, in float64."""
        z, total = [v if i in given else SYMBOLS for i, v in enumerate(x)], 0.0
        for i in order:
            total += self.log_p(z, i, x[i])
            z[i] = x[i]
        return total

    def over_orders(self, x, given):
        rest = [i for i in range(LENGTH) if i not in given]
        return np.mean([self.by_order(x, given, o) for o in itertools.permutations(rest)])


WRONG = Wrong(length=LENGTH, symbols=SYMBOLS)


def diffusion_of(network):
    def diffusion(params):
        return Diffusion(
            process=Masked(schedule=LogLinear(eps=0.0)).with_vocab(VOCAB),
            parameterization=Subs().with_vocab(VOCAB),
            denoise=network.denoise,
        )

    return diffusion


COUNTS = OrderAgnostic()


def likelihood(network, objective=COUNTS, devices=1, **settings):
    mesh = MeshShape().build(jax.devices()[:devices])
    settings = {"longest": LENGTH, "batch_size": 1024, **settings}
    return Likelihood(
        diffusion_of(network), {}, objective, "named", mesh=mesh, vocab=VOCAB, **settings
    )


def pair(x, prompt):
    x = tuple(int(i) for i in x)
    return Encoded(prompt=x[:prompt], response=x[prompt:], where="a pair")


def conditional(x, prompt):
    """log p(x[prompt:] | x[:prompt]) under LAW."""
    starts = (LAW.sequences[:, :prompt] == np.array(x)[None, :prompt]).all(axis=1)
    whole = (LAW.sequences == np.array(x)).all(axis=1)
    return math.log(LAW.p[whole][0] / LAW.p[starts].sum())


@pytest.mark.parametrize("prompt", [0, 1, 2])
@pytest.mark.parametrize("objective", [OrderAgnostic(), Nelbo(), LLaDA()], ids=lambda o: type(o))
def test_the_true_posterior_gives_the_log_probability(prompt, objective):
    """Without bias, and with the error that is claimed."""
    rows = LAW.draw(300, seed=prompt)
    pairs = [pair(x, prompt) for x in rows]
    found = likelihood(LAW, objective)(pairs, Passes(passes=32))
    expected = np.array([conditional(x, prompt) for x in rows])
    wrong = np.array([f.value for f in found]) - expected
    errors = np.array([f.stderr for f in found])
    assert abs(wrong.mean()) < 4 * wrong.std() / math.sqrt(len(wrong))
    assert np.mean(errors**2) == pytest.approx(wrong.var(), rel=0.35)
    assert {f.tokens for f in found} == {LENGTH - prompt} and {f.passes for f in found} == {32}


@pytest.mark.parametrize("given", [0, 1])
def test_another_network_gives_the_mean_over_orders(given):
    x = (2, 0, 1, 1)
    expected = WRONG.over_orders(x, range(given))
    found = likelihood(WRONG)([pair(x, given)] * 400, Passes(passes=16))
    values = np.array([f.value for f in found])
    assert values.mean() == pytest.approx(expected, abs=4 * values.std() / 20)
    errors = np.array([f.stderr for f in found])
    assert np.mean(errors**2) == pytest.approx(values.var(), rel=0.25)


def test_sure_adds_passes_and_keeps_the_mean():
    x = (2, 0, 1, 1)
    expected = WRONG.over_orders(x, ())
    how = Passes(passes=4, sure=0.3)
    found = likelihood(WRONG, batch_size=512)([pair(x, 0)] * 300, how)
    values = np.array([f.value for f in found])
    assert all(f.stderr <= 0.3 for f in found)
    assert len({f.passes for f in found}) > 3
    assert values.mean() == pytest.approx(expected, abs=4 * values.std() / math.sqrt(300))


def test_one_token_has_no_noise():
    [found] = likelihood(WRONG)([pair((2, 0, 1, 1), 3)])
    assert found.value == pytest.approx(WRONG.log_p((2, 0, 1, 3), 3, 1), abs=1e-5)
    assert found.stderr == 0


@pytest.mark.parametrize("sure", [None, 0.4])
def test_nothing_depends_on_the_batch_or_the_other_pairs(sure):
    pairs = [pair(x, i % 3) for i, x in enumerate(LAW.draw(7, seed=5))]
    how = Passes(passes=6, sure=sure)
    whole = likelihood(WRONG, batch_size=1)(pairs, how)
    for size, devices in ((5, 1), (64, 1), (16, 4)):
        again = likelihood(WRONG, batch_size=size, devices=devices)(pairs, how)
        for a, b in zip(whole, again, strict=True):
            assert a.value == pytest.approx(b.value, abs=1e-5)
            assert a.stderr == pytest.approx(b.stderr, abs=1e-5) and a.passes == b.passes
    alone = likelihood(WRONG, batch_size=3)(pairs[4:5], how, numbers=[4])
    assert alone[0].value == pytest.approx(whole[4].value, abs=1e-5)
    other = likelihood(WRONG, seed=1)(pairs, how)
    assert all(a.value != b.value for a, b in zip(whole, other, strict=True))


def test_the_prompt_is_clean_whatever_the_objective_noises():
    """`Nelbo` noises all valid tokens, `LLaDA` those of the loss mask; both with the same draws."""
    pairs = [pair(x, 2) for x in LAW.draw(20, seed=1)]
    a, b = (likelihood(WRONG, o)(pairs, Passes(passes=8)) for o in (Nelbo(), LLaDA()))
    assert [f.value for f in a] == [f.value for f in b]


def test_noise_levels_are_stratified_over_the_passes():
    """With a loss that is the count of masked tokens times its weight: n, without any variance."""

    class Known:
        def denoise(self, inputs, *, key=None):
            return DenseLogits(jnp.zeros((*inputs.tokens.shape, SYMBOLS + 1)))

    [found] = likelihood(Known())([pair((0, 1, 2, 0), 1)], Passes(passes=8))
    assert found.value == pytest.approx(-3 * math.log(SYMBOLS), abs=1e-5)
    assert found.stderr == pytest.approx(0, abs=1e-6)
    counts = []

    class Seen(Known):
        def denoise(self, inputs, *, key=None):
            jax.debug.callback(lambda z: counts.extend((z == SYMBOLS).sum(-1)), inputs.tokens)
            return super().denoise(inputs)

    likelihood(Seen(), batch_size=4)([pair((0, 1, 2, 0), 0)] * 2, Passes(passes=8))
    assert sorted(int(n) for n in counts) == sorted([1, 2, 3, 4] * 4)


def chain_rule(network, **settings):
    return ChainRule(
        diffusion_of(network), {}, mesh=MeshShape().build(jax.devices()[:1]), **settings
    )


def test_every_order_of_the_true_posterior_gives_the_marginal():
    x, chain = np.array([1, 0, 2, 1]), chain_rule(LAW)
    for known in itertools.product([False, True], repeat=LENGTH):
        for given in itertools.product([False, True], repeat=LENGTH):
            known, given = np.array(known), np.array(given)
            at = np.flatnonzero(known & ~given)
            if len(at) not in (2, 4):
                continue
            orders = np.array(list(itertools.permutations(at)))
            found = chain(x, orders, given)
            fits = lambda which: LAW.p[(LAW.sequences[:, which] == x[which]).all(axis=1)].sum()
            expected = math.log(fits(known | given) / fits(given))
            np.testing.assert_allclose(found, expected, atol=2e-5)


def test_orders_of_another_network():
    x = np.array([2, 0, 1, 1])
    orders = np.array([[0, 2, 3], [3, 2, 0], [2, 0, 3]])
    given = np.array([False, True, False, False])
    found = chain_rule(WRONG, batch_size=4)(x, orders, given)
    expected = [WRONG.by_order(x, {1}, order) for order in orders]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_each_order_may_be_of_a_row_of_its_own():
    rows, orders = np.array([[2, 0, 1, 1], [0, 1, 1, 2]]), np.array([[0, 2, 3], [3, 1, 0]])
    given = np.array([[False, True, False, False], [False, False, True, False]])
    found = chain_rule(WRONG, batch_size=4)(rows, orders, given)
    expected = [
        WRONG.by_order(x, set(np.flatnonzero(own)), order)
        for x, own, order in zip(rows, given, orders, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def greedy(x, given):
    """What greedy decoding writes, by the definition."""
    z = [v if i in given else SYMBOLS for i, v in enumerate(x)]
    while SYMBOLS in z:
        candidates = [
            (WRONG.log_p(z, i, v), i, v)
            for i in range(LENGTH)
            if z[i] == SYMBOLS
            for v in range(SYMBOLS)
        ]
        best = max(candidates)
        z[best[1]] = best[2]
    return tuple(z)


def test_what_greedy_decoding_writes():
    every = list(itertools.product(range(SYMBOLS), repeat=LENGTH))
    check = Greedy(
        diffusion_of(WRONG),
        {},
        mesh=MeshShape().build(jax.devices()[:1]),
        vocab=VOCAB,
        lengths=[LENGTH],
        batch_size=16,
    )
    for prompt in (0, 2):
        matches = check([pair(x, prompt) for x in every])
        expected = [greedy(x, range(prompt)) == x for x in every]
        assert matches.tolist() == expected and 1 <= sum(expected) < len(every)


def test_lengths():
    assert lengths_of(4, 1) == [4]
    assert lengths_of(300, 1) == [32, 48, 64, 96, 128, 192, 256, 300]
    assert lengths_of(96, 12) == [36, 48, 72, 96]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"passes": 5}, "passes=5: must be even and at least 2"),
        ({"passes": 0}, "passes=0: must be even"),
        ({"sure": 0.0}, "sure=0.0: must be above 0"),
    ],
)
def test_settings_that_give_no_error(how, message):
    with pytest.raises(InputError, match=message):
        Passes(**how)


def test_pairs_longer_than_a_row():
    long = replace(pair((0, 1, 2, 0), 2), response=(1, 1, 1))
    with pytest.raises(InputError, match=r"a pair: prompt and response have 2 \+ 3 tokens, a row"):
        likelihood(LAW)([long])


@pytest.mark.parametrize(
    ("process", "objective"),
    [
        (Uniform(), UniformNelbo()),
        (Hybrid(), HybridNelbo(weights="elbo")),
        (Masked(schedule=Spindle(strength=0.3)), GeneralizedNelbo()),
    ],
    ids=lambda one: type(one).__name__,
)
def test_any_noise_leaves_the_prompt_alone(process, objective):
    """What the network reads: the prompt's own tokens, and noise in the response."""
    seen, x = [], (2, 0, 1, 1)

    class Watched:
        def denoise(self, inputs, *, key=None):
            jax.debug.callback(lambda z: seen.append(np.asarray(z)), inputs.tokens)
            return DenseLogits(jnp.zeros((*inputs.tokens.shape, SYMBOLS + 1)))

    def diffusion(params):
        return replace(
            diffusion_of(Watched())(params),
            process=with_counts(process.with_vocab(VOCAB)),
            parameterization=Mean().with_vocab(VOCAB)
            if not isinstance(process, Masked)
            else Subs().with_vocab(VOCAB),
        )

    scorer = likelihood(LAW, objective)
    scorer.diffusion = diffusion
    [found] = scorer([pair(x, 2)], Passes(passes=64))
    jax.effects_barrier()
    tokens = np.concatenate(seen)
    assert (tokens[:, :2] == x[:2]).all() and (tokens[:, 2:] != x[2:]).any(axis=0).all()
    assert found.tokens == 2 and -20 < found.value < 0


def with_counts(process):
    return process.with_counts(np.array([5, 3, 2, 0])) if process.needs_counts else process
