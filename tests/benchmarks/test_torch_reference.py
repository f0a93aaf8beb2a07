"""The PyTorch reference computes what we compute: loss, gradients, one step with its average."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="the bench extra (PyTorch) is not installed")

from benchmarks import synthetic, torch_reference  # noqa: E402
from mdlm.diffusion import Diffusion  # noqa: E402
from mdlm.interop.mdlm_torch import to_reference  # noqa: E402
from mdlm.models.dit import DiT  # noqa: E402
from mdlm.models.network import denoiser, init  # noqa: E402
from mdlm.objectives.base import score_masked  # noqa: E402
from mdlm.objectives.nelbo import Nelbo  # noqa: E402
from mdlm.optim import AdamW  # noqa: E402
from mdlm.parameterizations.subs import Subs  # noqa: E402
from mdlm.processes.masked import Masked  # noqa: E402
from mdlm.schedules.closed_form import LogLinear  # noqa: E402
from mdlm.train.step import ema_decay  # noqa: E402
from mdlm.types import Batch  # noqa: E402

NETWORK = DiT(width=32, depth=2, heads=2, cond_dim=16, dtype="float32")
COLUMNS, MASK, B, L = 61, 60, 4, 24


@pytest.fixture(scope="module")
def params():
    """Large enough for attention and activations to leave their linear range."""
    rng = np.random.default_rng(1)
    fresh = jax.jit(lambda key: init(NETWORK, key, COLUMNS))(jax.random.key(0))
    return jax.tree.map(
        lambda a: np.asarray(a) + 0.2 * rng.standard_normal(a.shape, np.float32), fresh
    )


@pytest.fixture(scope="module")
def noise():
    """Clean tokens, times and masks, drawn by the PyTorch reference."""
    torch.manual_seed(0)
    x_0 = torch.tensor(synthetic.tokens(COLUMNS, B, L)).long()
    return x_0, *torch_reference.draw(x_0)


@jax.jit
@jax.value_and_grad
def our_loss(params, x_0, t, is_masked):
    """Mean loss per token at given noise, and its gradient."""
    batch = Batch(
        tokens=x_0,
        loss_mask=jnp.ones(x_0.shape, bool),
        is_valid=jnp.ones(x_0.shape, bool),
        row=jnp.arange(B),
        rows=jnp.asarray(B),
    )
    process = Masked(schedule=LogLinear(eps=torch_reference.EPS), mask_id=MASK)
    t = t[:, None]
    _, weight = Nelbo(reconstruction=False, t_min=torch_reference.T_MIN).times_and_weights(
        process.schedule, (t - torch_reference.T_MIN) / (1 - torch_reference.T_MIN)
    )
    terms = score_masked(
        batch,
        z_t=jnp.where(is_masked, MASK, x_0),
        t=t,
        weight=weight,
        diffusion=Diffusion(
            process=process,
            parameterization=Subs(mask_id=MASK, vocab_size=COLUMNS),
            denoise=denoiser(NETWORK, COLUMNS, params),
        ),
    )
    return terms.total / terms.count.sum()


def as_ours(noise):
    return [jnp.asarray(part.numpy()) for part in noise]


def assert_near(named, ours, share=1e-5):
    """Torch tensors by name against a tree of ours, to a share of each one's greatest entry."""
    expected = to_reference(ours, NETWORK)
    expected.pop("rotary_emb.inv_freq")
    assert named.keys() == expected.keys()
    for name, value in named.items():
        want = expected[name]
        assert np.abs(want).max() > 0, name
        error = np.abs(value.detach().numpy() - want).max() / np.abs(want).max()
        assert error < share, (name, error)


# PyTorch's own deprecations, met while its compiler is imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_loss_and_gradients_are_ours(params, noise, compiled):
    network = torch_reference.load(NETWORK, params, COLUMNS, MASK).train()
    loss = torch.compile(network.loss, fullgraph=True) if compiled else network.loss
    theirs = loss(*noise)
    theirs.backward()
    ours, gradient = our_loss(params, *as_ours(noise))
    assert theirs.item() == pytest.approx(float(ours), rel=1e-5)
    assert_near({name: p.grad for name, p in network.named_parameters()}, gradient)


@pytest.mark.slow
def test_a_step_and_its_average_are_ours(params, noise):
    """Three steps at one noise; the gradient is clipped (its norm is above 1) and the rate rises.

    Adam divides gradients by themselves at first, so where one is near 0 rounding alone decides
    the update: steps are compared to a share of the rate.
    """
    optimizer = AdamW(learning_rate=1e-2, warmup_steps=4, clip_norm=0.5, eps=1e-3)
    training = torch_reference.Training(
        torch_reference.load(NETWORK, params, COLUMNS, MASK), optimizer, 0.9999, compiled=False
    )
    tx = optimizer.build(10)
    ours, average, state = params, params, tx.init(params)
    for n in range(3):
        theirs = training.update(*noise)
        loss, gradient = our_loss(ours, *as_ours(noise))
        assert theirs.item() == pytest.approx(float(loss), rel=1e-5)
        assert float(optax.tree.norm(gradient)) > optimizer.clip_norm
        updates, state = jax.jit(tx.update)(gradient, state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        decay = ema_decay(0.9999, jnp.asarray(n + 1))
        average = jax.tree.map(lambda e, p, d=decay: e + (1 - d) * (p - e), average, ours)
    names = [name for name, _ in training.network.named_parameters()]
    moved = jax.tree.map(jnp.subtract, ours, params)
    assert_near(dict(zip(names, training.parameters, strict=True)), ours)
    assert_near(dict(zip(names, training.ema, strict=True)), average)
    assert min(float(jnp.abs(m).max()) for m in jax.tree.leaves(moved)) > 1e-4


def test_dropout_is_on_in_training_only(params, noise):
    network = torch_reference.load(replace(NETWORK, dropout=0.5), params, COLUMNS, MASK)
    training, scoring = (
        [network.train(mode).loss(*noise).item() for _ in range(2)] for mode in (True, False)
    )
    assert training[0] != training[1] and scoring[0] == scoring[1]


def test_noise_is_stratified_and_masks_as_much_as_the_schedule_says():
    torch.manual_seed(1)
    x_0 = torch.zeros(256, 2000, dtype=torch.long)
    t, is_masked = torch_reference.draw(x_0)
    stratum = ((t - torch_reference.T_MIN) / (1 - torch_reference.T_MIN) * 256).floor()
    assert (stratum == torch.arange(256)).all()
    share = is_masked.float().mean(1)
    assert (share - (1 - torch_reference.EPS) * t).abs().max() < 0.06
    assert float(share.mean()) == pytest.approx(0.5, abs=0.01)


def test_cached_sampler_draws_the_distribution_it_is_given():
    """A network that always gives one distribution: samples follow it, and calls are saved."""
    log_p = torch.tensor([0.5, 0.3, 0.2, 0.0]).log()
    asked = []

    def logits(tokens):
        asked.append(tokens)
        return log_p.expand(*tokens.shape, 4)

    torch.manual_seed(2)
    tokens, calls = torch_reference.generate(logits, 3, 50, 40, 16)
    assert tokens.shape == (50, 40)
    # Some of 2,000 positions change in every step, so each asks anew, about what is left.
    assert calls == len(asked) == 17
    for call, seen in enumerate(asked):
        assert float((seen == 3).float().mean()) == pytest.approx(1 - call / 16, abs=0.05)
    assert torch.bincount(tokens.flatten(), minlength=4)[3] == 0
    found = torch.bincount(tokens.flatten(), minlength=4) / 2000
    assert (found - log_p.exp()).abs().max() < 0.04
    # One position, many steps: nothing changes in most of them, and no call is made for those.
    tokens, calls = torch_reference.generate(logits, 3, 1, 1, 200)
    assert calls <= 3


@pytest.mark.parametrize(("stride", "total", "known"), [(4, 16, [4, 4]), (8, 10, [6])])
def test_windows_slide_along_the_text(stride, total, known):
    """Each window begins with the end of the text before it, and adds the rest."""
    asked = []
    torch.manual_seed(0)

    def logits(tokens):
        asked.append(tokens.clone())
        return torch.randn(*tokens.shape, 9)

    text, calls = torch_reference.generate_long(logits, 8, 2, 8, 3, total=total, stride=stride)
    assert text.shape == (2, total) and (text < 8).all() and calls == len(asked)
    end = 8
    for context in known:
        before = text[:, end - context : end]
        fresh = [x for x in asked if (x[:, context:] == 8).all() and (x[:, :context] < 8).all()]
        assert any((x[:, :context] == before).all() for x in fresh)
        end += 8 - context
    assert end == total
