"""What quantizers, stages and overridden methods of users return, before it is gone on with.

Only types and shapes are compared: that takes microseconds, and waits for no device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from taming.errors import UserError
from taming.modules.util import Encoding
from taming.modules.vqvae.codebook import Quantized, Quantizer, SeveralLevels, index_shape
from taming.user_code import name_of, wrong_result


def name_of_method(owner: object, method: str) -> str:
    """`my_models.Own.encode`."""
    return f"{name_of(type(owner))}.{method}"


# ---------------------------------------------------------------------- quantizers


@runtime_checkable
class _Sized(Protocol):
    """What has the sizes of a `CodeTable`."""

    n_e: Any
    e_dim: Any


def check_quantizer(quantizer: Any, key: str) -> None:
    """Refuse (`UserError`) what has no sizes of a codebook, or cannot be called."""
    name = f"{key}: {name_of(type(quantizer))}"
    sizes = (quantizer.n_e, quantizer.e_dim) if isinstance(quantizer, _Sized) else ()
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(
            f"{name} must have attributes n_e and e_dim, the number of its codes and their width"
        )
    unfinished = isinstance(quantizer, nn.Module) and type(quantizer).forward is nn.Module.forward
    if unfinished or not callable(quantizer):
        raise UserError(f"{name} must have a method forward(z), which quantizes latents")


def quantize(quantizer: Quantizer, latents: Tensor) -> Quantized:
    """What a quantizer makes of latents [B, C, h, w].

    Raises:
        UserError: if that is not `Quantized`, with as many rows and columns as the latents.
    """
    shape = (len(latents), quantizer.e_dim, *latents.shape[2:])
    return checked_codes(quantizer(latents), name_of(type(quantizer)), shape, quantizer)


def checked_codes(
    result: Any, name: str, shape: Sequence[int | None], quantizer: object
) -> Quantized:
    """The result of `name` as `Quantized`, with codes of a shape, of which None is any size, and as
    many indices as the quantizer has of such codes.

    Raises:
        UserError: for anything else.
    """
    match result:
        case (Tensor() as codes, Tensor() as loss, (first, second, Tensor() as indices)):
            fits = _fits(codes, shape) and _is_number(loss) and _are_indices(indices)
            of_image = math.prod(index_shape(quantizer, *codes.shape[2:])) if fits else 0
            if fits and indices.numel() == len(codes) * of_image:
                return codes, loss, (first, second, indices)
    sides = ", ".join("?" if side is None else str(side) for side in shape)
    expected = (
        f"(codes, loss, (_, _, indices)), tensors: codes [{sides}] of floats, a loss of one "
        "number, and one integer index for each position of the codes"
        + (" and level" if isinstance(quantizer, SeveralLevels) else "")
    )
    raise wrong_result(name, expected, result)


def _fits(tensor: Tensor, shape: Sequence[int | None]) -> bool:
    sides = zip(tensor.shape, shape, strict=False)
    same = tensor.dim() == len(shape) and all(b is None or a == b for a, b in sides)
    return same and tensor.is_floating_point()


def _is_number(tensor: Tensor) -> bool:
    return tensor.numel() == 1 and tensor.is_floating_point()


def _are_indices(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


# ---------------------------------------------------------------------- first stages


def checked_images(result: Any, name: str, channels: int | None) -> Tensor:
    """What `get_input` returned: images [B, C, H, W], whose channels may be known."""
    if isinstance(result, Tensor) and _fits(result, (None, channels, None, None)):
        return result
    sides = f"[B, {'C' if channels is None else channels}, H, W]"
    raise wrong_result(name, f"images {sides}, a tensor of floats", result)


def checked_reconstruction(result: Any, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the `forward` of a first stage returned: reconstructions and the codebook's loss."""
    match result:
        case (Tensor() as outputs, Tensor() as loss):
            if outputs.is_floating_point() and outputs.dim() == 4 and _is_number(loss):
                return outputs, loss
    expected = f"(reconstructions {list(images.shape)}, codebook loss), a tensor of one number"
    raise wrong_result(name, expected, result)


def nothing_to_train(model: nn.Module) -> UserError:
    """What to raise where no weight of a model is trained."""
    return UserError(
        f"all weights of {name_of(type(model))} are frozen (requires_grad is False): nothing can "
        "be trained"
    )


def loss_of_step(result: Any, name: str) -> Tensor | None:
    """The loss that a `training_step` returned, by itself or as `loss` of a dict, if it has one.

    Raises:
        UserError: for anything else.
    """
    loss = result.get("loss") if isinstance(result, Mapping) else result
    return None if loss is None else required_loss(loss, name)


def required_loss(result: Any, name: str) -> Tensor:
    """The loss that `name` has returned."""
    if isinstance(result, Tensor) and _is_number(result):
        return result
    raise wrong_result(name, "a loss, a tensor of one number", result)


# ---------------------------------------------------------------------- transformers


class _Encodes(Protocol):
    def encode(self, x: Tensor, /) -> Any: ...


def encoding_of(stage: _Encodes, x: Tensor) -> Encoding:
    """What the `encode` of a stage returns for a batch [B, ...]."""
    result, name = stage.encode(x), name_of_method(stage, "encode")
    match result:
        case (Tensor() as codes, loss, (first, second, Tensor() as indices)):
            even = indices.numel() % len(x) == 0 and indices.numel() > 0
            if len(codes) == len(x) and even and _are_indices(indices):
                return codes, loss, (first, second, indices)
    expected = f"(codes, loss, (_, _, indices)), with integer indices of {len(x)} inputs"
    raise wrong_result(name, expected, result)


def checked_entry(result: Any, name: str) -> Tensor:
    """What the `get_input` of a transformer returned: images, labels or tokens of a batch."""
    if isinstance(result, Tensor) and result.dim() > 0:
        return result
    raise wrong_result(name, "images [B, C, H, W], labels [B] or tokens [B, n], a tensor", result)


def checked_tokens(result: Any, name: str, count: int) -> Tensor:
    """The tokens [B, n] of what `encode_to_z` or `encode_to_c` returned for so many inputs."""
    match result:
        case (_, Tensor() as tokens):
            if tokens.dim() == 2 and len(tokens) == count and _are_indices(tokens):
                return tokens.long()
    raise wrong_result(name, f"(codes, indices [{count}, n] of integers)", result)


def check_vocabulary(tokens: Tensor, name: str, size: int) -> None:
    """Refuse (`UserError`) tokens of `name` that a vocabulary of this size does not have.

    A graph of `torch.compile` is not broken for it.
    """
    if torch.compiler.is_compiling():
        return
    low, high = (int(value) for value in tokens.aminmax())
    if low < 0 or high >= size:
        raise UserError(
            f"{name} gives tokens from {low} to {high}, and transformer_config.params.vocab_size "
            f"is {size}: they must be from 0 to {size - 1}"
        )


def checked_inputs(result: Any, name: str) -> tuple[Tensor, Tensor]:
    """What `get_xc` returned: images and conditions."""
    match result:
        case (Tensor() as x, Tensor() as c) if len(x) == len(c):
            return x, c
    raise wrong_result(name, "(images, conditions), two tensors of equal length", result)


def checked_prediction(result: Any, name: str) -> tuple[Tensor, Tensor]:
    """What the `forward` of a transformer returned: logits [B, n, V] and targets [B, n]."""
    match result:
        case (Tensor() as logits, Tensor() as target):
            same = logits.dim() == 3 and logits[..., 0].numel() == target.numel()
            if same and logits.is_floating_point() and _are_indices(target):
                return logits, target
    raise wrong_result(name, "(logits [B, n, vocab_size], target indices [B, n])", result)
