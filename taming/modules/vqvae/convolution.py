"""Convolutions in full fp32, on which the choice of codes depends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.devices import computing_in
from taming.modules.vqvae.codebook import precise
from taming.modules.vqvae.products import full_fp32_matmul


class PreciseConv2d(nn.Conv2d):
    """A convolution of stride 1 in fp32 at least, also under autocast and where TF32 is allowed."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)

    def _conv_forward(
        self,
        input: Tensor,  # noqa: A002  # as the base names it
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        weight, padding = precise(weight), cast(tuple[int, int], self.padding)
        bias = None if bias is None else precise(bias)
        return fp32_convolution(precise(input).to(weight), weight, bias, padding)


def fp32_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]
) -> Tensor:
    """`conv2d` of x [B, C, h, w]: fp32, and its gradients too, also where TF32 is allowed, as it is
    by default for cuDNN."""
    if torch.compiler.is_exporting():  # graphs of other programs have no such operation
        return F.conv2d(x, weight, bias, padding=tuple(padding))
    result: Tensor = _fp32_convolution(x, weight, bias, padding)
    return result


# An operation of its own, as `taming.modules.vqvae.products` has.
@torch.library.custom_op(
    "taming::fp32_convolution",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, int[] padding) -> Tensor",
)
def _fp32_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]
) -> Tensor:
    with computing_in(torch.float32, x.device), full_fp32_matmul():
        return F.conv2d(x, weight, bias, padding=tuple(padding))


@_fp32_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    return F.conv2d(x, weight, bias, padding=tuple(padding))


def _keep_factors(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.padding = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (x, weight), needed = ctx.saved_tensors, ctx.needs_input_grad
    one, none = [1, 1], [0, 0]
    with computing_in(torch.float32, x.device), full_fp32_matmul():
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            bias_sizes=[len(weight)],
            stride=one,
            padding=list(ctx.padding),
            dilation=one,
            transposed=False,
            output_padding=none,
            groups=1,
            output_mask=list(needed[:3]),
        )
    return of_x, of_weight, of_bias, None


_fp32_convolution.register_autograd(_gradients, setup_context=_keep_factors)
