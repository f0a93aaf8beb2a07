"""Overfits eight sequences, then generates them: training, the network and sampling as one."""

from dataclasses import replace

import jax
import numpy as np
import tiny

from mdlm.experiment import Model
from mdlm.mesh import MeshShape, place
from mdlm.models.dit import DiT
from mdlm.optim import Muon
from mdlm.samplers.base import generate
from mdlm.times import balanced_order
from mdlm.train.loop import in_training
from mdlm.train.step import compile_step, create_state
from mdlm.types import Batch, Vocab

STEPS, LENGTH = 400, 12


def test_overfits_eight_sequences_and_generates_them(tmp_path):
    vocab = Vocab(size=17, mask_id=16)
    data = np.random.default_rng(0).integers(0, 16, (8, LENGTH)).astype(np.int32)
    experiment = tiny.experiment(
        tmp_path / "none.txt",
        network=DiT(width=64, depth=2, heads=2, cond_dim=16),
        optimizer=Muon(
            learning_rate=0.01, adam_rate=1.0, warmup_steps=20, schedule="wsd", cooldown=0.5
        ),
    )
    experiment = replace(
        experiment, train=replace(experiment.train, steps=STEPS, batch_size=64, ema_decay=0.95)
    )
    model = Model(experiment, vocab)
    mesh = MeshShape(data=1).build(jax.devices()[:1])
    tx = experiment.optimizer.build(STEPS)
    state, step = create_state(model, tx, mesh, jax.random.key(0)), compile_step(model, tx, mesh)
    rows = {
        "tokens": np.tile(data, (8, 1)),
        "loss_mask": np.ones((64, LENGTH), bool),
        "is_valid": np.ones((64, LENGTH), bool),
        "row": np.arange(64, dtype=np.int32),
    }
    batch = Batch(**place(mesh, in_training(rows, balanced_order(64))))
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        losses.append(float(metrics["nelbo"]))
    # ln 16 = 2.8 nats per token at first; in the end little more than which of the eight it is,
    # ln 8 nats per sequence.
    assert np.mean(losses[:3]) > 2
    assert np.mean(losses[-50:]) < 2 * np.log(8) / LENGTH

    samples = jax.jit(
        lambda params, keys: generate(
            keys,
            jax.numpy.zeros((64, LENGTH), jax.numpy.int32),
            jax.numpy.zeros((64, LENGTH), bool),
            sampler=replace(experiment.sampler, steps=256),
            process=model.process,
            parameterization=model.parameterization,
            denoise=model.denoise(params),
        )
    )(state["ema"], jax.random.split(jax.random.key(1), 64))
    known = (np.asarray(samples.tokens)[:, None] == data[None]).all(-1)
    assert known.any(1).mean() > 0.9
    assert known.any(0).sum() >= 7  # and of all of them
