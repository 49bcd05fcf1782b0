"""Hashes that tell models apart: of their weights, and of what else of a config makes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from taming.checkpoint.names import OPTIONAL, STATISTICS, ends_in, is_of
from taming.config_files import OF_OWN_TRAINING

# Parameters of models that decide about their training alone.
_TRAINING = {*OF_OWN_TRAINING, "lossconfig", "lr_g_factor", "batch_resize_range"}
_TRAINING |= {"compile", "checkpoint_activations", "fused_optimizer", "gradient_checkpointing"}
_TRAINING |= {"reuse_reconstruction", "channels_last", "teacher", "soft_loss_weight"}
_LENGTH = 16  # hexadecimal digits


def model_hashes(
    model: nn.Module, config: Mapping[str, Any] | None, dtype: torch.dtype | None = None
) -> dict[str, str]:
    """`weights`, of what a model computes with, and `config`, of its section without training's.

    With `dtype`, those that the model has with its `transformer` in it.
    """
    section = {key: (config or {}).get(key) for key in ("target", "params")}
    text = json.dumps(_for_use(section), sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    state = model.state_dict()
    if dtype is not None:
        state = {name: _in_dtype(name, tensor, dtype) for name, tensor in state.items()}
    return {"weights": weights_hash(state), "config": digest[:_LENGTH]}


def _in_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    of_it = name.startswith("transformer.") and tensor.is_floating_point()
    return tensor.to(dtype) if of_it else tensor


class WeightsHash(str):
    """A hash of weights, which equals the one that earlier versions computed of them as well.

    These counted in how often codes were taken in training (`former`).
    """

    former: str

    def __new__(cls, own: str, former: str) -> WeightsHash:
        made = super().__new__(cls, own)
        made.former = former
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # also the former
        return str(self), self.former

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True or str.__eq__(self.former, other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def weights_hash(state: Mapping[str, Tensor]) -> WeightsHash:
    """SHA-256 of all tensors, by name, that are there for more than training; its beginning."""
    tensors = {n: t for n, t in sorted(state.items()) if not is_of(n, OPTIONAL)}
    with ThreadPoolExecutor(4) as pool:  # hashing large tensors lets other threads run
        digests = dict(zip(tensors, pool.map(_tensor_hash, tensors.values()), strict=True))
    weights = {name: digest for name, digest in digests.items() if not ends_in(name, STATISTICS)}
    return WeightsHash(_together(weights), _together(digests))


def _together(digests: Mapping[str, str]) -> str:
    whole = hashlib.sha256()
    for name, digest in digests.items():
        whole.update(f"{name} {digest} ".encode())
    return whole.hexdigest()[:_LENGTH]


def _tensor_hash(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _for_use(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {k: _for_use(value) for k, value in node.items() if k not in _TRAINING}
    return [_for_use(value) for value in node] if isinstance(node, list) else node
