"""What shapes a written token's distribution, in all samplers: bans, hook, temperature, top-p."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mdlm.cli.sampler_options import banned_by, temperature_of
from mdlm.config.components import fitting
from mdlm.data.tokenizers import Bytes
from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.experiment.model import Model, check_sampler
from mdlm.generation.generator import Generator
from mdlm.generation.windows import Windows
from mdlm.keys import by_row
from mdlm.parameterizations.mean import Mean
from mdlm.parameterizations.score import Score
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.base import CHUNK, Sampler
from mdlm.samplers.blocks import BlockByBlock
from mdlm.samplers.editing import Editing
from mdlm.samplers.first_hitting import FirstHitting
from mdlm.samplers.left_to_right import LeftToRight
from mdlm.samplers.logits.shaping import Annealed, shape
from mdlm.samplers.loop import generate
from mdlm.samplers.parallel import Parallel, ParallelBlocks
from mdlm.samplers.path_planning import PathPlanning
from mdlm.samplers.psi import Psi
from mdlm.samplers.remask import Remask, RemaskLoop
from mdlm.samplers.reverse import Reverse
from mdlm.samplers.score import Euler, Tweedie
from mdlm.samplers.self_correction import SelfCorrection
from mdlm.samplers.verified import Verified
from mdlm.schedules.closed_form import LogLinear
from mdlm.schedules.md4 import Polynomial
from mdlm.types import DenseLogits, Vocab

MASK, V, LENGTH = 2, 6, 4
FIELDS = {"mask_id": MASK, "vocab_size": V}
VOCAB = Vocab(size=V, mask_id=MASK)
P_DATA = np.array([0.4, 0.25, 0.0, 0.2, 0.1, 0.05])  # of each token, whatever the others
CLEAN = LogLinear(eps=0.0)
MASKED = (Masked(schedule=CLEAN, mask_id=MASK), Subs(**FIELDS))
SCORES = (Masked(mask_id=MASK), Score(**FIELDS))
SAMPLERS = {
    "ancestral": (Ancestral(steps=2), *MASKED),
    "blocks": (BlockByBlock(steps=1, block_size=2), *MASKED),
    "left to right": (LeftToRight(), *MASKED),
    "reverse": (Reverse(steps=2), *MASKED),
    "reverse, uniform": (Reverse(steps=3), Uniform(schedule=CLEAN, **FIELDS), Mean(**FIELDS)),
    "tweedie": (Tweedie(steps=2), *SCORES),
    "euler": (Euler(steps=2), *SCORES),
    "first hitting": (FirstHitting(per_call=2), *MASKED),
    "parallel": (Parallel(order="entropy"), *MASKED),
    "parallel, blocks": (ParallelBlocks(order="entropy", block_size=2), *MASKED),
    "remask": (Remask(steps=3, eta=0.5), *MASKED),
    "remask, loop": (RemaskLoop(steps=8, eta=0.1), *MASKED),
    "psi": (Psi(steps=3, kappa=0.5), *MASKED),
    "path planning": (PathPlanning(steps=3, eta=0.0, score="random"), *MASKED),
}
JUDGING = {
    "editing": (Editing(edits=2), *MASKED),
    "self-correction": (
        SelfCorrection(first=Reverse(steps=2), rounds=2, temperature=1.0),
        Uniform(schedule=CLEAN, **FIELDS),
        Mean(**FIELDS),
    ),
}
"""Samplers that prefer likely tokens, so that shares are not the distribution's."""


def drawn(parts, rows=2000, p=P_DATA, first=None):
    """`rows` rows, the first token fixed where `first` says which it is."""
    sampler, process, parameterization = parts
    shift = np.log(V - 1) if isinstance(parameterization, Score) else 0.0

    def denoise(inputs, *, key=None):
        logits = jnp.log(jnp.asarray(p, jnp.float32)) + shift
        return DenseLogits(jnp.broadcast_to(logits, (*inputs.tokens.shape, V)))

    is_fixed = np.zeros((rows, LENGTH), bool)
    is_fixed[:, 0] = first is not None
    run = jax.jit(
        lambda keys: (
            generate(
                keys,
                jnp.full((rows, LENGTH), first or 0),
                jnp.asarray(is_fixed),
                sampler=sampler,
                diffusion=Diffusion(
                    process=process, parameterization=parameterization, denoise=denoise
                ),
            ).tokens
        )
    )
    return np.asarray(run(by_row(jax.random.key(0), jnp.arange(rows))))


def assert_share(tokens, p):
    """The tokens have the distribution, to 4 standard errors."""
    share = np.bincount(tokens.ravel(), minlength=V) / tokens.size
    p = p / p.sum()
    assert (np.abs(share - p) <= 4 * np.sqrt(p * (1 - p) / tokens.size)).all(), (share, p)


@pytest.mark.parametrize("name", SAMPLERS)
def test_banned_tokens_are_never_drawn_and_the_others_keep_their_shares(name):
    sampler, *parts = SAMPLERS[name]
    tokens = drawn((replace(sampler, banned=(0, 4)), *parts), first=0)
    assert (tokens[:, 0] == 0).all()  # what is fixed stays, banned or not
    assert_share(tokens[:, 1:], np.where([0, 1, 0, 1, 0, 1], P_DATA, 0))


def test_no_sampler_is_left_out():
    kinds = {type(parts[0]) for parts in (SAMPLERS | JUDGING).values()}
    assert kinds | {Verified} == set(fitting((Sampler,)))  # it shapes its verifier's distribution


@pytest.mark.parametrize("name", JUDGING)
def test_samplers_that_judge_never_write_banned_tokens_either(name):
    sampler, *parts = JUDGING[name]
    tokens = drawn((replace(sampler, banned=(0, 4)), *parts), rows=500, first=0)
    assert (tokens[:, 0] == 0).all() and not np.isin(tokens[:, 1:], (0, 4, MASK)).any()


def shaped(**fields):
    """The distribution of a token, in a row of four that are all masks."""
    rows, none = jnp.full((1, LENGTH), MASK), jnp.zeros((1, LENGTH), bool)
    log_p = jnp.log(jnp.asarray(P_DATA, jnp.float32))[None]
    at = jnp.zeros(1, jnp.int32)
    return np.exp(shape(Ancestral(**fields), log_p, at, rows, none, mask_id=MASK, size=V))[0]


def assert_distribution(p, expected):
    np.testing.assert_allclose(p, expected / expected.sum(), rtol=1e-5, atol=1e-7)


def test_top_p_rules_by_name():
    """The likeliest three hold 0.85."""
    assert_distribution(shaped(top_p=0.8), np.where(P_DATA >= 0.2, P_DATA, 0))
    assert_distribution(shaped(top_p=0.8, top_p_rule="below"), np.where(P_DATA >= 0.25, P_DATA, 0))


def test_the_last_step_s_likeliest_token_is_none_that_is_banned():
    process = Masked(schedule=Polynomial(power=1.0, eps=0.45), mask_id=MASK)
    sampler = Ancestral(steps=1, last="argmax", banned=(0,))
    tokens = drawn((sampler, process, MASKED[1]), rows=200)
    # Nearly half of the tokens come in the last step, which takes token 1.
    assert (tokens != 0).all() and (tokens != MASK).all() and (tokens == 1).mean() > 0.5


def test_a_network_certain_of_a_banned_token():
    certain = np.eye(V)[0]
    tokens = drawn((Ancestral(steps=1, banned=(0,)), *MASKED), p=certain)
    assert_share(tokens, np.where([0, 1, 0, 1, 1, 1], 1.0, 0.0))


def hooked(name, hook, **changes):
    sampler, *parts = SAMPLERS[name]
    return (replace(sampler, hook=hook, **changes), *parts)


@pytest.mark.parametrize("name", ["ancestral", "reverse", "tweedie"])
def test_the_hook_is_told_which_rows_it_shapes(name):
    rows = 50
    assert rows * LENGTH > CHUNK
    choice = np.random.default_rng(0).choice([0, 1, 3, 4, 5], rows * LENGTH)

    def hook(log_p, at, tokens):
        assert tokens.shape == (rows, LENGTH) and at.shape == log_p.shape[:1]
        column = jax.lax.broadcasted_iota(jnp.int32, log_p.shape, 1)
        return jnp.where(column == jnp.asarray(choice)[at][:, None], log_p, -jnp.inf)

    assert (drawn(hooked(name, hook), rows=rows).reshape(-1) == choice).all()


def test_the_hook_sees_what_is_written_and_the_distribution():
    """Next to equal tokens are ruled out, for the others it is the network's distribution."""

    def hook(log_p, at, tokens):
        left = tokens.reshape(-1)[at - 1]  # the first token is fixed
        return log_p.at[jnp.arange(len(at)), left].set(-jnp.inf)

    tokens = drawn(hooked("left to right", hook), first=1)
    assert (tokens[:, 1:] != tokens[:, :-1]).all()
    assert_share(tokens[:, 1], np.where(np.arange(V) == 1, 0, P_DATA))


def test_the_hook_comes_before_bans_and_temperature():
    fifth = np.arange(V) == 5
    raised = lambda log_p, at, tokens: log_p + 100.0 * jnp.asarray(fifth)[None]
    assert_distribution(shaped(hook=raised, temperature=0.0), 1.0 * fifth)
    assert_distribution(shaped(hook=raised, temperature=0.0, banned=(5,)), np.eye(V)[0])
    # At temperature 100 the hook's 100 nats are one.
    expected = np.where(P_DATA > 0, P_DATA, 0) ** 0.01 * np.where(fifth, np.e, P_DATA > 0)
    assert_distribution(shaped(hook=raised, temperature=100.0), expected)


def test_the_hook_cannot_raise_the_mask():
    level = lambda log_p, at, tokens: jnp.zeros_like(log_p)
    assert_distribution(shaped(hook=level), np.where(np.arange(V) == MASK, 0.0, 1.0))


def test_a_hook_must_keep_the_shape():
    with pytest.raises(ValueError, match="hook: returned shape"):
        shaped(hook=lambda log_p, at, tokens: log_p[:, :-1])


def test_the_temperature_follows_the_share_that_is_written():
    """The first of four tokens is fixed: of the others 0, 1/3 and 2/3 are written in turn."""
    annealed = Annealed(first=2.0, last=0.5)
    tokens = drawn((LeftToRight(temperature=annealed), *MASKED), first=1, rows=4000)
    for place, temperature in ((1, 2.0), (2, 1.5), (3, 1.0)):
        assert_share(tokens[:, place], np.where(P_DATA > 0, P_DATA, 0) ** (1 / temperature))


@pytest.mark.parametrize("name", ["reverse", "tweedie"])
def test_what_is_written_at_once_is_at_the_first_temperature(name):
    sampler, *parts = SAMPLERS[name]
    sampler = replace(sampler, steps=1, temperature=Annealed(first=0.5, last=5.0))
    assert_share(drawn((sampler, *parts)), P_DATA**2)


def test_annealing_ends_at_the_last_temperature():
    shaping = Ancestral(temperature=Annealed(first=1.0, last=0.0))
    tokens = jnp.array([[0, MASK, MASK, 3], [MASK, 1, 1, 1]])
    is_fixed = jnp.array([[True, False, False, True], [True, False, False, False]])
    log_p = jnp.log(jnp.broadcast_to(jnp.asarray(P_DATA, jnp.float32), (2, V)))
    shaped = shape(shaping, log_p, jnp.array([1, 7]), tokens, is_fixed, mask_id=MASK, size=V)
    np.testing.assert_allclose(np.exp(shaped), [P_DATA, np.eye(V)[0]], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", float("inf")),
        ("temperature", -1.0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", float("nan")),
        ("top_p_rule", "above"),
        ("banned", (3, -1)),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    # TypeError: the annotations, which tests check, may notice first.
    with pytest.raises((ValueError, TypeError), match=name):
        Ancestral(**{name: value})


@pytest.mark.parametrize("end", ["first", "last"])
def test_temperatures_out_of_range_are_refused(end):
    with pytest.raises(ValueError, match=f"temperature.{end}=-0.5"):
        Annealed(**{"first": 1.0, "last": 0.0, end: -0.5})


def test_shapes_without_a_meaning_are_refused():
    annealed = Reverse(temperature=Annealed(first=1.0, last=0.5))
    mean, subs = Mean(), Subs()
    assert "share of masks that are filled" in (annealed.incompatibility(Uniform(), mean) or "")
    assert annealed.incompatibility(Masked(), subs) is None
    noisy = Uniform(schedule=Polynomial(power=1.0, eps=0.1))
    assert "noise that it leaves is any token" in (
        Reverse(banned=(1,)).incompatibility(noisy, mean) or ""
    )
    assert Reverse(banned=(1,)).incompatibility(Uniform(), mean) is None
    scores = Score(graph="uniform")
    for settings in ({"banned": (1,)}, {"hook": lambda log_p, at, tokens: log_p}):
        assert "uniform noise reveals none" in (
            Euler(**settings).incompatibility(Uniform(), scores) or ""
        )


def test_unknown_tokens_are_refused_before_anything_compiles(tmp_path):
    experiment = tiny.experiment(Path("text.txt"))
    model = Model(experiment, VOCAB)
    for banned, reason in (
        ((1, 6), "banned token 6 is outside the vocabulary of 6"),
        ((0, 1, 3, 4, 5), "all 5 tokens are"),
    ):
        sampler = Ancestral(banned=banned)
        with pytest.raises(InputError, match=reason):
            Model(replace(experiment, sampler=sampler), VOCAB)
        with pytest.raises(InputError, match=reason):
            check_sampler(sampler, model)
    check_sampler(Ancestral(banned=(0, 1, 3, 4)), model)
    with pytest.raises(InputError, match="needs a network that attends to the tokens before"):
        check_sampler(LeftToRight(), model)
    tokenizer = Bytes().build([])
    with pytest.raises(InputError, match="outside the vocabulary"):
        Generator(model, {}, tokenizer, Windows(length=4), Ancestral(banned=(6,)))


def test_bans_and_temperatures_in_words():
    tokenizer = Bytes().build([])
    a, b, c = tokenizer.encode(["abc"])[0]
    assert banned_by(tokenizer, ["ba", "cc"]) == tuple(sorted((int(a), int(b), int(c))))
    with pytest.raises(InputError, match="bans nothing"):
        banned_by(tokenizer, [""])
    assert temperature_of("0.7") == 0.7
    assert temperature_of("1:0.25") == Annealed(first=1.0, last=0.25)
    for text in ("warm", "1:2:3", "1:", ""):
        with pytest.raises(InputError, match=f"--temperature {text}: expected a number"):
            temperature_of(text)
    with pytest.raises(InputError, match="temperature.last=-1.0"):
        temperature_of("1:-1")
