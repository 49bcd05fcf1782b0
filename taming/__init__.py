"""Taming Transformers for High-Resolution Image Synthesis (arXiv 2012.09841).

import taming
model = taming.load("vqgan_imagenet_f16_16384")
indices = model.encode_to_indices(images)  # [B, 3, H, W] in [-1, 1] -> [B, H / 16, W / 16]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

__version__ = "1.0.0"


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    base: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    download: bool = True,
    trust: Sequence[str] = (),
    weights: str | None = None,
    parts: str | Sequence[str] = (),
) -> Any:
    """A trained model, in evaluation mode and without gradients.

    First stages (`taming.models.vqgan.VQModel` and its kin) and transformers
    (`taming.models.cond_transformer.Net2NetTransformer`) both have `encode_to_indices` (images
    [B, C, H, W] in [-1, 1] -> indices [B, h, w]) and `decode_indices`, its inverse.

    Args:
        path: a run's folder ("logs/<run>"), a checkpoint, a folder of a hub's model (weights and
            `config.json`), the name of a published model, whose folder is in logs/ (`python
            scripts/download_models.py --list` shows them), or "hf:owner/name[@revision]" of a
            model on the Hugging Face Hub, of which safetensors and configs alone are fetched.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto", which takes the fastest that is there.
        base: YAMLs merged over the run's own, or in their place for a checkpoint without any.
        overrides: changes of the config as "key.path=value", merged last.
        download: fetch a published model that is not in logs/ yet, or a model on the hub that is
            not in its cache.
        trust: packages of your own, or names in them, that the run's config may use as well.
        weights: "raw" or "ema", of files that have both; by default EMA, which is said. "int8" or
            "raw,int8": a transformer computes in int8 on a CPU (docs/training.md).
        parts: load these alone, such as ["encoder"] or "encoder"; the other weights stay random.

    Raises:
        taming.errors.UserError: if there is no such run, checkpoint or published model (the
            nearest name is given), its weights do not fit its config, or its config names what is
            not trusted.
    """
    from taming.model_loading import load_model  # PyTorch takes seconds to import

    return load_model(
        path,
        device=device,
        base=base,
        overrides=overrides,
        download=download,
        trust=trust,
        weights=weights,
        parts=parts,
    )
