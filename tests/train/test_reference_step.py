"""The network that training began from, as objectives are handed it in the step."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_tuned_step import Run, beginning, experiment, same

from mdlm.objectives.nelbo import Nelbo
from mdlm.runs.weights import named
from mdlm.train.step import saved
from mdlm.tuning import Full, LoRA


@dataclass(frozen=True, kw_only=True)
class Distance(Nelbo):
    """The NELBO, and beside it the reference's on the same noise."""

    @property
    def needs_reference(self) -> bool:
        return True

    def __call__(self, key, batch, diffusion):
        assert diffusion.reference.reference is None
        own, theirs = (super(Distance, self).__call__(key, batch, d) for d in both(diffusion))
        return replace(own, scalars={"reference": theirs.total / theirs.count.sum()})


def both(diffusion):
    return diffusion, diffusion.reference


@pytest.fixture(scope="module")
def initial():
    return beginning()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "tune",
    [
        None,
        pytest.param(LoRA(rank=4), marks=SLOW),
        pytest.param(Full(frozen=("embed",)), marks=SLOW),
    ],
)
def test_the_reference_stays_where_training_began(initial, tune):
    """Its loss is that of the first step for the same noise, though the parameters move."""
    run = Run(replace(experiment(tune), objective=Distance()), initial)
    assert set(named(run.state["base"])) == set(named(initial))
    gaps = [abs(loss - values["reference"]) for loss, values in (run.one(0) for _ in range(3))]
    assert gaps[0] < 1e-5 and gaps[2] > 1e-3
    assert same(initial, run.state["base"])
    assert not any(name.startswith("base") for name in saved(run.state))


@pytest.mark.slow
def test_no_gradient_reaches_the_reference(initial):
    run = Run(replace(experiment(None), objective=Distance()), initial)
    plain = Run(experiment(None), initial)
    assert run.steps(3) == pytest.approx(plain.steps(3), rel=1e-6)
    for name, value in named(plain.params).items():
        np.testing.assert_allclose(named(run.params)[name], value, atol=1e-5, err_msg=name)

    params = jax.tree.map(jnp.asarray, run.params)

    def loss(reference):
        terms = run.model.loss(params, jax.random.key(0), run.batch(0), 0, reference)
        return terms.scalars["reference"]

    gradient = jax.jit(jax.grad(loss))(initial)
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(gradient))
