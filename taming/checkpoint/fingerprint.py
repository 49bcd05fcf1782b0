"""Hashes that tell models apart: of their weights, and of what else of a config makes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from taming.checkpoint.names import OPTIONAL

# Parameters of models that decide about their training alone.
_TRAINING = {"ckpt_path", "ignore_keys", "lossconfig", "lr_g_factor", "monitor"}
_TRAINING |= {"batch_resize_range", "scheduler_config", "use_ema"}
_TRAINING |= {"compile", "checkpoint_activations", "fused_optimizer", "gradient_checkpointing"}
_TRAINING |= {"reuse_reconstruction", "channels_last", "teacher", "soft_loss_weight"}
_LENGTH = 16  # hexadecimal digits


def model_hashes(model: nn.Module, config: Mapping[str, Any] | None) -> dict[str, str]:
    """`weights`, of what a model computes with, and `config`, of its section without training's."""
    section = {key: (config or {}).get(key) for key in ("target", "params")}
    text = json.dumps(_for_use(section), sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"weights": weights_hash(model.state_dict()), "config": digest[:_LENGTH]}


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of all tensors, by name, that are there for more than training; its beginning."""
    tensors = {n: t for n, t in sorted(state.items()) if not _for_training(n)}
    with ThreadPoolExecutor(4) as pool:  # hashing large tensors lets other threads run
        digests = list(pool.map(_tensor_hash, tensors.values()))
    whole = hashlib.sha256()
    for name, digest in zip(tensors, digests, strict=True):
        whole.update(f"{name} {digest} ".encode())
    return whole.hexdigest()[:_LENGTH]


def _for_training(name: str) -> bool:
    return any(name.startswith(part) or f".{part}" in name for part in OPTIONAL)


def _tensor_hash(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _for_use(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {k: _for_use(value) for k, value in node.items() if k not in _TRAINING}
    return [_for_use(value) for value in node] if isinstance(node, list) else node
