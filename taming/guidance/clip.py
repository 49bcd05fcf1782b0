"""CLIP as a guide (arXiv 2103.00020), by the networks of open_clip."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taming.config import did_you_mean
from taming.errors import UserError, shorten
from taming.guidance.clip_files import clip_folder, clip_weights
from taming.guidance.encoders import Channels, normalized
from taming.shipped import extra

log = logging.getLogger(__name__)

USUAL = "ViT-B-32"
# What open_clip raises for what its user can mend, as a package that a tokenizer needs.
_OF_OPEN_CLIP = (RuntimeError, ValueError, TypeError, KeyError, OSError, ImportError)
# Beginnings of names in the files of models whose text network has no name of its own.
_TEXT = ("positional_embedding", "text_projection", "token_embedding", "transformer", "ln_final")


class OpenClip:
    """A CLIP model of open_clip's, frozen: images and texts in one space.

    Args:
        model: has `encode_image` and `encode_text`.
        tokenizer: texts -> tokens [N, length].
        mean, std: of its training's images.
        file: that the weights are from, if they are.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        size: int,
        mean: Channels,
        std: Channels,
        *,
        file: Path | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.size, self.mean, self.std = tokenizer, size, mean, std
        self.device, self.file = next(model.parameters()).device, file

    def encode_images(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.model.encode_image(normalized(images.to(self.device), self))
        return embeddings

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts))  # (N, length)
        self._warn_of_cut(texts, tokens)
        embeddings: Tensor = self.model.encode_text(tokens.to(self.device))
        return embeddings.float()

    def _warn_of_cut(self, texts: Sequence[str], tokens: Tensor) -> None:
        """Say which texts have an end that is not read: with more room they go on otherwise."""
        length = tokens.shape[1]
        longer = self.tokenizer(list(texts), context_length=2 * length)[:, :length]
        for text, cut in zip(texts, (longer != tokens).any(1).tolist(), strict=True):
            if cut:
                log.warning(
                    "the end of the prompt %s is not read: this CLIP reads %d tokens, of which a "
                    "word has one or a few; shorten it, or make two prompts of it",
                    shorten(text, 40),
                    length,
                )


def load_clip(
    name: str = USUAL, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> OpenClip:
    """A model of open_clip's by its name, `ViT-B-32`, or a folder with its `open_clip_config.json`.

    Args:
        name: `ViT-B-32:laion2b_s34b_b79k` names published weights among several, too;
            `hf-hub:owner/name` is the folder of the hub's cache.
        weights: a file; by default those of the folder, or the published ones where open_clip, the
            hub or the original's CLIP have left them on this machine. Nothing is downloaded, and
            no code in a file is run.

    Raises:
        UserError: if open_clip is not installed, for an unknown name, and for weights that are not
            there, are damaged or do not fit, or of which it is open what they compute.
    """
    open_clip = _package()
    folder = clip_folder(name)
    architecture, tag = (str(folder), "") if folder else _architecture(open_clip, name)
    state, facts, file = clip_weights(open_clip, folder or architecture, tag, weights)
    named = f"local-dir:{folder}" if folder else architecture
    model = _built(open_clip, named, facts)
    _fill(model, state, name)
    size = model.visual.image_size
    size = size[0] if isinstance(size, tuple | list) else int(size)
    preprocessing = {**model.visual.preprocess_cfg, **facts}
    mean, std = (_channels(preprocessing[key]) for key in ("mean", "std"))
    return OpenClip(model.to(device), _tokenizer(open_clip, named), size, mean, std, file=file)


def _architecture(open_clip: Any, name: str) -> tuple[str, str]:
    """The architecture and the tag, which may be empty, of `ViT-B-32:TAG`."""
    architecture, _, tag = name.partition(":")
    if architecture not in open_clip.list_models():
        close = did_you_mean(architecture, open_clip.list_models()) or f"; try {USUAL}"
        raise UserError(f"open_clip has no model '{architecture}'{close}")
    return architecture, tag


def _package() -> Any:
    try:
        return importlib.import_module("open_clip")
    except ImportError:
        raise UserError(
            f"--clip needs open_clip, which is not installed: {extra('guide')}"
        ) from None


def _built(open_clip: Any, name: str, facts: Mapping[str, Any]) -> Any:
    """The network, whose weights are random; it reads no file of weights itself."""
    try:
        with _nothing_fetched():
            return open_clip.create_model(
                name,
                load_weights=False,
                pretrained_text=False,
                force_quick_gelu=bool(facts.get("quick_gelu")),
            )
    except _OF_OPEN_CLIP as error:
        raise UserError(f"open_clip cannot make the model '{name}' ({_reason(error)})") from None


def _tokenizer(open_clip: Any, name: str) -> Any:
    """What turns texts into tokens, from files on this machine."""
    try:
        with _nothing_fetched():
            return open_clip.get_tokenizer(name)
    except _OF_OPEN_CLIP as error:
        raise UserError(
            f"the tokenizer of '{name}' is not on this machine ({_reason(error)}); install the "
            f"package that it names, fetch its files once, or take a model without, such as {USUAL}"
        ) from None


@contextmanager
def _nothing_fetched() -> Iterator[None]:
    """The hub's library, by which open_clip and its tokenizers look for files, asks its cache.

    That a model's weights are random, as they are until they are filled in, is not said.
    """
    from huggingface_hub import constants

    before, disabled = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    constants.HF_HUB_OFFLINE = True
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        logging.disable(disabled)


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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
