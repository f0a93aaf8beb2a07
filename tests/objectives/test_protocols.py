"""The line beside a number names every term of the bound that the number leaves out."""

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.objectives.autoregressive import Autoregressive
from mdlm.objectives.block import BlockNelbo
from mdlm.objectives.d3pm import D3PM
from mdlm.objectives.discrete_time import DiscreteNelbo
from mdlm.objectives.generalized import GeneralizedDiscreteNelbo, GeneralizedNelbo
from mdlm.objectives.hybrid import HybridNelbo
from mdlm.objectives.llada import LLaDA
from mdlm.objectives.masked_count import OrderAgnostic
from mdlm.objectives.nelbo import Nelbo
from mdlm.objectives.score_entropy import ScoreEntropy
from mdlm.objectives.uniform import UniformNelbo
from mdlm.processes.hybrid import Hybrid, LogSNRHybrid
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import LinearSigma, LogLinear

WHOLE = {
    "nelbo": (Nelbo(), "NELBO, continuous time"),
    "importance": (Nelbo(importance=True), "NELBO, continuous time"),
    "llada": (LLaDA(), "NELBO, continuous time, given the unscored tokens"),
    "discrete": (DiscreteNelbo(steps=64), "NELBO, discrete time, 64 steps"),
    "d3pm": (D3PM(), "NELBO, discrete time, 1000 steps, D3PM"),
    "d3pm as published": (
        D3PM(reconstruction=True),
        "NELBO, discrete time, 1000 steps, D3PM, with the loss of the clean row at t = 0",
    ),
    "orders": (OrderAgnostic(), "NELBO, order-agnostic, by counts of masked tokens"),
    "blocks": (BlockNelbo(block_size=4), "NELBO, blocks of 4, continuous time"),
    "uniform": (UniformNelbo(), "NELBO, continuous time, uniform noise"),
    "hybrid": (HybridNelbo(reconstruction=True), "NELBO, continuous time, hybrid noise"),
    "by token": (GeneralizedNelbo(), "NELBO, continuous time, rates by token"),
    "by token, discrete": (
        GeneralizedDiscreteNelbo(steps=8),
        "NELBO, discrete time, 8 steps, rates by token",
    ),
    "by token, from rates": (
        GeneralizedNelbo(reconstruction="rates"),
        "NELBO, continuous time, rates by token, tokens masked at t = 0.001 predicted from the"
        " rates alone",
    ),
    "autoregressive": (Autoregressive(), "exact NLL, first token of each row not scored"),
}

SHORT = {
    "nelbo": (
        Nelbo(reconstruction=False),
        "NELBO without the reconstruction term (t >= 0.001), continuous time",
    ),
    "another t_min": (
        Nelbo(reconstruction=False, importance=True, t_min=0.05),
        "NELBO without the reconstruction term (t >= 0.05), continuous time",
    ),
    "llada": (
        LLaDA(reconstruction=False),
        "NELBO without the reconstruction term (t >= 0.001), continuous time, given the unscored"
        " tokens",
    ),
    "blocks": (
        BlockNelbo(block_size=4, low=1e-3),
        "NELBO without the reconstruction term (t >= 0.001), blocks of 4, continuous time",
    ),
    "uniform": (
        UniformNelbo(ends=False),
        "NELBO without the reconstruction and prior terms (t >= 0.001), continuous time, uniform"
        " noise",
    ),
    "hybrid": (
        HybridNelbo(),
        "NELBO without the reconstruction and prior terms (0.0001 <= t <= 0.9999), continuous"
        " time, hybrid noise",
    ),
    "score entropy": (
        ScoreEntropy(t_min=0.01),
        "score entropy without the reconstruction and prior terms (t >= 0.01)",
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_bound_is_a_nelbo_without_reservation(name):
    objective, said = WHOLE[name]
    assert objective.protocol == said and "without the" not in said


@pytest.mark.parametrize("name", SHORT)
def test_terms_that_are_left_out_are_named(name):
    objective, said = SHORT[name]
    assert objective.protocol == said


@pytest.mark.parametrize("objective", [DiscreteNelbo(), D3PM()])
def test_a_chain_whose_schedule_starts_noised_has_no_reconstruction(objective):
    assert objective.protocol_on(Masked(schedule=LogLinear())) == objective.protocol
    said = objective.protocol_on(Masked(schedule=LinearSigma()))
    assert said.startswith("NELBO without the reconstruction term (alpha(0) < 1), discrete time")
    whole = objective.protocol_on(Masked(schedule=LinearSigma(sigma_min=0.0)))
    assert whole == objective.protocol


def test_hybrid_noise_that_leaves_something_to_read_at_its_end_has_no_prior_term():
    whole = HybridNelbo(reconstruction=True, weights="elbo")
    assert whole.protocol_on(Hybrid()) == whole.protocol
    assert float(Hybrid().schedule.alpha(jnp.ones(()))) == 0
    said = whole.protocol_on(LogSNRHybrid())
    assert said == "NELBO without the prior term (alpha(1) > 0), continuous time, hybrid noise"


@pytest.mark.parametrize("name", ["nelbo", "uniform", "hybrid"])
def test_the_times_named_are_those_that_are_drawn(name):
    objective, said = SHORT[name]
    u = jnp.asarray([[0.0], [1.0 - 2**-24]])
    drawn = (
        objective.times_and_weights(LogLinear(), u)
        if name == "nelbo"
        else objective.times_and_weights(u)
    )
    np.testing.assert_allclose(float(drawn[0].min()), objective.t_min, rtol=1e-5)
    assert f"{objective.t_min:g}" in said
