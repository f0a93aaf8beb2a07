"""MDLM's network, loss, optimizer, EMA and sampler in PyTorch, to compare with.

Written from the paper (arXiv:2406.07524) and from this repository's own equations; it computes
the same as `mdlm.models.dit.DiT`, `Nelbo(reconstruction=False)` on a log-linear schedule, `AdamW`
and the EMA, on the same parameters. It is as fast as PyTorch allows without changing the results:
attention by `scaled_dot_product_attention`, fused AdamW, one call for the whole EMA, and, on
request, forward and backward pass through `torch.compile`.

Parameters have the names of the published code (see `mdlm.interop.mdlm_torch`).
"""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdlm.interop.mdlm_torch import to_reference
from mdlm.models.dit import DiT
from mdlm.models.network import Params
from mdlm.optim import AdamW

MLP_RATIO, FREQUENCIES = 4, 128
T_MIN = 1e-3
EPS = 1e-3
"""Smallest time of training, and 1 - (mask probability at t = 1) of the log-linear schedule."""


class Norm(nn.Module):
    """LayerNorm with a scale and no bias."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, None, 1e-5)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


class Block(nn.Module):
    """Attention and MLP with adaptive norms, as in `mdlm.models.transformer.Block`."""

    def __init__(self, config: DiT):
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.norm1 = Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = Norm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(MLP_RATIO * width, width),
        )
        self.adaLN_modulation = nn.Linear(config.cond_dim, 6 * width)

    def forward(self, x: Tensor, cond: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        vectors = self.adaLN_modulation(cond)[:, None].chunk(6, dim=-1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = vectors

        y = modulate(self.norm1(x), shift_1, scale_1)
        qkv = self.attn_qkv(y).unflatten(-1, (3, self.heads, -1))
        first, second = qkv[:, :, :2].chunk(2, dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        q, k = turned.transpose(1, 3).unbind(2)
        v = qkv[:, :, 2].transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = torch.addcmul(x, gate_1, F.dropout(self.attn_out(y), self.dropout, self.training))

        y = self.mlp(modulate(self.norm2(x), shift_2, scale_2))
        return torch.addcmul(x, gate_2, F.dropout(y, self.dropout, self.training))


class Embedding(nn.Module):
    def __init__(self, columns: int, width: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(columns, width))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding)


class NoiseLevel(nn.Module):
    """The conditioning of the blocks: the embedding of noise level 0, as in the paper's runs."""

    sinusoid_of_zero: Tensor

    def __init__(self, cond_dim: int):
        super().__init__()
        layers = (nn.Linear(2 * FREQUENCIES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))
        self.mlp = nn.Sequential(*layers)
        zero = torch.cat([torch.ones(FREQUENCIES), torch.zeros(FREQUENCIES)])
        self.register_buffer("sinusoid_of_zero", zero, persistent=False)

    def forward(self, rows: int) -> Tensor:
        return F.silu(self.mlp(self.sinusoid_of_zero.expand(rows, -1)))


class Rotary(nn.Module):
    inv_freq: Tensor

    def __init__(self, config: DiT):
        super().__init__()
        self.register_buffer("inv_freq", torch.empty(config.width // config.heads // 2))

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of RoPE, `[1 l 1 1 half]`, for `[b l (q k) h half]`."""
        angles = torch.outer(torch.arange(length, dtype=torch.float32), self.inv_freq)
        angles = angles[None, :, None, None]
        return angles.cos(), angles.sin()


class Output(nn.Module):
    never: Tensor

    def __init__(self, config: DiT, columns: int, mask_id: int):
        super().__init__()
        self.norm_final = Norm(config.width)
        self.linear = nn.Linear(config.width, columns)
        self.adaLN_modulation = nn.Linear(config.cond_dim, 2 * config.width)
        # The mask is never predicted. Set in the bias, this needs no extra pass over the
        # logits.
        never = torch.zeros(columns)
        never[mask_id] = -math.inf
        self.register_buffer("never", never, persistent=False)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(cond)[:, None].chunk(2, dim=-1)
        x = modulate(self.norm_final(x), shift, scale)
        return F.linear(x, self.linear.weight, self.linear.bias + self.never)


class Network(nn.Module):
    """Tokens `[b l]` to logits `[b l v]`, -inf at the mask."""

    def __init__(self, config: DiT, columns: int, mask_id: int):
        super().__init__()
        self.mask_id = mask_id
        self.vocab_embed = Embedding(columns, config.width)
        self.sigma_map = NoiseLevel(config.cond_dim)
        self.rotary_emb = Rotary(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.output_layer = Output(config, columns, mask_id)

    def forward(self, tokens: Tensor) -> Tensor:
        cond = self.sigma_map(tokens.shape[0])
        cos, sin = self.rotary_emb(tokens.shape[1])
        x = self.vocab_embed(tokens)
        for block in self.blocks:
            x = block(x, cond, cos, sin)
        return self.output_layer(x, cond)

    def loss(self, x_0: Tensor, t: Tensor, is_masked: Tensor) -> Tensor:
        """Mean over all tokens of 1/t times the cross-entropy of the masked ones, nats.

        As published, logits and their softmax are made at every position.
        """
        logits = self(torch.where(is_masked, self.mask_id, x_0))
        nll = F.cross_entropy(logits.flatten(0, 1), x_0.flatten(), reduction="none")
        return (nll.view_as(x_0) * (is_masked / t[:, None])).mean()


def load(config: DiT, params: Params, columns: int, mask_id: int) -> Network:
    """The network with our parameters (the tree under "network"), on all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    network = Network(config, columns, mask_id)
    tensors = to_reference(params, config)
    network.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
    return network


def draw(x_0: Tensor) -> tuple[Tensor, Tensor]:
    """Low-discrepancy times `[b]` and the masks drawn at these times, `[b l]`."""
    rows = x_0.shape[0]
    u = (torch.rand(rows) + torch.arange(rows)) / rows
    t = T_MIN + (1 - T_MIN) * u
    return t, torch.rand(x_0.shape) < (1 - EPS) * t[:, None]


class Training:
    """A training run: `step` after `step` on batches of clean tokens."""

    def __init__(self, network: Network, optimizer: AdamW, ema_decay: float, *, compiled: bool):
        self.network = network.train()
        self.parameters: list[Tensor] = list(network.parameters())
        self.rate = self._rate(optimizer)
        self.clip_norm, self.ema_decay, self.steps = optimizer.clip_norm, ema_decay, 0
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optimizer.learning_rate,
            betas=(optimizer.b1, optimizer.b2),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        self.ema = [p.detach().clone() for p in self.parameters]
        # The backward pass is compiled together with its forward pass.
        self.loss = torch.compile(network.loss, fullgraph=True) if compiled else network.loss

    @staticmethod
    def _rate(optimizer: AdamW) -> Callable[[int], float]:
        if optimizer.schedule != "constant":
            raise ValueError(f"the PyTorch reference has no schedule {optimizer.schedule!r}")
        warmup = max(1, optimizer.warmup_steps)
        return lambda step: optimizer.learning_rate * min(1.0, step / warmup)

    def step(self, x_0: Tensor) -> Tensor:
        """Takes one step on freshly drawn noise; returns its loss."""
        return self.update(x_0, *draw(x_0))

    def update(self, x_0: Tensor, t: Tensor, is_masked: Tensor) -> Tensor:
        """Takes one step on given noise."""
        loss = self.loss(x_0, t, is_masked)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.param_groups[0]["lr"] = self.rate(self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        decay = min(self.ema_decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            lerp: Any = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
            lerp(self.ema, self.parameters, 1 - decay)
        return loss.detach()


@torch.no_grad()
def generate(
    logits: Callable[[Tensor], Tensor],
    mask_id: int,
    batch: int,
    length: int,
    steps: int,
    known: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Tokens `[b l]` by the published cached ancestral sampler ("ddpm_cache"), and network calls.
    The rows begin with the tokens `known`, `[b n]`.

    Each step draws every masked position from the joint distribution over tokens and "still
    masked", by exponential races. The network is not conditioned on the time, so its output is
    reused until a token changes. Positions masked at the end get their likeliest token.
    """
    tokens = torch.full((batch, length), mask_id)
    if known is not None:
        tokens[:, : known.shape[1]] = known
    times = np.linspace(1.0, 1e-5, steps + 1)
    p_0, calls = None, 0
    for t, s in zip(times[:-1], times[1:], strict=True):
        if p_0 is None:
            p_0, calls = logits(tokens).softmax(-1), calls + 1
        joint = p_0 * float(t - s)
        joint[..., mask_id] = float(s)
        race = -(torch.rand_like(joint) + 1e-10).log_()
        drawn = joint.div_(race).argmax(-1)
        after = torch.where(tokens == mask_id, drawn, tokens)
        if not torch.equal(after, tokens):
            p_0 = None
        tokens = after
    likeliest = logits(tokens).argmax(-1)
    return torch.where(tokens == mask_id, likeliest, tokens), calls + 1


def generate_long(
    logits: Callable[[Tensor], Tensor],
    mask_id: int,
    batch: int,
    length: int,
    steps: int,
    *,
    total: int,
    stride: int,
) -> tuple[Tensor, int]:
    """Tokens `[b total]` and network calls. The text is written in windows of `length`, each of
    which begins with the end of the text so far and adds `stride` tokens."""
    text, calls = generate(logits, mask_id, batch, length, steps)
    while text.shape[1] < total:
        new = min(stride, total - text.shape[1])
        known = text[:, text.shape[1] - (length - new) :]
        window, more = generate(logits, mask_id, batch, length, steps, known)
        text, calls = torch.cat([text, window[:, -new:]], dim=1), calls + more
    return text, calls
