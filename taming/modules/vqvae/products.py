"""Products of matrices in full fp32, on which the choice between near codes depends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def full_fp32_matmul() -> Iterator[None]:
    """Keep TF32 and bf16 out: their error is larger than the gap between near codes."""
    with ExitStack() as at_exit:
        try:
            precision = torch.get_float32_matmul_precision()
            if precision != "highest":
                at_exit.callback(torch.set_float32_matmul_precision, precision)
                torch.set_float32_matmul_precision("highest")
        except RuntimeError:  # set by the newer switches, which do not mix with this one
            backend = torch.backends.cuda.matmul
            at_exit.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
            backend.fp32_precision = "ieee"
        yield


def fp32_products(rows: Tensor, others: Tensor) -> Tensor:
    """Each of `rows` [N, D] with each of `others` [K, D] -> [N, K]: fp32, and its gradients too,
    also where TF32 is allowed."""
    if torch.compiler.is_exporting():  # graphs of other programs have no such operation
        return rows @ others.t()
    products: Tensor = _fp32_products(rows, others)
    return products


@torch.library.custom_op(
    "taming::fp32_products", mutates_args=(), schema="(Tensor rows, Tensor others) -> Tensor"
)
def _fp32_products(rows: Tensor, others: Tensor) -> Tensor:
    with full_fp32_matmul():
        return rows @ others.t()


@_fp32_products.register_fake
def _(rows: Tensor, others: Tensor) -> Tensor:
    return rows @ others.t()


def _keep_factors(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    (rows, others), needed = ctx.saved_tensors, ctx.needs_input_grad
    return (
        fp32_products(grad, others.t()) if needed[0] else None,  # (N, K) @ (K, D)
        fp32_products(grad.t(), rows.t()) if needed[1] else None,  # (K, N) @ (N, D)
    )


_fp32_products.register_autograd(_gradients, setup_context=_keep_factors)
