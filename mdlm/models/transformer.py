"""The settings that transformers share; `transformer_block` is what they describe."""

import abc
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from mdlm.models.attention.dispatch import Implementation
from mdlm.models.layers import NormKind, Precision
from mdlm.models.mlp import GATES, MLPKind, hidden_width
from mdlm.models.network import Remat
from mdlm.models.rotary import ROTARY_BASE, Rotary


@dataclass(frozen=True, kw_only=True)
class Transformer(abc.ABC):
    """The fields that transformers add to those of every network. The defaults are the sizes of the
    MDLM paper.

    Args:
        width: width of the residual stream.
        depth: number of blocks.
        heads: number of attention heads; each has `width / heads` entries.
        dropout: probability of dropping outputs of attention and MLP, in calls with a key (the
            paper trains with 0.1).
        norm: "layer" (zero mean, unit variance), "layer_bias" (the same, with a bias), or "rms"
            (unit mean square, arXiv:1910.07467).
        norm_epsilon: added to the variance or mean square (None: 1e-6 for "rms", else 1e-5).
        kv_heads: heads of keys and values, a divisor of `heads`: each serves as many successive
            heads of queries (grouped-query attention, arXiv:2305.13245). 0: as many as `heads`.
        head_width: entries of a head; 0: width / heads.
        rotary_base: the base of the angles of rotary embeddings.
        rotary_fraction: the part of each head's entries that is rotated, the first ones.
        qk_norm: normalise queries and keys of each head to unit mean square (arXiv:2010.04245),
            which keeps attention from saturating: True with one learned scale for both,
            "separate" with one for each.
        qkv_bias: biases of queries, keys and values.
        mlp: "gelu"; "relu2", squared ReLU (arXiv:2109.08668); or the gated "swiglu", "geglu" and
            "glu" (arXiv:2002.05202, with 2/3 of the hidden width, for as many parameters);
            "gelu_erf" and "geglu_erf" have the exact GELU.
        hidden: hidden width of the MLP; 0: by its kind, see `mdlm.models.mlp.hidden_width`.
        use_bias: biases in MLP and head.
        tied: the head multiplies by the embedding table, and has no kernel of its own.
        logit_cap: keeps logits within +-this, by cap tanh(logit / cap) (None: no limit).
        attention: the implementation of attention, see `mdlm.models.attention.dispatch`.
        dtype, remat, logits_chunk: see `mdlm.models.network.Network`.
    """

    is_post_norm: ClassVar[bool] = False
    """Whether a block normalises after its sums, not before attention and MLP."""
    attn_out_bias: ClassVar[bool] = False
    """Whether the matrix after attention has a bias."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    dropout: float = 0.0
    norm: NormKind = "layer"
    norm_epsilon: float | None = None
    kv_heads: int = 0
    head_width: int = 0
    rotary_base: float = ROTARY_BASE
    rotary_fraction: float = 1.0
    qk_norm: bool | Literal["separate"] = False
    qkv_bias: bool = False
    mlp: MLPKind = "gelu"
    hidden: int = 0
    use_bias: bool = True
    tied: bool = False
    logit_cap: float | None = None
    dtype: Precision = "auto"
    attention: Implementation = "auto"
    remat: Remat = "auto"

    def __post_init__(self):
        check_sizes(
            self,
            norm=NormKind,
            mlp=MLPKind,
            dtype=Precision,
            attention=Implementation,
            remat=Remat,
        )
        check_options(self)

    @property
    @abc.abstractmethod
    def modulated(self) -> int:
        """Width of the vector that modulates the blocks; 0 where none does."""

    @property
    def heads_shape(self) -> tuple[int, int, int]:
        """Heads of queries, heads of keys and values, entries of a head."""
        size = self.head_width or self.width // self.heads
        return self.heads, self.kv_heads or self.heads, size

    @property
    def rotary(self) -> Rotary | None:
        return Rotary(int(self.heads_shape[2] * self.rotary_fraction), self.rotary_base)

    @property
    def hidden_width(self) -> int:
        return self.hidden or hidden_width(self.mlp, self.width)

    @property
    def shared(self) -> tuple[int, int]:
        return self.heads, self.hidden_width

    def flops(self, rows: float, length: int, scored: float, columns: int) -> float:
        width = self.width
        heads, kv_heads, size = self.heads_shape
        projections = 2 * width * size * (heads + kv_heads)
        attended = 2 * length * heads * size
        per_token = self.depth * (projections + attended) + self.mlp_multiplications
        per_row = 6 * width * self.modulated * self.depth
        return 2 * (rows * (length * per_token + per_row) + scored * width * columns)

    @property
    def mlp_multiplications(self) -> int:
        """The multiplications of the MLPs of all blocks for one token."""
        matrices = 3 if self.mlp in GATES else 2
        return self.depth * matrices * self.hidden_width * self.width


def check_sizes(config: Any, **kinds: Any) -> None:
    """Raises ValueError if a size that all transformers have is impossible, or a field is not one
    of the values of its `Literal` in `kinds`."""
    for name in ("width", "depth", "heads", "logits_chunk"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if config.width % (2 * config.heads) and not getattr(config, "head_width", 0):
        raise ValueError(
            f"width={config.width}: must be a multiple of 2 * heads = {2 * config.heads}"
            " (rotary embeddings rotate pairs of a head's entries)"
        )
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout={config.dropout}: must be in [0, 1)")
    for name, kind in kinds.items():
        if getattr(config, name) not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise ValueError(f"{name}={getattr(config, name)!r}: must be one of {choices}")


def check_options(config: Transformer) -> None:
    """Raises ValueError if options of a `Transformer` are impossible, alone or together."""
    for name in ("kv_heads", "head_width", "hidden"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name}={getattr(config, name)}: must be at least 0")
    for name in ("norm_epsilon", "logit_cap", "rotary_base"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: must be above 0")
    if config.qk_norm not in (True, False, "separate"):
        raise ValueError(f"qk_norm={config.qk_norm!r}: must be True, False or 'separate'")
    if config.kv_heads and config.heads % config.kv_heads:
        raise ValueError(f"kv_heads={config.kv_heads}: must divide heads={config.heads}")
    size = config.heads_shape[2]
    rotated = size * config.rotary_fraction
    if not 0 < config.rotary_fraction <= 1 or rotated % 2:
        raise ValueError(
            f"rotary_fraction={config.rotary_fraction}: must be in (0, 1] and rotate an even number"
            f" of a head's {size} entries, not {rotated:g}"
        )
