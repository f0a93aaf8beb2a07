"""Run folders that are not trained: with random parameters, or with those that a test chooses."""

from dataclasses import replace

import jax

import mdlm
from mdlm.experiment import Model
from mdlm.experiment.identity import fingerprint
from mdlm.runs import base_weights, weights
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.folder import RunFolder


def noised(params):
    """Parameters with noise in all of them: networks begin with zeros in their last layers."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [
        0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise, strict=True)])


def made(folder, experiment, change=noised, tokenizer=None) -> mdlm.Run:
    """Makes a run folder of an experiment with the parameters that `change` returns for those that
    training begins with, and opens it. A tokenizer that is made from text is given."""
    tokenizer = tokenizer or experiment.data.tokenizer.build([])
    model = Model(experiment, tokenizer.vocab)
    params = change(jax.jit(model.init)(jax.random.key(1)))
    run = RunFolder(folder)
    run.begin(None, [], experiment)
    run.save_data(tokenizer.files())
    weights.write(run.path, params, step=0, fingerprint=fingerprint(experiment))
    return mdlm.load(folder)


def made_tuned(folder, base, tune, step=1) -> mdlm.Run:
    """Makes a run folder that began from the run `base`, with random arrays where `tune` trains,
    and opens it."""
    experiment = replace(base.experiment, tune=tune)
    model = Model(experiment, base.model.vocab)
    kept, trained = model.split(jax.random.key(0), base.params)
    trained = noised(trained)
    run = RunFolder(folder)
    run.begin(None, [], experiment)
    run.save_data(base.tokenizer.files())
    base_weights.write(run, kept, step=0, fingerprint=None)
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(step, {"params": trained, "ema": trained}, {"position": 0})
    return mdlm.load(folder)
