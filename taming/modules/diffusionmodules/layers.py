"""What encoder and decoder do between convolutions, in few passes over memory where that counts.

Blocks call these functions instead of their layers. With channels last on a GPU, normalization and
swish are one kernel, which adds the bias of the convolution before it, a shortcut is added with a
bias, and so on (see `norm_kernels` and `map_kernels`); elsewhere all are torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taming.modules.diffusionmodules import rows_norm
from taming.modules.gpu_kernels import DTYPES, is_real, runs_triton


def fuses(x: Tensor) -> bool:
    """Whether the kernels take feature maps (B, C, H, W)."""
    if x.ndim != 4 or not is_real(x) or x.dtype not in DTYPES:
        return False
    laid_out = x.is_contiguous(memory_format=torch.channels_last)
    return laid_out and runs_triton(x.device, task="normalization")


def normalized(
    norm: nn.GroupNorm, x: Tensor, bias: Tensor | None = None, *, swish: bool = True
) -> tuple[Tensor, Tensor]:
    """`norm` of `x` (B, C, H, W) plus `bias` (C,), swished, and `x`.

    Use the second output for what goes past the normalization: both gradients are then added where
    one of them is written.
    """
    if not fuses(x) or _is_watched(norm):
        h = _normalized(norm, x if bias is None else x + bias[:, None, None])
        return F.silu(h) if swish else h, x
    from taming.modules.diffusionmodules import fused

    settings = fused.Settings(norm.num_groups, norm.eps, swish, _dtype_of_products(x))
    return fused.normalized(x, bias, norm.weight, norm.bias, settings)


def _normalized(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    if rows_norm.takes(x) and not _is_watched(norm):
        return rows_norm.normalized(norm, x)
    y: Tensor = norm(x)
    return y


def convolved(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """`conv` of `x`, and a bias (C,) that is still to be added, if any: by what comes next."""
    if conv.bias is None or type(conv) is not nn.Conv2d or not fuses(x) or _is_watched(conv):
        return conv(x), None
    y = F.conv2d(
        x,
        conv.weight,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
    )
    return y, conv.bias


def convolution(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv` of `x`, with its bias."""
    y, bias = convolved(conv, x)
    return added(y, bias)


def added(x: Tensor, *terms: Tensor | None) -> Tensor:
    """`x` (B, C, H, W) plus terms, which are of its shape or biases (C,)."""
    biases = [term for term in terms if term is not None and term.ndim == 1]
    others = [term for term in terms if term is not None and term.ndim == 4]
    if biases and len(others) < 2 and all(map(fuses, (x, *others))):
        from taming.modules.diffusionmodules import fused

        return fused.added(x, sum(biases[1:], biases[0]), *others)
    for term in (*(bias[:, None, None] for bias in biases), *others):
        x = x + term
    return x


def doubled(x: Tensor) -> Tensor:
    """Every pixel of `x` (B, C, H, W) four times: (B, C, 2H, 2W)."""
    if fuses(x):
        from taming.modules.diffusionmodules import fused

        return fused.doubled(x)
    if torch.compiler.is_compiling() and x.is_cuda:
        return doubled_by_views(x)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def doubled_by_views(x: Tensor) -> Tensor:
    """`doubled` for compilers, which make slow backward passes of interpolation."""
    rows = x[:, :, :, None, :, None].expand((-1, -1, -1, 2, -1, 2))
    return rows.flatten(4, 5).flatten(2, 3)


def _is_watched(module: nn.Module) -> bool:
    """Whether hooks are to see what a module takes and gives."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _dtype_of_products(x: Tensor) -> torch.dtype:
    """In which the convolution that follows multiplies."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
