"""What belongs to a row, predicted from its first token: losses, counts and answers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.models import Bert, ModernBert, Pooled
from mdlm.models.network import denoiser, shapes
from mdlm.objectives import Classification, Regression
from mdlm.parameterizations import Subs
from mdlm.processes import Masked
from mdlm.types import Batch, NetInput

B, L, V = 4, 12, 19
BERT = Bert(width=16, depth=1, heads=2, hidden=24, positions=L, dtype="float32")


def random_like(tree):
    """Arrays of a tree, filled with small random numbers; norms are about 1."""
    random = np.random.default_rng(0)

    def draw(path, array):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.5 * random.normal(size=array.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


@pytest.fixture
def batch():
    """Rows of different lengths, the last of which only fills the batch up."""
    first = jnp.zeros((B, L), bool).at[:, 0].set(True)
    is_valid = jnp.arange(L)[None] < jnp.array([12, 7, 3, 3])[:, None]
    return Batch(
        tokens=jax.random.randint(jax.random.key(1), (B, L), 0, V),
        loss_mask=first.at[3].set(False),
        row=jnp.array([0, 1, 2, 2]),
        rows=jnp.asarray(3),
        is_valid=is_valid,
        token_types=(jnp.arange(L)[None] > 4) * jnp.ones((B, 1), jnp.int32),
        target=jnp.array([0.0, 2.0, 1.0, 1.0]),
    )


def outcome(objective, head, batch, key=0):
    """The terms, and the head's outputs for the clean rows."""
    of_head = random_like(head.init(jax.random.key(0), BERT.width))

    @jax.jit
    def run(of_network, of_head, key):
        denoise = denoiser(BERT, V, of_network)
        diffusion = Diffusion(
            process=Masked(), parameterization=Subs(), denoise=denoise, head=head.bound(of_head)
        )
        terms = objective(key, batch, diffusion.without_dropout())
        made = denoise(
            NetInput(tokens=batch.tokens, is_valid=batch.is_valid, token_types=batch.token_types)
        )
        return terms, head.bound(of_head)(made)

    return run(random_like(shapes(BERT, V)), of_head, jax.random.key(key))


def test_the_loss_of_classes(batch):
    terms, outputs = outcome(Classification(), Pooled(outputs=3), batch)
    y = np.asarray(outputs, np.float64)
    log_p = y - np.log(np.exp(y).sum(-1, keepdims=True))
    due = -log_p[np.arange(B), [0, 2, 1, 1]]
    np.testing.assert_allclose(terms.bound[:3, 0], due[:3], rtol=1e-5)
    assert terms.total == pytest.approx(due[:3].sum(), rel=1e-5)
    assert not terms.bound[3].any() and not terms.bound[:, 1:].any()
    assert terms.count.sum() == 3 and terms.t is None
    np.testing.assert_array_equal(terms.answers[:, 0], y.argmax(-1))
    np.testing.assert_array_equal(terms.answers[:, 1], batch.target)


def test_the_loss_of_numbers(batch):
    terms, outputs = outcome(Regression(), Pooled(outputs=1), batch)
    difference = np.asarray(outputs)[:, 0] - np.asarray(batch.target)
    np.testing.assert_allclose(terms.bound[:3, 0], np.square(difference)[:3], rtol=1e-5)
    np.testing.assert_array_equal(terms.answers[:, 0], outputs[:, 0])


def test_nothing_is_drawn_without_dropout(batch):
    one, other = (outcome(Classification(), Pooled(outputs=3), batch, key)[0] for key in (0, 1))
    np.testing.assert_array_equal(one.bound, other.bound)
    assert Classification.is_exact and Regression.is_exact


def test_token_types_and_padding_reach_the_network(batch):
    terms = lambda **change: (
        outcome(Classification(), Pooled(outputs=3), replace(batch, **change))[0].bound
    )
    whole = terms()
    assert np.abs(terms(token_types=1 - batch.token_types) - whole)[:3, 0].min() > 1e-5
    behind = jnp.where(batch.is_valid, batch.tokens, (batch.tokens + 1) % V)
    np.testing.assert_allclose(terms(tokens=behind), whole, atol=1e-6)


@pytest.mark.slow
def test_the_loss_of_transformers(batch):
    """Of the same outputs: cross-entropy and mean squared error of PyTorch."""
    torch = pytest.importorskip("torch")
    terms, outputs = outcome(Classification(), Pooled(outputs=3), batch)
    due = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(outputs)[:3]), torch.tensor([0, 2, 1]), reduction="sum"
    )
    assert terms.total == pytest.approx(float(due), rel=1e-5)


def test_networks_without_token_types_get_none(batch):
    assert ModernBert(width=16, depth=2, heads=2).typed(batch).token_types is None
    assert BERT.typed(batch) is batch
