"""Four optimisation steps of the MDLM repository: gradients, rates, parameters, average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mdlm.diffusion import Diffusion
from mdlm.interop.mdlm_torch import params_from
from mdlm.models.dit import DiT
from mdlm.models.network import denoiser
from mdlm.objectives.base import score_masked
from mdlm.objectives.nelbo import Nelbo
from mdlm.optim import AdamW
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import LogLinear
from mdlm.train.step import ema_decay
from mdlm.types import Batch

pytestmark = pytest.mark.golden
NETWORK = DiT(width=64, depth=2, heads=4, cond_dim=32)


@pytest.mark.slow
def test_four_steps(golden, golden_folder):
    data, expected = golden("mdlm_losses.npz"), golden("mdlm_train.npz")
    weights = load_file(golden_folder / "mdlm_dit.safetensors")
    tensors = load_file(golden_folder / "mdlm_train.safetensors")
    buffers = {k: v for k, v in weights.items() if k.endswith("inv_freq")}

    def stored(kind: str):
        part = {k.removeprefix(kind): v for k, v in tensors.items() if k.startswith(kind)}
        return params_from({**part, **buffers}, NETWORK, 67)

    params = jax.tree.map(jnp.asarray, params_from(weights, NETWORK, 67))
    mask_id = int(data["mask_index_last"])
    process = Masked(schedule=LogLinear(), mask_id=mask_id)
    subs = Subs(mask_id=mask_id, vocab_size=67)
    x_0 = jnp.asarray(data["x0"], jnp.int32)
    batch = Batch(
        tokens=x_0,
        loss_mask=jnp.asarray(data["attention_mask"] > 0),
        is_valid=jnp.ones(x_0.shape, bool),
        row=jnp.arange(3),
        rows=jnp.asarray(3),
    )
    t = jnp.asarray(data["subs_ct__t_sampled"])[:, None]
    _, weight = Nelbo(reconstruction=False).times_and_weights(
        process.schedule, (t - 1e-3) / (1 - 1e-3)
    )

    @jax.jit
    def loss(params):
        terms = score_masked(
            batch,
            z_t=jnp.asarray(data["xt_last"], jnp.int32),
            t=t,
            weight=weight,
            diffusion=Diffusion(
                process=process, parameterization=subs, denoise=denoiser(NETWORK, 67, params)
            ),
        )
        return terms.total / terms.count.sum()

    optimizer = AdamW(
        learning_rate=float(expected["base_lr"]),
        warmup_steps=int(expected["warmup"]),
        clip_norm=float(expected["clip"]),
    )
    rate, tx = optimizer.rate(4), optimizer.build(4)
    state, ema = tx.init(params), params
    for n in range(4):
        value, gradient = jax.value_and_grad(loss)(params)
        assert float(value) == pytest.approx(expected["losses"][n], rel=1e-5)
        norm = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(gradient)))
        assert norm == pytest.approx(expected["grad_norm"][n], rel=1e-4)
        assert float(rate(n)) == pytest.approx(expected["lr"][n], rel=1e-6, abs=1e-12)
        if n == 0:
            for mine, theirs in zip(
                jax.tree.leaves(gradient), jax.tree.leaves(stored("grad/")), strict=True
            ):
                scale = np.abs(theirs).max()
                np.testing.assert_allclose(mine, theirs, atol=1e-5 * scale, rtol=0)
        updates, state = tx.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        decay = ema_decay(float(expected["ema_decay"]), jnp.asarray(n + 1))
        ema = jax.tree.map(lambda e, p, d=decay: e + (1 - d) * (p - e), ema, params)
    for mine, theirs in ((params, stored("param/")), (ema, stored("ema/"))):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
