"""What later autoregressive transformers do differently from GPT-2; all of it is off by default.

`GPT` and its decoders use the same functions, so that their numbers agree. In comments, B is the
batch, T the length, C the width, hs the size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taming.config_values import Count, CountOrZero, Length
from taming.errors import UserError

NormKind = Literal["layer", "rms"]
MlpKind = Literal["gelu", "swiglu"]
AttentionKind = Literal["causal", "full"]


class VariantOptions(TypedDict, total=False):
    """Parameters of a GPT that make another network of it."""

    rope_grid: Annotated[Sequence[Count], Length(2, 2)] | None
    rope_condition: bool
    qk_norm: bool
    norm: NormKind
    mlp: MlpKind
    adaln_classes: CountOrZero
    target_positions: bool
    attention: AttentionKind


@dataclass(eq=False)
class Variants:
    """The options' meanings; by default a GPT is that of the published models.

    Attributes:
        rope_grid: [rows, columns] of the image's codes, of which positions turn queries and keys
            (2D RoPE, see `rotations`) instead of being learned. The tokens before them, of which
            there are block_size + 1 - rows * columns, are the condition's, at learned positions.
        rope_condition: the condition is a map of as many codes as the image: each turns as the
            image's code at the same place, beside its learned position.
        qk_norm: normalize the queries and keys of each head, see `normalize_heads`.
        norm: "layer" or "rms", for RMSNorm (arXiv 1910.07467).
        mlp: "gelu" or "swiglu", a gated perceptron with about as many weights (arXiv 2002.05202).
        adaln_classes: the number of classes. The first token, a class, then acts through scales,
            shifts and gates of every block (adaLN-Zero, arXiv 2212.09748), and not as a token: a
            learned start stands in its place. Tokens that are no class, such as the null token of
            `cond_drop`, are one more class. 0: classes are tokens.
        target_positions: every token also has a learned vector of the position that it is to
            predict (arXiv 2411.00776, section 3.2), so that codes can be read in any order; see
            `orders`. The last code is then read as well, unless it comes last.
        attention: "causal", or "full": every position sees all others, and predicts itself, as
            masked training has it (arXiv 2202.04200); the condition and all codes fit block_size.
    """

    rope_grid: Sequence[int] | None = None
    rope_condition: bool = False
    qk_norm: bool = False
    norm: NormKind = "layer"
    mlp: MlpKind = "gelu"
    adaln_classes: int = 0
    target_positions: bool = False
    attention: AttentionKind = "causal"


class GPTConfig(Variants):
    """Sizes, dropouts and variants of a GPT and its blocks; other names become attributes, too."""

    n_layer: int = 12
    n_head: int = 8
    n_embd: int = 256
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    n_unmasked: int = 0

    def __init__(self, vocab_size: int, block_size: int, **others: Any) -> None:
        self.vocab_size, self.block_size = vocab_size, block_size
        vars(self).update(others)

    @property
    def see_all(self) -> int:
        """So many positions at the beginning see each other, whatever their order."""
        return self.block_size if self.attention == "full" else self.n_unmasked

    @property
    def whole(self) -> int:
        """Positions of the condition and of all codes, of which a raster order never reads the
        last."""
        return self.block_size + (self.attention == "causal")

    @property
    def positions(self) -> int:
        """Positions that are read in some order."""
        return self.whole if self.target_positions else self.block_size


EPSILON = 1e-5  # of every normalization
_ROPE_BASE = 10_000.0
_WIDTH_STEP = 64  # the hidden width of SwiGLU is a multiple of it, as matrix kernels like


def make_norm(kind: NormKind, width: int, affine: bool = True) -> nn.Module:
    """LayerNorm, or RMSNorm (arXiv 1910.07467), which neither centers nor shifts."""
    if kind == "rms":
        return nn.RMSNorm(width, EPSILON, elementwise_affine=affine)
    return nn.LayerNorm(width, EPSILON, elementwise_affine=affine)


def normalize(x: Tensor, parameters: Sequence[Tensor], kind: NormKind) -> Tensor:
    """What a module of `make_norm` computes of `x` (..., C); its parameters may be none."""
    weight, bias = (*parameters, None, None)[:2]
    if kind == "rms":
        return F.rms_norm(x, x.shape[-1:], weight, EPSILON)
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPSILON)


def normalize_heads(x: Tensor, gain: Tensor) -> Tensor:
    """Queries or keys `x` (..., hs) of length sqrt(hs), times the learned `gain` (hs,).

    Logits of attention can then not grow with the weights (arXiv 2010.04245), which in half
    precision ends training. In the precision of `gain`: autocast makes only `x` of less.
    """
    return F.rms_norm(x.to(gain.dtype), x.shape[-1:], gain, EPSILON).to(x.dtype)


# ---------------------------------------------------------------------- SwiGLU


class SwiGLU(nn.Module):
    """Gate and value (..., 2h) side by side -> silu(gate) * value (..., h) (arXiv 2002.05202)."""

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x)


def swiglu(x: Tensor) -> Tensor:
    """See `SwiGLU`."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def hidden_width(kind: MlpKind, width: int) -> int:
    """Of the perceptron: 4 C, or the 8/3 C with which SwiGLU's three matrices have as many weights,
    rounded up."""
    if kind == "gelu":
        return 4 * width
    return _WIDTH_STEP * -(-8 * width // (3 * _WIDTH_STEP))


# ---------------------------------------------------------------------- RoPE


def rope_prefix(whole: int, grid: Sequence[int]) -> int:
    """The condition's tokens before an image, of a `whole` sequence, see `GPTConfig`."""
    return whole - grid[0] * grid[1]


def rotations(
    grid: Sequence[int],
    whole: int,
    size: int,
    device: torch.device | None = None,
    condition: bool = False,
) -> Tensor:
    """Cosines and sines by which position t turns queries and keys: float32 (2, whole, hs / 2).

    A pair of a head's numbers turns by an angle that grows with the position (arXiv 2104.09864): in
    the first half of the pairs with the row, in the second with the column. Attention then depends
    on how far apart two codes are in the image. Rows and columns count from 1, and tokens of the
    condition are at 0, where nothing turns: they have learned positions instead. For a grid of
    2 x 3 after one such token:

        token    c  0  1  2  3  4  5
        row      0  1  1  1  2  2  2
        column   0  1  2  3  1  2  3

    With `condition`, tokens of the condition are codes of a map, and turn as those of the image.
    """
    prefix = rope_prefix(whole, grid)
    place = torch.arange(whole, device=device) - prefix  # in the image
    of_image = place >= 0
    if condition:
        place, of_image = torch.where(of_image, place, place + prefix), of_image | True
    row, column = (place // grid[1] + 1) * of_image, (place % grid[1] + 1) * of_image
    quarter = size // 4
    speed = _ROPE_BASE ** -(torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    angles = torch.cat((row[:, None] * speed, column[:, None] * speed), dim=-1)  # (whole, hs / 2)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """`x` (..., hs) turned by `rotation` (2, ..., hs / 2); number i and i + hs / 2 are a pair."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = rotation
    # float32, or more: a rounded sine would turn by another angle.
    turned = torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return turned.to(x.dtype)


# ---------------------------------------------------------------------- AdaLN


class ClassEmbedding(nn.Embedding):
    """Vectors of classes, and behind them one for all other tokens, such as the null token."""

    def forward(self, tokens: Tensor) -> Tensor:
        return embed_classes(tokens, self.weight)


def embed_classes(tokens: Tensor, vectors: Tensor) -> Tensor:
    """Class tokens (B,), `vectors` (classes + 1, C) -> what `modulation` layers read, (B, C)."""
    return F.silu(F.embedding(tokens.clamp(max=len(vectors) - 1), vectors))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalized `x`, scaled and shifted as a class has it (arXiv 2212.09748, section 3.2)."""
    return x * (1 + scale) + shift


# ---------------------------------------------------------------------- refusals


def check_variants(config: GPTConfig) -> None:
    """Raise `UserError` if options of a `GPTConfig` contradict its sizes."""
    size, grid = config.n_embd // config.n_head, config.rope_grid
    _check_reading(config)
    if grid is None:
        if config.rope_condition:
            raise UserError("GPT: rope_condition goes with rope_grid, which is not set")
        return
    if size % 4:
        raise UserError(
            f"GPT: rope_grid needs heads of a multiple of 4, but n_embd / n_head is {size}"
        )
    codes, unread = grid[0] * grid[1], config.whole - config.block_size
    if rope_prefix(config.whole, grid) < 1:
        raise UserError(
            f"GPT: block_size is {config.block_size}, too small for a token of the condition and "
            f"rope_grid: {list(grid)}; make it at least {codes + 1 - unread}"
        )
    if config.rope_condition and rope_prefix(config.whole, grid) != codes:
        raise UserError(
            f"GPT: rope_condition is for maps of as many codes as the image, {codes}; "
            f"make block_size {2 * codes - unread}, not {config.block_size}"
        )


def _check_reading(config: GPTConfig) -> None:
    """Of options that say what sees what, in which order."""
    if config.attention not in ("causal", "full"):
        raise UserError(f"GPT: attention is causal or full, not {config.attention}")
    others = {"n_unmasked": config.n_unmasked, "target_positions": config.target_positions}
    for option, value in others.items() if config.attention == "full" else ():
        if value:
            raise UserError(
                f"GPT: {option} is {value}, but with attention: full every position sees all "
                "others and predicts itself; leave one of the two out"
            )
    if config.target_positions and config.n_unmasked:
        raise UserError(
            f"GPT: n_unmasked is {config.n_unmasked}, but with target_positions the condition must "
            "not see what its last token is to predict; leave n_unmasked out"
        )


def check_causal(config: GPTConfig) -> None:
    """Refuse (`UserError`) one token after the other where every position sees all others."""
    if config.attention == "full":
        raise UserError(
            "a GPT with attention: full fills in masked codes, and samples no token after the "
            "other; use taming.sampling, or masked.fill_in"
        )


def check_layout(
    config: GPTConfig, condition: int | None, shape: Sequence[int] | None = None
) -> None:
    """Refuse sequences that are laid out otherwise than a GPT with these options reads them.

    Args:
        condition: tokens of the condition, where they are known.
        shape: (rows, columns) of the image's codes, where they are known.

    Raises:
        UserError: for another grid or condition than those of `rope_grid`, and conditions that are
            no single class for `adaln_classes`.
    """
    if config.adaln_classes and condition not in (None, 1):
        raise UserError(
            f"the condition has {condition} tokens, but the transformer has adaln_classes: "
            f"{config.adaln_classes}, and reads one class; leave adaln_classes out"
        )
    if (grid := config.rope_grid) is None:
        return
    if shape is not None and tuple(shape) != tuple(grid):
        raise UserError(
            f"the image, or the window on it, is {shape[0]} x {shape[1]} codes, but the "
            f"transformer's rope_grid is {list(grid)}; train on images of these sizes, and sample "
            "none that are smaller"
        )
    prefix = rope_prefix(config.whole, grid)
    if condition is not None and condition != prefix:
        raise UserError(
            f"the condition has {condition} tokens, but block_size: {config.block_size} and "
            f"rope_grid: {list(grid)} make it {prefix}; with {condition}, block_size is "
            f"{condition + grid[0] * grid[1] - config.whole + config.block_size}"
        )


def check_whole(config: GPTConfig, length: int) -> None:
    """Refuse sequences beyond `block_size` of which the beginning would be cut off, and which need
    it: the class, or the position in the image."""
    if length > config.block_size and (config.adaln_classes or config.rope_grid is not None):
        option = "adaln_classes" if config.adaln_classes else "rope_grid"
        raise UserError(
            f"a sequence of {length} tokens is longer than block_size: {config.block_size}, and "
            f"with {option} its beginning cannot be left out; sample fewer steps"
        )
