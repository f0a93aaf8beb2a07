"""Learning from rewards, where the optimum is known: products of distributions over few tokens.

The network predicts each token by itself and texts are written in one step, so that the
probabilities that the objectives compute are those of the texts.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import PARTS, SEQUENCES, SYMBOLS

from mdlm.diffusion import Diffusion
from mdlm.objectives.policy import GRPO, WeightedPolicy
from mdlm.objectives.rollouts import Rollouts
from mdlm.types import Batch, DenseLogits, Rollout

MADE: Any = PARTS
LENGTH, GROUP, ROWS = 3, 8, 512
RNG = np.random.default_rng(7)
BY_TOKEN = RNG.normal(size=(LENGTH, SYMBOLS)) * 0.4
TOGETHER = RNG.normal(size=len(SEQUENCES)) * 0.6
START = jnp.asarray(RNG.normal(size=(LENGTH, SYMBOLS)), jnp.float32)
SHARE = (GROUP - 1) / GROUP
ASKED = Rollouts(reward="any:reward", group=GROUP)


def network(scores):
    def denoise(inputs, *, key=None):
        logits = jnp.pad(scores, ((0, 0), (0, 1)))
        return DenseLogits(jnp.broadcast_to(logits, (*inputs.tokens.shape, SYMBOLS + 1)))

    return Diffusion(denoise=denoise, **MADE)


def batch_of(tokens, advantage, reward=None, log_p_old=None, is_prompt=None):
    tokens = jnp.asarray(tokens, jnp.int32)
    n, prompt = len(tokens), jnp.zeros(tokens.shape, bool) if is_prompt is None else is_prompt
    advantage = jnp.asarray(advantage, jnp.float32)
    return Batch(
        tokens=tokens,
        loss_mask=~prompt,
        row=jnp.arange(n),
        rows=jnp.asarray(n),
        rollout=Rollout(
            is_prompt=prompt,
            advantage=advantage,
            reward=advantage if reward is None else jnp.asarray(reward, jnp.float32),
            log_p_old=log_p_old,
        ),
    )


def place(tokens):
    return tokens @ SYMBOLS ** np.arange(LENGTH)[::-1]


def by_token(tokens):
    return sum(BY_TOKEN[i, tokens[:, i]] for i in range(LENGTH))


def trained(objective, reward, steps=800, rate=0.05):
    """The distributions of the tokens after training from `START`."""
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def write(scores, key):
        return jax.random.categorical(key, scores, shape=(ROWS, LENGTH))

    @jax.jit
    def step(scores, state, key, tokens, weights, rewards):
        def loss(scores):
            diffusion = replace(network(scores), reference=network(START))
            terms = objective(key, batch_of(tokens, weights, rewards), diffusion)
            return terms.total / ROWS

        updates, state = tx.update(jax.grad(loss)(scores), state)
        return optax.apply_updates(scores, updates), state

    scores, state = START, tx.init(START)
    for i in range(steps):
        key = jax.random.fold_in(jax.random.key(0), i)
        tokens = np.array(write(scores, key))
        rewards = reward(tokens)
        weights = objective.weights(rewards.reshape(-1, GROUP)).reshape(-1)
        scores, state = step(scores, state, key, tokens, weights, rewards)
    return np.array(jax.nn.softmax(scores), np.float64)


REFERENCE = np.array(jax.nn.softmax(START), np.float64)


def exponential(gain):
    """p_ref exp(gain) / Z, for each token by itself."""
    p = REFERENCE * np.exp(gain)
    return p / p.sum(1, keepdims=True)


def hyperbolic(gain):
    """p = p_ref / (c - gain), with c so that it sums to 1."""
    low, high = gain.max(1) + 1e-6, gain.max(1) + 10
    for _ in range(100):
        c = (low + high) / 2
        is_much = (REFERENCE / (c[:, None] - gain)).sum(1) > 1
        low, high = np.where(is_much, c, low), np.where(is_much, high, c)
    return REFERENCE / (c[:, None] - gain)


def law(p):
    return np.prod([p[i, SEQUENCES[:, i]] for i in range(LENGTH)], axis=0)


def apart(one, other):
    return 0.5 * np.abs(law(one) - law(other)).sum()


@pytest.mark.slow
@pytest.mark.parametrize(("form", "kl"), [("k2", 0.8), ("k3", 0.8)])
def test_the_optimum_of_a_reward_by_token(form, kl):
    """GRPO with "k2" reaches p_ref exp(r / kl) / Z, and with "k3" the law of its own gradient."""
    found = trained(GRPO(rollouts=ASKED, kl=kl, form=form), by_token)
    gain = SHARE * BY_TOKEN / kl
    tilted, other = exponential(gain), hyperbolic(gain)
    print(
        f"{form}: total variation to the tilted law {apart(REFERENCE, tilted):.4f} ->"
        f" {apart(found, tilted):.4f}, to the optimum of k3 {apart(found, other):.4f}"
    )
    due, not_due = (tilted, other) if form == "k2" else (other, tilted)
    assert apart(found, due) < 0.005 < 0.02 < apart(found, not_due)


@pytest.mark.slow
def test_of_another_reward_the_best_product_is_reached():
    """One-step probabilities are a product over tokens: the law that is reached is the product that
    is nearest in KL(p || tilted), not the tilted one."""
    kl = 0.8
    found = trained(GRPO(rollouts=ASKED, kl=kl, form="k2"), lambda x: TOGETHER[place(x)])
    due = REFERENCE
    for _ in range(500):
        for i in range(LENGTH):
            others = law(due) / due[i, SEQUENCES[:, i]]
            gain = [(others * TOGETHER)[SEQUENCES[:, i] == v].sum() for v in range(SYMBOLS)]
            own = REFERENCE[i] * np.exp(SHARE * np.array(gain) / kl)
            due = np.concatenate([due[:i], own[None] / own.sum(), due[i + 1 :]])
    tilted = law(REFERENCE) * np.exp(SHARE * TOGETHER / kl)
    tilted /= tilted.sum()
    far = 0.5 * np.abs(law(found) - tilted).sum()
    print(f"to the best product {apart(found, due):.4f}, to the tilted law {far:.4f}")
    assert apart(found, due) < 0.005 < 0.1 < far


@pytest.mark.slow
def test_wd1_goes_to_the_best_text():
    """Nothing holds it: the mean reward rises to the largest, and the entropy falls."""
    found = trained(WeightedPolicy(rollouts=ASKED), by_token, steps=400)
    best, mean = BY_TOKEN.max(1).sum(), (found * BY_TOKEN).sum()
    entropy = -(found * np.log(found)).sum()
    print(f"reward {mean:.3f} of {best:.3f}, entropy {entropy:.3f}")
    assert best - mean < 0.05 and entropy < 0.5


TOKENS = np.array([[0, 1, 2], [2, 1, 0], [1, 1, 1], [0, 0, 0]])
GIVEN = np.array([0.5, -1.0, 0.25, 0.25])
NOW = START + 0.5 * jnp.asarray(RNG.normal(size=START.shape), jnp.float32)


def log_p(scores):
    logs = jax.nn.log_softmax(scores)
    return logs[jnp.arange(LENGTH)[None], jnp.asarray(TOKENS)]


@pytest.mark.parametrize("form", ["k3", "k2"])
def test_the_loss_of_grpo_is_the_formula(form):
    """With ratios to the parameters that wrote the texts; some tokens are beyond the clip."""
    old = log_p(START) * jnp.asarray(RNG.uniform(0.8, 1.2, TOKENS.shape), jnp.float32)
    objective = GRPO(rollouts=replace(ASKED, group=4), kl=0.3, form=form)

    def found(scores):
        diffusion = replace(network(scores), reference=network(START))
        return objective(jax.random.key(0), batch_of(TOKENS, GIVEN, None, old), diffusion)

    def written(scores):
        own, advantage = log_p(scores), jnp.asarray(GIVEN, jnp.float32)[:, None]
        ratio = jnp.exp(own - old)
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
        d = log_p(START) - own
        penalty = jnp.exp(d) - d - 1 if form == "k3" else d**2 / 2
        return (-gain + 0.3 * penalty).sum()

    terms = jax.jit(found)(NOW)
    assert float(terms.total) == pytest.approx(float(jax.jit(written)(NOW)), rel=1e-5)
    assert 0 < float(terms.scalars["clipped"]) < 1 and float(terms.scalars["kl"]) > 0
    assert float(terms.bound.sum()) == pytest.approx(-float(log_p(NOW).sum()), rel=1e-5)
    one, other = (
        jax.jit(jax.grad(fn))(NOW) for fn in (lambda scores: found(scores).total, written)
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_loss_of_wd1_is_the_formula():
    objective = WeightedPolicy(rollouts=replace(ASKED, group=4), psi=2.0)
    rewards = np.array([1.0, 0.0, 0.5, 0.5])
    weights = objective.weights(rewards[None])[0]
    raised = np.exp(2 * rewards) / np.exp(2 * rewards).sum()
    lowered = np.exp(-2 * rewards) / np.exp(-2 * rewards).sum()
    np.testing.assert_allclose(weights, raised - lowered)
    assert not objective.weights(np.ones((2, 4))).any()

    def found(scores):
        return objective(jax.random.key(0), batch_of(TOKENS, weights, rewards), network(scores))

    terms = jax.jit(found)(NOW)
    due = -(weights * np.array(log_p(NOW)).sum(1)).sum()
    assert float(terms.total) == pytest.approx(due, rel=1e-4)
    assert float(terms.examples) == 1 and float(terms.scalars["reward"]) == 0.5


def test_prompts_are_masked_in_part_and_the_same_for_both_networks():
    is_prompt = jnp.asarray([[True, True, False]] * 400)
    tokens = np.tile(TOKENS, (100, 1))
    asked = []

    def seen(inputs, *, key=None):
        asked.append(inputs.tokens)
        return DenseLogits(jnp.zeros((*inputs.tokens.shape, SYMBOLS + 1)))

    diffusion = Diffusion(denoise=seen, **MADE)
    objective = GRPO(rollouts=ASKED, prompt_mask=0.25)
    batch = batch_of(tokens, np.ones(400), None, None, is_prompt)

    @jax.jit
    def run(key):
        terms = objective(key, batch, replace(diffusion, reference=diffusion))
        objective.log_p(key, batch, diffusion)
        return terms, list(asked)

    terms, found = run(jax.random.key(0))
    first, *others = map(np.array, found)
    assert len(others) == 2 and all((first == other).all() for other in others)
    assert (first[:, 2] == SYMBOLS).all()
    share = (first[:, :2] == SYMBOLS).mean()
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 800)
    assert (first[:, :2] == tokens[:, :2])[first[:, :2] != SYMBOLS].all()
    assert float(terms.count.sum()) == 400
