"""Pictures of scenes: what the tokens that a model is conditioned on say, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def scene_pictures(dataset: Any, batch: Any, key: str, size: tuple[int, int]) -> dict[str, Tensor]:
    """`conditioning`, [B, 3, H, W] in [-1, 1]: labelled boxes or points.

    Nothing where the entry `key` of the batch is no scene, that is, where `dataset` has no
    `conditional_builders` of that name.
    """
    dataset = getattr(dataset, "data", dataset)  # inside a WrappedDataset
    builder = getattr(dataset, "conditional_builders", {}).get(key)
    if builder is None or not isinstance(batch, Mapping) or key not in batch:
        return {}
    height, width = size
    name = dataset.get_textual_label_for_category_no
    line = max(1, min(size) // 100)
    plots = [builder.plot(tokens.cpu(), name, (width, height), line) for tokens in batch[key]]
    return {"conditioning": torch.stack(plots)}
