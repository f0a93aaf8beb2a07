"""Runs with a head: its parameters in checkpoints and weights, and what a later run takes over."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from made_run import made, noised

from mdlm.config import records
from mdlm.data import Wrap
from mdlm.errors import InputError
from mdlm.experiment import Experiment, Model, Training
from mdlm.experiment.identity import fingerprint, identity
from mdlm.models import DiT, PerToken, Pooled
from mdlm.objectives import Nelbo
from mdlm.optim import AdamW
from mdlm.run import load
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.weights import Weights, named
from mdlm.samplers import Ancestral
from mdlm.train.session import Session
from mdlm.tuning import Full, LoRA
from mdlm.types import Batch, NetInput

TRAIN = Training(steps=2, batch_size=8, ema_decay=0.9, eval_rows=8)
HEAD = PerToken(outputs=2)


@dataclass(frozen=True, kw_only=True)
class ReadsHead(Nelbo):
    """The bound, and beside it the mean square of what a head gives for the clean tokens."""

    def __call__(self, key, batch, diffusion):
        terms = super().__call__(key, batch, diffusion)
        assert diffusion.head is not None
        made = diffusion.denoise(NetInput(tokens=batch.tokens, t=jnp.ones((len(batch.row), 1))))
        found = diffusion.head(made, key=jax.random.fold_in(key, 5))
        return replace(terms, total=terms.total + jnp.square(found - 1).sum())


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    text = tiny.write_text(tmp_path_factory.mktemp("text") / "text.txt", words=600)
    made = tiny.experiment(text, train=TRAIN, sampler=Ancestral(steps=1))
    data = replace(made.data, packing=Wrap(length=8, row_specials=False))
    # The first step has the learning rate of 0 if there is a warm-up.
    optimizer = AdamW(learning_rate=1e-2, warmup_steps=0)
    network = DiT(width=16, depth=1, heads=2, cond_dim=8)
    return replace(made, data=data, network=network, optimizer=optimizer)


def train(experiment, out, **how):
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        session = Session(experiment, out, source="# a file", overrides=[], **how)
        list(session.train())
    return session


@pytest.fixture(scope="module")
def base(experiment, tmp_path_factory):
    """A run without a head."""
    return made(tmp_path_factory.mktemp("base") / "run", experiment)


@pytest.fixture(scope="module")
def headed(experiment, tmp_path_factory):
    """A run with one, all of whose parameters are random."""
    return made(tmp_path_factory.mktemp("headed") / "run", replace(experiment, head=HEAD))


def arrays(params):
    return {name: np.asarray(a) for name, a in named(params).items()}


def test_a_head_is_a_component_of_the_parameters(experiment, base):
    with_head = replace(experiment, head=HEAD)
    model = Model(with_head, base.model.vocab)
    params = jax.jit(model.init)(jax.random.key(1))
    plain = jax.jit(Model(experiment, base.model.vocab).init)(jax.random.key(1))
    assert params.keys() == {"network", "head"} and plain.keys() == {"network"}
    assert params["head"]["out"]["kernel"].shape == (16, 2)
    for name, value in arrays(plain).items():
        np.testing.assert_array_equal(arrays(params)[name], value)
    # A record of an experiment without one is as before.
    assert "head" not in records.record(experiment)
    assert fingerprint(experiment) != fingerprint(with_head)
    record = records.record(with_head)
    assert record["head"] == "PerToken(outputs=2)"
    assert records.read(record, Experiment, "title") == with_head
    assert identity(with_head)["head"] == HEAD


def test_an_objective_reads_the_head_and_trains_it(experiment, base):
    model = Model(replace(experiment, head=HEAD, objective=ReadsHead()), base.model.vocab)
    params = noised(jax.jit(model.init)(jax.random.key(1)))
    tokens = jnp.arange(16).reshape(2, 8)
    batch = Batch(tokens=tokens, loss_mask=tokens >= 0, row=jnp.arange(2), rows=jnp.asarray(2))
    loss = lambda params, part: model.loss(params, jax.random.key(0), batch, part).total
    gradient = jax.jit(jax.grad(loss))(params, 0)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient["head"]))
    # Dropout of the head is drawn anew in each part of a batch, and is off in evaluations.
    assert loss(params, 0) != loss(params, 1)
    evaluate = jax.jit(lambda seed: model.evaluate(params, jax.random.key(seed), batch))
    terms = [evaluate(seed) for seed in (0, 1)]
    squares = [one.total - one.values.sum() for one in terms]
    assert squares[0] == pytest.approx(float(squares[1]), rel=1e-4)


@pytest.mark.slow
def test_a_run_begins_with_a_fresh_head_and_keeps_it(experiment, base, tmp_path):
    tune = Full(rates=(("head.out", 0.5),))
    fresh = replace(experiment, head=HEAD, objective=ReadsHead(), tune=tune)
    train(fresh, tmp_path / "run", init_from=str(base.folder.path))
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.manager.restore(2)["state"]
    assert state["ema"]["head"]["out"]["kernel"].shape == (16, 2)
    assert np.abs(state["params"]["head"]["out"]["bias"]).max() > 1e-3
    wrong = replace(fresh, tune=Full(rates=(("head.pooler", 0.5),)))
    with pytest.raises(InputError, match="tune.rates='head.pooler': no array has this name"):
        train(wrong, tmp_path / "wrong", init_from=str(base.folder.path))


@pytest.mark.slow
def test_the_same_head_is_taken_over_and_another_is_not(experiment, headed, tmp_path):
    """With the bound alone a head gets no gradient, so that it stays as it began."""
    before = arrays(headed.params)
    for head, is_same in ((HEAD, True), (PerToken(outputs=3), False), (Pooled(outputs=2), False)):
        out = tmp_path / f"{head.outputs}{type(head).__name__}"
        train(replace(experiment, head=head), out, init_from=str(headed.folder.path))
        after = arrays(load(out).params)
        for name in (n for n in before if n in after and n.startswith("head.")):
            same = before[name].shape == after[name].shape
            assert (same and np.array_equal(before[name], after[name])) == is_same, name
        close = dict(atol=0.05)
        np.testing.assert_allclose(
            after["network.embed.table"], before["network.embed.table"], **close
        )
    train(experiment, tmp_path / "without", init_from=str(headed.folder.path))
    assert "head" not in load(tmp_path / "without").params


def test_weights_have_the_head(headed):
    assert Weights.of(headed.folder.path).components == {"network", "head"}
    assert headed.params["head"]["out"]["bias"].shape == (2,)


@pytest.mark.slow
def test_lora_trains_the_head_beside_it(experiment, base, tmp_path):
    with_head = replace(experiment, head=HEAD, objective=ReadsHead(), tune=LoRA(rank=2))
    train(with_head, tmp_path / "run", init_from=str(base.folder.path))
    kept = Weights.of(tmp_path / "run", name="base.safetensors")
    assert kept.components == {"network"}
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.has("ema", "head") and checkpoints.has("ema", "adapter")
        state = checkpoints.manager.restore(2)["state"]["ema"]["head"]
    assert np.abs(state["out"]["bias"]).max() > 1e-4


@pytest.mark.slow
def test_frozen_heads_come_from_the_run(experiment, base, headed, tmp_path):
    frozen = replace(experiment, head=HEAD, tune=Full(frozen=("head.out",)))
    with pytest.raises(InputError, match=r"has no head\.out\.\w+ for this run, whose tune=Full"):
        train(frozen, tmp_path / "run", init_from=str(base.folder.path))
    assert not (tmp_path / "run").exists()
    train(frozen, tmp_path / "run", init_from=str(headed.folder.path))
    after = arrays(load(tmp_path / "run").params)
    np.testing.assert_array_equal(
        after["head.out.kernel"], arrays(headed.params)["head.out.kernel"]
    )
