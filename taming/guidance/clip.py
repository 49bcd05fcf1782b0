"""CLIP as a guide (arXiv 2103.00020), by the networks of open_clip."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taming.config import did_you_mean
from taming.errors import UserError
from taming.guidance.clip_files import clip_weights
from taming.guidance.encoders import Channels, normalized

EXTRA = "pip install 'taming-transformers[guide]'"
USUAL = "ViT-B-32"
# Beginnings of names in the files of models whose text network has no name of its own.
_TEXT = ("positional_embedding", "text_projection", "token_embedding", "transformer", "ln_final")


class OpenClip:
    """A CLIP model of open_clip's, frozen: images and texts in one space.

    Args:
        model: has `encode_image` and `encode_text`.
        tokenizer: texts -> tokens [N, length].
        mean, std: of its training's images.
    """

    def __init__(
        self, model: Any, tokenizer: Any, size: int, mean: Channels, std: Channels
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.size, self.mean, self.std = tokenizer, size, mean, std
        self.device = next(model.parameters()).device

    def encode_images(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.model.encode_image(normalized(images.to(self.device), self))
        return embeddings

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        embeddings: Tensor = self.model.encode_text(self.tokenizer(list(texts)).to(self.device))
        return embeddings.float()


def load_clip(
    name: str = USUAL, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> OpenClip:
    """A model of open_clip's by its name, `ViT-B-32`, or a folder with its `open_clip_config.json`.

    Args:
        name: `ViT-B-32:laion2b_s34b_b79k` names published weights among several, too.
        weights: a file; by default those of the folder, or the published ones where open_clip, the
            hub or the original's CLIP have left them on this machine. Nothing is downloaded, and
            no code in a file is run.

    Raises:
        UserError: if open_clip is not installed, for an unknown name, and for weights that are not
            there, are damaged or do not fit.
    """
    open_clip = _package()
    architecture, _, tag = name.partition(":")
    folder = Path(name)
    local = folder if (folder / "open_clip_config.json").is_file() else None
    named = f"local-dir:{folder}" if local else architecture
    if local is None and architecture not in open_clip.list_models():
        close = did_you_mean(architecture, open_clip.list_models()) or f"; try {USUAL}"
        raise UserError(f"open_clip has no model '{architecture}'{close}")
    state, facts = clip_weights(open_clip, local or architecture, tag, weights)
    model = _built(open_clip, named, facts)
    _fill(model, state, name)
    size = model.visual.image_size
    size = size[0] if isinstance(size, tuple | list) else int(size)
    preprocessing = facts or model.visual.preprocess_cfg
    mean, std = (_channels(preprocessing[key]) for key in ("mean", "std"))
    return OpenClip(model.to(device), open_clip.get_tokenizer(named), size, mean, std)


def _package() -> Any:
    try:
        return importlib.import_module("open_clip")
    except ImportError:
        raise UserError(f"--clip needs open_clip, which is not installed: {EXTRA}") from None


def _built(open_clip: Any, name: str, facts: Mapping[str, Any]) -> Any:
    """The network, whose weights are random; it reads no file of weights itself."""
    try:
        return open_clip.create_model(
            name,
            load_weights=False,
            pretrained_text=False,
            force_quick_gelu=bool(facts.get("quick_gelu")),
        )
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"open_clip cannot make the model '{name}' ({reason})") from None


def _fill(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    own = model.state_dict()
    apart = "text.positional_embedding" in own  # its text network is a part of its own
    names = {key: f"text.{key}" if apart and key.startswith(_TEXT) else key for key in state}
    known = {names[key]: value for key, value in state.items() if names[key] in own}
    misfits = [
        k for k, v in known.items() if v.shape != own[k].shape and v.numel() != own[k].numel()
    ]
    absent = [key for key in own if key not in known]
    if misfits or absent:
        key = (misfits or absent)[0]
        problem = "has another shape" if misfits else "is missing"
        raise UserError(
            f"the weights do not fit {name}: '{key}' {problem}; name the model that they are of by "
            "--clip"
        )
    model.load_state_dict({key: v.reshape(own[key].shape).float() for key, v in known.items()})


def _channels(values: Any) -> Channels:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
