"""A small distribution under noise that mixes tokens and the mask, everything about it enumerated.

Written from the definitions, beside the code that it tests: transitions to noised rows, what the
true network says of each (of a token given all noised tokens, or all others), and the reverse chain
as the mixture, or with the distribution plugged in.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from distribution import Distribution

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row, stream
from mdlm.parameterizations.mean import Mean
from mdlm.processes.interpolating import Interpolating
from mdlm.samplers.loop import generate
from mdlm.samplers.reverse import Reverse
from mdlm.types import DenseLogits, Vocab


@dataclass(frozen=True)
class NoisedDistribution:
    """`data` noised by `process` (which is given its vocabulary here)."""

    data: Distribution
    process: Interpolating

    @property
    def vocab(self) -> Vocab:
        return Vocab(size=self.data.symbols + 1, mask_id=self.data.mask_id)

    @property
    def bound_process(self):
        return self.process.with_vocab(self.vocab)

    @property
    def mean(self) -> Mean:
        return Mean().with_vocab(self.vocab)

    @property
    def noised(self) -> np.ndarray:
        """All noised rows, [n l]."""
        ids = np.indices((self.data.symbols + 1,) * self.data.length)
        return ids.reshape(self.data.length, -1).T

    def token_transition(self, t: float) -> np.ndarray:
        """q(z | x) of one token, [x z], float64."""
        symbols = self.data.symbols
        with jax.enable_x64(True):
            alpha = float(self.process.schedule.alpha(jnp.asarray(t, jnp.float64)))
            token, mask = self.bound_process.noise(jnp.asarray(t, jnp.float64))
        q = np.zeros((symbols, symbols + 1))
        q[:, :symbols] = alpha * np.eye(symbols) + float(token)
        q[:, symbols] = float(mask)
        np.testing.assert_allclose(q.sum(1), 1, rtol=1e-12)
        return q

    def row_transition(self, t: float) -> np.ndarray:
        """q(z | x) of whole rows, [x z]."""
        q, x, z = self.token_transition(t), self.data.sequences, self.noised
        return np.prod(q[x[:, None], z[None]], axis=-1)

    def remaining(self, t: float) -> float:
        """H(x | z_t), nats."""
        joint = self.data.p[:, None] * self.row_transition(t)
        posterior = joint / np.maximum(joint.sum(0), 1e-300)
        return -(joint * np.log(np.maximum(posterior, 1e-300))).sum()

    def remaining_by_token(self, t: float) -> float:
        """sum over i of H(x_i | z_t), nats."""
        joint = self.data.p[:, None] * self.row_transition(t)
        total = 0.0
        for i in range(self.data.length):
            of = [joint[self.data.sequences[:, i] == v].sum(0) for v in range(self.data.symbols)]
            of = np.array(of)
            posterior = of / np.maximum(of.sum(0), 1e-300)
            total -= (of * np.log(np.maximum(posterior, 1e-300))).sum()
        return total

    def denoise(self, inputs, *, key=None) -> DenseLogits:
        """The truth as a network: given the others or given all, as the process reads it."""
        process, sequences = self.bound_process, jnp.asarray(self.data.sequences)
        b, l = inputs.tokens.shape
        z, x, t = jnp.broadcast_arrays(
            inputs.tokens[:, None], sequences[None], jnp.broadcast_to(inputs.t, (b, l))[:, None]
        )
        q = process.probability(z, x, t)  # [b, sequence, l]
        out = []
        for i in range(l):
            seen = [j for j in range(l) if j != i or process.posterior == "mixture"]
            weight = jnp.asarray(self.data.p, jnp.float32)[None] * q[..., jnp.array(seen)].prod(-1)
            p = weight @ jax.nn.one_hot(sequences[:, i], self.data.symbols + 1)
            out.append(p / p.sum(-1, keepdims=True))
        return DenseLogits(jnp.log(jnp.maximum(jnp.stack(out, 1), 1e-30)))

    def wrong_posterior(self) -> np.ndarray:
        """An arbitrary network: a distribution of each clean token for each noised row, [z l x]."""
        shape = (len(self.noised), self.data.length)
        return np.random.default_rng(5).dirichlet(np.ones(self.data.symbols), shape)

    def wrong_denoise(self, inputs, *, key=None) -> DenseLogits:
        """`wrong_posterior` as a network."""
        digits = (self.data.symbols + 1) ** jnp.arange(self.data.length)[::-1]
        p = jnp.asarray(self.wrong_posterior(), jnp.float32)[(inputs.tokens * digits[None]).sum(-1)]
        return DenseLogits(jnp.pad(jnp.log(p), ((0, 0), (0, 0), (0, 1)), constant_values=3.0))

    def step_divergence(self, s: float, t: float) -> float:
        """E of the sum over tokens of KL(q(z_s | z_t, x) || p(z_s | z_t)) for `wrong_posterior`."""
        q_s, q_t, symbols = self.token_transition(s), self.token_transition(t), self.data.symbols
        kept = (q_t[0, 0] - q_t[1, 0]) / (q_s[0, 0] - q_s[1, 0])
        noise_s, noise_t = (np.append(q[1, [0] * symbols], q[1, symbols]) for q in (q_s, q_t))
        step = kept * np.eye(symbols + 1) + (noise_t - kept * noise_s)[None]  # [z_s z_t]
        with np.errstate(divide="ignore", invalid="ignore"):
            known = step[None] * q_s[:, :, None] / q_t[:, None, :]  # [x z_s z_t]
        known = np.nan_to_num(known, posinf=0.0)
        wrong, z = self.wrong_posterior(), self.noised
        joint = self.data.p[:, None] * self.row_transition(t)
        total = 0.0
        for i in range(self.data.length):
            if self.process.posterior == "mixture":
                model = np.einsum("nx,xsn->ns", wrong[:, i], known[:, :, z[:, i]])
            else:
                top = step[:, z[:, i]].T * (wrong[:, i] @ q_s)
                with np.errstate(invalid="ignore"):
                    model = top / (wrong[:, i] * q_t[:, z[:, i]].T).sum(-1, keepdims=True)
            truth = known[self.data.sequences[:, i]][:, :, z[:, i]]  # [x z_s z]
            with np.errstate(divide="ignore", invalid="ignore"):
                log_ratio = np.where(truth > 0, np.log(truth / model.T[None]), 0.0)
            total += (joint[:, None] * truth * log_ratio).sum()
        return total


def enumerated(
    noisy: NoisedDistribution, objective, t: np.ndarray, denoise, is_last=False
) -> np.ndarray:
    """E over x and z_t of the objective's bound, nats per sequence, at each time."""
    n, m = len(noisy.data.sequences), len(noisy.noised)
    batch = noisy.data.batch(np.repeat(noisy.data.sequences, m, axis=0))
    z = jnp.asarray(np.tile(noisy.noised, (n, 1)), jnp.int32)

    def at(t):
        terms = objective.score_noised(
            batch,
            z_t=z,
            t=jnp.full((n * m, 1), t),
            is_last=jnp.full((n * m, 1), is_last),
            diffusion=Diffusion(
                process=noisy.bound_process, parameterization=noisy.mean, denoise=denoise
            ),
        )
        return terms.bound.sum(-1)

    values = jax.jit(lambda t: jax.lax.map(at, t))(jnp.asarray(t, jnp.float32))
    values = np.asarray(values, np.float64)
    joint = np.array([(noisy.data.p[:, None] * noisy.row_transition(a)).ravel() for a in t])
    return (joint * np.where(joint > 0, values, 0.0)).sum(1)


def nodes(low: float, high: float, n: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on [low, high], in pieces graded towards both ends, by their logarithm."""
    x, w = np.polynomial.legendre.leggauss(n)
    middle = (low + high) / 2
    up = low + (middle - low) * np.concatenate([[0], np.geomspace(1e-4, 1, 8)])
    cuts = np.concatenate([up, (high - (up - low))[::-1][1:]])
    half, centre = np.diff(cuts) / 2, (cuts[1:] + cuts[:-1]) / 2
    return (centre[:, None] + half[:, None] * x).ravel(), (half[:, None] * w).ravel()


def drawn_rows(noisy: NoisedDistribution, objective, repeats: int, rows: int = 4096) -> np.ndarray:
    """Bound minus information, nats per sequence, of `repeats` batches drawn from the distribution.

    The mean information of the rows drawn takes the data's own spread out of the estimate.
    """
    p = jnp.asarray(noisy.data.p, jnp.float32)

    @jax.jit
    def once(key):
        rank = jax.random.choice(stream(key, "data"), len(p), (rows,), p=p)
        batch = noisy.data.batch(np.zeros((rows, noisy.data.length)))
        batch = replace(batch, tokens=jnp.asarray(noisy.data.sequences, jnp.int32)[rank])
        terms = objective(
            stream(key, "loss"),
            batch,
            diffusion=Diffusion(
                process=noisy.bound_process, parameterization=noisy.mean, denoise=noisy.denoise
            ),
        )
        return terms.bound.sum() / rows + jnp.log(p)[rank].mean()

    return np.array([once(key) for key in jax.random.split(jax.random.key(1), repeats)], np.float64)


def sampled_frequencies(noisy: NoisedDistribution, steps: int, rows: int = 10000) -> np.ndarray:
    """Shares of the distribution's sequences among samples of the reverse chain."""
    draw = jax.jit(
        lambda keys: generate(
            keys,
            jnp.zeros((rows, noisy.data.length), jnp.int32),
            jnp.zeros((rows, noisy.data.length), bool),
            sampler=Reverse(steps=steps),
            diffusion=Diffusion(
                process=noisy.bound_process, parameterization=noisy.mean, denoise=noisy.denoise
            ),
        )
    )
    tokens = np.asarray(draw(by_row(jax.random.key(0), jnp.arange(rows))).tokens)
    assert (tokens < noisy.data.symbols).all()
    rank = tokens @ noisy.data.symbols ** np.arange(noisy.data.length)[::-1]
    return np.bincount(rank, minlength=len(noisy.data.p)) / rows
