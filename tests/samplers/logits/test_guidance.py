"""Guidance against an enumerated distribution of label and text, exact as drawn in one step."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.experiment.model import Model
from mdlm.keys import by_row
from mdlm.models.dit import DiT
from mdlm.models.network import denoiser, shapes
from mdlm.parameterizations.mean import Mean
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.logits.guidance import Classifier, ClassifierFree, Mixed
from mdlm.samplers.loop import generate
from mdlm.samplers.reverse import Reverse
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import DenseLogits, NetInput, Vocab

LABELS, SYMBOLS, LENGTH, MASK = 2, 3, 3, 3
V = SYMBOLS + 1
VOCAB = Vocab(size=V, mask_id=MASK)
SEQUENCES = np.array(list(product(range(SYMBOLS), repeat=LENGTH)))
JOINT = np.random.default_rng(1).dirichlet(np.full(len(SEQUENCES), 0.5), LABELS) * [[0.3], [0.7]]
HOT = np.eye(V)[SEQUENCES]
PARTS = dict(
    process=Masked(schedule=LogLinear(eps=0.0)).with_vocab(VOCAB),
    parameterization=Subs().with_vocab(VOCAB),
)


def agreement(one_hot):
    """1 where a sequence is one that z, [n l v], may come from, else 0: [n s]."""
    seen = jnp.einsum("nlv,slv->nsl", one_hot, HOT.astype(np.float32)) + one_hot[:, None, :, MASK]
    return seen.prod(-1)


def network(inputs, *, key=None):
    """The exact p(x_0 | z, label), or p(x_0 | z) where no label is told. The mask's column is
    large, to be banned."""
    if inputs.label is None:
        joint = jnp.asarray(JOINT.sum(0), jnp.float32)[None]
    else:
        joint = jnp.asarray(JOINT, jnp.float32)[inputs.label]
    weight = agreement(jax.nn.one_hot(inputs.tokens, V)) * joint
    p = jnp.einsum("bs,slv->blv", weight, HOT.astype(np.float32))
    return DenseLogits(jnp.log(p).at[..., MASK].set(50.0))


def bayes(one_hot, t):
    """The exact log p(label 1 | z)."""
    joint = agreement(one_hot) @ jnp.asarray(JOINT, jnp.float32).T
    return jnp.log(joint[:, 1] / joint.sum(-1))


def conditional_at(place, label=None, first=None):
    """p(x_place | label, x_0 = first) by enumeration; float64."""
    p = JOINT.sum(0) if label is None else JOINT[label]
    if first is not None:
        p = p * (SEQUENCES[:, 0] == first)
    p = p @ (SEQUENCES[:, place, None] == np.arange(SYMBOLS))
    return p / p.sum()


def normal(p):
    return p / p.sum()


def sample(sampler, rows=4000, label=None, first=None, denoise=network):
    is_fixed = np.zeros((rows, LENGTH), bool)
    is_fixed[:, 0] = first is not None
    run = jax.jit(
        lambda keys, label: generate(
            keys,
            jnp.full((rows, LENGTH), first or 0),
            jnp.asarray(is_fixed),
            sampler=sampler,
            diffusion=Diffusion(denoise=denoise, **PARTS),
            label=label,
        )
    )
    out = run(by_row(jax.random.key(0), jnp.arange(rows)), label)
    return np.asarray(out.tokens), int(out.nfe)


def assert_share(tokens, distribution):
    share = np.bincount(tokens, minlength=V)[:SYMBOLS] / len(tokens)
    assert (
        np.abs(share - distribution)
        <= 4 * np.sqrt(distribution * (1 - distribution) / len(tokens)) + 1e-9
    ).all()


@pytest.mark.parametrize(
    ("weight", "sampler"), [(0.0, Ancestral), (0.5, Reverse), (2.5, Ancestral)]
)
def test_labels_guide_to_the_enumerated_distribution(weight, sampler):
    rows = 4000
    label = jnp.arange(rows) % LABELS
    guidance = ClassifierFree(weight=weight, without="label")
    tokens, nfe = sample(sampler(steps=1, guidance=guidance), rows, label, first=1)
    assert nfe == (1 if weight in (0, 1) else 2)
    for kind in range(LABELS):
        for place in (1, 2):
            told, untold = conditional_at(place, kind, first=1), conditional_at(place, first=1)
            distribution = normal(told**weight * untold ** (1 - weight))
            assert_share(tokens[np.asarray(label) == kind, place], distribution)
    # The distributions that are told apart above do differ.
    assert np.abs(conditional_at(1, 0, first=1) - conditional_at(1, 1, first=1)).max() > 0.2


def test_the_prompt_guides_to_the_enumerated_distribution():
    guidance = ClassifierFree(weight=2.0, without="prompt")
    tokens, nfe = sample(Ancestral(steps=1, guidance=guidance), first=2)
    assert (tokens[:, 0] == 2).all() and nfe == 2
    for place in (1, 2):
        distribution = normal(conditional_at(place, first=2) ** 2 / conditional_at(place))
        assert_share(tokens[:, place], distribution)
        assert np.abs(distribution - conditional_at(place, first=2)).max() > 0.05


def test_a_weight_of_one_changes_nothing_at_all():
    label = jnp.arange(200) % LABELS
    guided = Ancestral(steps=4, guidance=ClassifierFree(weight=1.0, without="label"))
    ours, theirs = (sample(s, 200, label) for s in (guided, Ancestral(steps=4)))
    assert (ours[0] == theirs[0]).all() and ours[1] == theirs[1]


def test_nfe_counts_real_calls():
    calls = []

    def counted(inputs, *, key=None):
        jax.debug.callback(lambda t: calls.append(float(t)), inputs.t[0, 0])
        return network(inputs)

    guidance = ClassifierFree(weight=3.0, without="label")
    label = jnp.zeros(2, jnp.int32)
    _, nfe = sample(Ancestral(steps=5, guidance=guidance), 2, label, denoise=counted)
    jax.effects_barrier()
    assert len(calls) == nfe > 2 and len(set(calls)) == nfe / 2


@pytest.mark.parametrize(("weight", "sampler"), [(1.0, Ancestral), (2.0, Reverse)])
def test_a_classifier_guides_to_the_enumerated_distribution(weight, sampler):
    # Seven at a time: neither the pairs of a chunk nor the tokens of a vocabulary divide evenly.
    guidance = Classifier(log_p=bayes, weight=weight, batch=7)
    tokens, nfe = sample(sampler(steps=1, guidance=guidance), rows=3000, first=1)
    assert nfe == 1
    for place in (1, 2):
        untold = conditional_at(place, first=1)
        joint = [JOINT[y] * (SEQUENCES[:, 0] == 1) for y in range(LABELS)]
        at = [p @ (SEQUENCES[:, place, None] == np.arange(SYMBOLS)) for p in joint]
        distribution = normal(untold * (at[1] / (at[0] + at[1])) ** weight)
        assert_share(tokens[:, place], distribution)
        if weight == 1:
            np.testing.assert_allclose(distribution, conditional_at(place, 1, first=1))


def guided_logits(guidance, at=None, columns=V, t=((0.3,), (0.8,))):
    """Of two rows, at two times; the network's own are all 0."""
    tokens = jnp.array([[0, MASK, MASK], [MASK, 2, MASK]])
    zeros = lambda inputs, *, key=None: DenseLogits(jnp.zeros((2, LENGTH, columns)))
    denoise = guidance.wrap(Diffusion(denoise=zeros, **PARTS), tokens != MASK).denoise
    times = None if t is None else jnp.asarray(t)
    return np.asarray(denoise(NetInput(tokens=tokens, t=times)).logits(at))


@pytest.mark.parametrize("at", [None, [5, 1, 3, 1]])
@pytest.mark.parametrize("how", ["exact", "taylor"])
def test_a_log_linear_classifier_adds_its_slopes(how, at):
    slope = np.random.default_rng(2).normal(size=(LENGTH, V)).astype(np.float32)
    log_p = lambda x, t: (t[..., None] * x * slope[None]).sum((-1, -2))
    rows = None if at is None else jnp.array(at)
    logits = guided_logits(Classifier(log_p=log_p, weight=2.0, how=how, batch=5), rows, columns=6)
    expected = 2 * np.array([0.3, 0.8])[:, None, None] * slope
    expected = np.concatenate([expected, np.zeros((2, LENGTH, 2))], -1)
    if at is not None:
        expected = expected.reshape(-1, 6)[at]
    assert logits.shape == expected.shape and (logits[..., V:] == 0).all()
    np.testing.assert_allclose(centred(logits), centred(expected), atol=1e-5)


def centred(logits):
    """Of the tokens, and without the constants of the rows."""
    return logits[..., :V] - logits[..., :V].mean(-1, keepdims=True)


def test_taylor_is_of_the_first_order_and_exact_is_exact():
    """log p = (a . z)^2: v in place of z_i adds to a . z what a says of v less what it says of z_i,
    and the slope is 2 (a . z) a."""
    a = np.random.default_rng(3).normal(size=(LENGTH, V))
    log_p = lambda x, t: ((x * jnp.asarray(a, jnp.float32)[None]).sum((-1, -2))) ** 2
    own = a[np.arange(LENGTH)[None], [[0, MASK, MASK], [MASK, 2, MASK]]]  # [b l]
    sums = own.sum(-1)[:, None, None]
    exact = (sums - own[..., None] + a[None]) ** 2
    taylor = 2 * sums * a[None]
    for how, expected in (("exact", exact), ("taylor", taylor)):
        logits = guided_logits(Classifier(log_p=log_p, weight=0.5, how=how), t=None)
        np.testing.assert_allclose(centred(logits), centred(0.5 * expected), atol=1e-5)
    assert np.abs(centred(exact - taylor)).max() > 0.5


def test_a_classifier_of_no_weight_or_that_rules_out_everything_is_not_heard():
    assert (guided_logits(Classifier(log_p=bayes, weight=0.0)) == 0).all()
    nothing = lambda x, t: jnp.where(x[:, :, MASK].sum(-1) == 2, 0.0, -jnp.inf)
    # Two masks stay only with the mask itself written: nothing real is left.
    assert (guided_logits(Classifier(log_p=nothing))[..., :MASK] == 0).all()
    one = lambda x, t: jnp.where(x[:, 1, 2] == 1, 0.0, -jnp.inf)
    logits = guided_logits(Classifier(log_p=one), jnp.array([1]))
    assert (logits[0, :3] == [-np.inf, -np.inf, 0]).all()


class Deferred(DenseLogits):
    """A prediction whose whole is another than itself."""

    @property
    def whole(self):
        return DenseLogits(2 * self.array)


def test_the_whole_of_a_bent_prediction_is_that_of_its_parts():
    logits = jnp.arange(6.0).reshape(1, 2, 3)
    plain, deferred = DenseLogits(logits), Deferred(logits)
    both = Mixed(plain, DenseLogits(-logits), 3.0)
    np.testing.assert_allclose(both.logits(), 3 * logits - 2 * -logits)
    np.testing.assert_allclose(both.whole.logits(), both.logits())
    np.testing.assert_allclose(Mixed(deferred, deferred, 3.0).whole.logits(), 2 * logits)
    slope = lambda x, t: (x * jnp.arange(3.0)[None, None]).sum((-1, -2))
    parts = dict(PARTS, parameterization=Subs(mask_id=2, vocab_size=3))
    diffusion = Diffusion(denoise=lambda inputs, *, key=None: deferred, **parts)
    guided = Classifier(log_p=slope, how="taylor").wrap(diffusion, jnp.zeros((1, 2), bool))
    tilted = guided.denoise(NetInput(tokens=jnp.full((1, 2), 2)))
    np.testing.assert_allclose(tilted.whole.logits() - tilted.logits(), logits, rtol=1e-6)
    assert tilted.whole.whole.logits(jnp.array([1])).shape == (1, 3)


def test_a_token_that_either_distribution_rules_out_is_out():
    told = DenseLogits(jnp.log(jnp.array([[[0.5, 0.5, 0.0, 0.0]]])))
    untold = DenseLogits(jnp.log(jnp.array([[[0.5, 0.0, 0.5, 0.0]]])))
    for weight in (0.5, 2.0):
        logits = Mixed(told, untold, weight).logits()
        np.testing.assert_allclose(np.exp(logits), [[[0.5, 0, 0, 0]]])


def test_a_network_with_labels_is_asked_without(key):
    config = DiT(width=16, depth=1, heads=2, cond_dim=8, dtype="float32", labels=3)
    random = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(0.3 * random.normal(size=a.shape), jnp.float32)
    ask = denoiser(config, V, jax.tree.map(draw, shapes(config, V)))
    guidance, diffusion = (
        ClassifierFree(weight=2.0, without="label"),
        Diffusion(denoise=ask, **PARTS),
    )
    guided = guidance.wrap(diffusion, jnp.zeros((2, LENGTH), bool)).denoise
    tokens, label = jnp.full((2, LENGTH), MASK), jnp.array([0, 2])

    @jax.jit
    def three(label):
        inputs = NetInput(tokens=tokens, label=label)
        untold = ask(replace(inputs, label=jnp.full(2, config.labels)))
        return [p.logits() for p in (guided(inputs), ask(inputs), untold)]

    bent, told, untold = three(label)
    np.testing.assert_allclose(bent, 2 * told - untold, rtol=1e-4, atol=1e-5)
    assert np.abs(told - untold).max() > 0.01
    with pytest.raises(InputError, match="the rows have no label"):
        guided(NetInput(tokens=tokens))


FIELD = dict(log_p=bayes)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ClassifierFree(weight=-1.0, without="label"), "weight=-1.0"),
        (lambda: ClassifierFree(weight=float("nan"), without="label"), "weight=nan"),
        (lambda: ClassifierFree(without="time"), "without"),
        (lambda: Classifier(**FIELD, how="newton"), "how"),
        (lambda: Classifier(**FIELD, batch=0), "batch=0"),
    ],
)
def test_settings_out_of_range_are_refused(make, reason):
    with pytest.raises((ValueError, TypeError), match=reason):
        make()


def test_what_it_does_not_fit_is_refused_with_the_reason(tmp_path):
    labels = ClassifierFree(weight=2.0, without="label")
    prompt = ClassifierFree(weight=2.0, without="prompt")
    classifier = Classifier(log_p=bayes)
    masked, subs, traits = Masked(), Subs(), SimpleNamespace
    for guidance in (labels, prompt, classifier):
        for parts in ((Uniform(), Mean()), (masked, Mean())):
            reason = guidance.incompatibility(*parts, traits(attends="all", takes_labels=True))
            assert "needs process=Masked(...) and parameterization=Subs(...)" in (reason or "")
        assert (
            guidance.incompatibility(masked, subs, traits(attends="all", takes_labels=True)) is None
        )
    assert "takes labels" in (
        labels.incompatibility(masked, subs, traits(attends="all", takes_labels=False)) or ""
    )
    for attends in ("causal", "blocks"):
        reason = prompt.incompatibility(masked, subs, traits(attends=attends, takes_labels=True))
        is_refused = "puts masks in place of the prompt" in (reason or "")
        assert is_refused if attends == "causal" else reason is None
        assert (
            classifier.incompatibility(masked, subs, traits(attends=attends, takes_labels=False))
            is None
        )

    sampler = Ancestral(guidance=labels)
    plain = tiny.experiment(Path("text.txt"))
    with pytest.raises(InputError, match="sampler=Ancestral.*takes labels"):
        replace(plain, sampler=sampler)
    labelled = replace(plain, network=replace(plain.network, labels=2), sampler=sampler)
    assert Model(labelled, VOCAB).experiment.sampler.guidance == labels
    hash(labelled.sampler)
