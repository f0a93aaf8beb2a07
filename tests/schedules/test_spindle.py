"""Schedules with a curve for each token: DiffusionBERT's from counts, GenMD4's by powers."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mdlm.errors import InputError
from mdlm.experiment import Model, Training
from mdlm.objectives import DiscreteNelbo, GeneralizedNelbo
from mdlm.processes import Masked
from mdlm.run import load
from mdlm.samplers import Reverse
from mdlm.schedules import LearnedPolynomial, Schedule, Spindle
from mdlm.schedules.per_token import STEEPEST
from mdlm.train.session import Session
from mdlm.types import Vocab

COUNTS = np.array([10**7, 5000, 300, 300, 20, 1, 0, 0])
V = len(COUNTS)
TOKENS = jnp.arange(V)[None]
SCHEDULES = {
    "spindle": Spindle().with_counts(COUNTS),
    "spindle, weak": Spindle(strength=0.01).with_counts(COUNTS),
    "learned": LearnedPolynomial(eps=0.0, vocab_size=V, w=jnp.linspace(-3.0, 6.0, V)),
    "learned, eps": LearnedPolynomial(eps=1e-3, vocab_size=V, w=jnp.linspace(-3.0, 6.0, V)),
}
schedules = pytest.mark.parametrize("name", SCHEDULES)


def by_token(t):
    """Times and tokens, [n v] each."""
    return jnp.broadcast_arrays(t[:, None], TOKENS)


def truth(name, t):
    """alpha, 1 - alpha and alpha' in float64, [n v], without cancellation."""
    schedule, t = SCHEDULES[name], np.asarray(t, np.float64)[:, None]
    if isinstance(schedule, Spindle):
        bend = np.asarray(schedule.bend, np.float64)[None]
        sine = np.sin(np.pi * np.minimum(t, 1 - t))
        return 1 - t - bend * sine, t + bend * sine, -1 - np.pi * bend * np.cos(np.pi * t)
    power = np.log1p(np.exp(np.asarray(schedule.w, np.float64)))[None]
    share = 1 - schedule.eps
    with np.errstate(divide="ignore"):
        alpha = schedule.eps - share * np.expm1(power * np.log(t))
    return alpha, share * t**power, -share * power * t ** (power - 1)


def test_spindle_is_the_paper_s():
    p = (COUNTS + 1) / (COUNTS + 1).sum()
    information = -np.log(p)
    mean = (p * information).sum()
    most = STEEPEST / np.pi
    bend = np.asarray(SCHEDULES["spindle"].bend)
    np.testing.assert_allclose(bend, np.maximum(0.3 * (1 - mean / information), -most), rtol=1e-6)
    assert bend[0] == np.float32(-most) and (bend[1:] > 0.2).all() and (bend < 0.3).all()
    # The paper's alpha of so frequent a token would not fall at first.
    assert 0.3 * (1 - mean / information[0]) < -1 / np.pi
    alpha = SCHEDULES["spindle"].alpha(*by_token(jnp.array([0.25])))
    np.testing.assert_allclose(alpha[0], 0.75 - bend * np.sin(np.pi / 4), rtol=1e-6)


def test_frequent_tokens_survive_longer():
    t, x_0 = by_token(jnp.linspace(0.01, 0.99, 50))
    alpha = np.asarray(SCHEDULES["spindle"].alpha(t, x_0))
    for rarer, other in zip(range(1, V), range(V - 1), strict=True):
        if COUNTS[rarer] < COUNTS[other]:
            assert (alpha[:, rarer] < alpha[:, other]).all()
        else:
            np.testing.assert_array_equal(alpha[:, rarer], alpha[:, other])
    assert (alpha[:, 0] > 1 - t[:, 0]).all() and (alpha[:, -1] < 1 - t[:, 0]).all()


@schedules
def test_alpha_falls_from_one_to_eps(name):
    schedule = SCHEDULES[name]
    t, x_0 = by_token(jnp.linspace(0, 1, 2001))
    alpha, noised = schedule.alpha(t, x_0), schedule.one_minus_alpha(t, x_0)
    assert (alpha[0] == 1).all() and (noised[0] == 0).all()
    np.testing.assert_array_equal(alpha[-1], np.full(V, getattr(schedule, "eps", 0.0), np.float32))
    assert (jnp.diff(alpha, axis=0) <= 0).all() and (jnp.diff(noised, axis=0) >= 0).all()
    assert ((alpha >= 0) & (alpha <= 1)).all()
    assert (schedule.dalpha(t[1:], x_0[1:]) <= 0).all()
    for fn in (schedule.weight, schedule.log_snr, schedule.sigma):
        assert not jnp.isnan(fn(t, x_0)).any()


def grid() -> np.ndarray:
    ends = np.geomspace(1e-4, 0.5, 60)
    near_noise = 1 - np.geomspace(2.0**-24, 0.5, 60)
    return np.unique(np.concatenate([ends, near_noise]).astype(np.float32))


@schedules
def test_float32_values(name):
    schedule, t = SCHEDULES[name], grid()
    alpha, noised, dalpha = truth(name, t)
    at = by_token(jnp.asarray(t))
    seen = noised > 1e-35  # what float32 has at all
    close = {"rtol": 1e-5, "atol": 1e-35}
    np.testing.assert_allclose(schedule.alpha(*at), alpha, **close)
    np.testing.assert_allclose(schedule.one_minus_alpha(*at), noised, **close)
    np.testing.assert_allclose(schedule.dalpha(*at), dalpha, **close)
    weight = np.asarray(schedule.weight(*at))
    np.testing.assert_allclose(weight[seen], (-dalpha / np.maximum(noised, 1e-300))[seen], 1e-5)
    log_snr = np.log(alpha) - np.log(np.maximum(noised, 1e-300))
    np.testing.assert_allclose(np.asarray(schedule.log_snr(*at))[seen], log_snr[seen], 1e-5, 1e-5)
    every = schedule.of_all()
    for fn in ("alpha", "one_minus_alpha", "dalpha", "weight"):
        np.testing.assert_array_equal(getattr(every, fn)(at[0]), getattr(schedule, fn)(*at))


@schedules
def test_float32_gaps(name):
    """Against the integral of -alpha' in float64, which cancels nothing where s is near t."""
    t = grid()
    for s in ((t.view(np.int32) - 3).view(np.float32), np.float32(0.3) * t, np.float32(0.97) * t):
        x, w = np.polynomial.legendre.leggauss(60)
        low, span = np.log(s.astype(np.float64)), np.log1p((t - s) / s.astype(np.float64))
        gap = 0
        for at, by in zip(x, w, strict=True):
            time = np.minimum(np.exp(low + (1 + at) / 2 * span), 1.0)
            gap = gap - (by * span / 2 * time)[:, None] * truth(name, time)[2]
        (later, x_0), (earlier, _) = by_token(jnp.asarray(t)), by_token(jnp.asarray(s))
        ours = SCHEDULES[name].alpha_gap(earlier, later, x_0)
        np.testing.assert_allclose(ours, gap, rtol=1e-5, atol=1e-35)
    whole = SCHEDULES[name].alpha_gap(*(jnp.full((1, V), a) for a in (0.0, 1.0)), TOKENS)
    np.testing.assert_allclose(whole[0], np.full(V, 1 - getattr(SCHEDULES[name], "eps", 0.0)))


@schedules
def test_derivatives_are_those_of_alpha(name):
    with jax.enable_x64(True):
        schedule = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), SCHEDULES[name])
        t, x_0 = by_token(jnp.linspace(0.05, 0.95, 19, dtype=jnp.float64))
        for method in ("one_minus_alpha", "dalpha", "weight", "log_snr"):
            ours, base = (f(t, x_0) for f in (getattr(schedule, method), _base(schedule, method)))
            np.testing.assert_allclose(ours, base, rtol=1e-8, atol=1e-12, err_msg=method)


def _base(schedule, method):
    return lambda t, x_0: getattr(Schedule, method)(schedule, t, x_0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Spindle(strength=-0.1), "strength=-0.1"),
        (lambda: Spindle(strength=0.31), r"strength=0.31: must be in \[0, 0.302\]"),
        (lambda: LearnedPolynomial(power=0.0), "power=0.0"),
        (lambda: LearnedPolynomial(eps=1.0), "eps=1.0"),
        (lambda: Spindle().with_counts(np.zeros(3, int)), "no token counts"),
        (lambda: Spindle().with_counts(np.array([3, -1])), "no token counts"),
        (lambda: Spindle().of(TOKENS), "call with_counts first"),
        (lambda: LearnedPolynomial().powers, "call bind first"),
        (lambda: LearnedPolynomial().init(jax.random.key(0)), "call with_vocab first"),
        (lambda: SCHEDULES["spindle"].alpha(jnp.zeros(3)), "x_0 is needed"),
        (
            lambda: LearnedPolynomial(vocab_size=3).with_vocab(Vocab(size=4, mask_id=3)),
            r"vocab_size=3\): the vocabulary's is 4",
        ),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Runs.


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


def run_of(out: Path, text: Path, init_from: Path | None = None, **changes) -> Session:
    """A session on the tiny text; the file has what `changes` say too, as `load` reads it."""
    lines = [tiny.FILE.format(text=str(text)), "from dataclasses import replace"]
    lines += [
        "from mdlm.objectives.generalized import GeneralizedNelbo",
        "from mdlm.objectives.discrete_time import DiscreteNelbo",
        "from mdlm.schedules.per_token import Spindle",
        "from mdlm.processes.masked import Masked",
        "from mdlm.samplers.reverse import Reverse",
        "from mdlm.times import LowDiscrepancy",
    ]
    changes = {
        "network": dataclasses.replace(tiny.experiment(text).network, depth=1),
        "train": Training(steps=2, batch_size=8, ema_decay=0.5, log_every=1, eval_rows=8),
        **changes,
    }
    values = ", ".join(f"{name}={value!r}" for name, value in changes.items())
    source = "\n".join([*lines, f"experiment = replace(experiment, {values})"]) + "\n"
    experiment = tiny.experiment(text, **changes)
    return Session(
        experiment,
        out,
        source=source,
        overrides=[],
        init_from=str(init_from) if init_from else None,
    )


BERT = {
    "process": Masked(schedule=Spindle()),
    "objective": GeneralizedNelbo(),
    "sampler": Reverse(steps=4),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return tiny.write_text(tmp_path_factory.mktemp("data") / "text.txt", words=600)


@pytest.mark.slow
def test_run_folder_keeps_the_counts(text, tmp_path):
    session = run_of(tmp_path / "run", text, **BERT)
    list(session.train())
    counts = np.load(tmp_path / "run" / "data" / "token_counts.npy")
    rows = session.dataset.train.rows.all()
    np.testing.assert_array_equal(
        counts, np.bincount(rows.tokens[rows.loss_mask], minlength=len(counts))
    )
    text.rename(text.with_suffix(".away"))  # neither scoring other text nor sampling needs it
    try:
        run = load(tmp_path / "run")
        schedule = run.model.process.schedule
        np.testing.assert_array_equal(schedule.bend, session.model.process.schedule.bend)
        assert len(schedule.bend) == run.model.vocab.size
        sample = run.generate("the ", length=12)
    finally:
        text.with_suffix(".away").rename(text)
    assert sample.nfe >= 4 and sample.texts[0].text.startswith("the ")
    assert run.model.vocab.mask_id not in sample.texts[0].tokens
    valid = next(e for e in session.folder.log.metrics() if e["kind"] == "valid")
    assert np.isfinite(valid["nats per token"])


@pytest.mark.slow
def test_begins_from_a_run_of_another_objective(text, tmp_path):
    """The network of a run with another objective and schedule, as DiffusionBERT takes BERT's."""
    list(run_of(tmp_path / "first", text, objective=DiscreteNelbo(steps=8)).train())
    train = Training(steps=1, batch_size=8, ema_decay=0.5, log_every=1, eval_rows=8)
    second = run_of(
        tmp_path / "second", text, init_from=tmp_path / "first", train=train, seed=1, **BERT
    )
    list(second.train())
    # Step 0 has learning rate 0, so what was taken over is still there.
    old, new = (load(tmp_path / name).params for name in ("first", "second"))
    jax.tree.map(np.testing.assert_array_equal, old, new)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"objective": DiscreteNelbo()}, "no bound"),
        ({"time_condition": "sigma"}, 'use "t"'),
        ({"process": Masked()}, r"use Nelbo\(\)"),
        ({"sampler": tiny.experiment(Path("x")).sampler}, r"use sampler=Reverse\(\)"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, reason):
    with pytest.raises(InputError, match=reason):
        tiny.experiment(Path("text.txt"), **{**BERT, **changes})


def test_needs_counts():
    experiment = tiny.experiment(Path("text.txt"), **BERT)
    with pytest.raises(ValueError, match="built from token counts"):
        Model(experiment, Vocab(size=5, mask_id=4))
