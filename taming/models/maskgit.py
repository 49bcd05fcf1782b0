"""MaskGIT's first stage, as 1d-tokenizer publishes it (arXiv 2202.04200, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from torch import nn

from taming.config import checked_arguments
from taming.config_values import Arguments
from taming.models.magvit2 import WithoutConvolutions
from taming.modules.maskgit import MaskGitDecoder, MaskGitEncoder


class MaskGitVQ(WithoutConvolutions):
    """MaskGIT's VQGAN. Images are in [-1, 1] here; in MaskGIT, and inside the networks, in [0, 1].

    The other arguments are VQModel's; its own quantizer is the published one.

    Args:
        ddconfig: arguments of `MaskGitEncoder` and `MaskGitDecoder`.
    """

    def __init__(
        self,
        ddconfig: Annotated[Mapping[str, Any], Arguments(MaskGitEncoder, MaskGitDecoder)],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(ddconfig, *args, **kwargs)

    def _make_networks(self, ddconfig: Mapping[str, Any]) -> None:
        options = checked_arguments(ddconfig, "ddconfig", MaskGitEncoder, MaskGitDecoder)
        self.encoder: nn.Module = MaskGitEncoder(**options)
        self.decoder: Any = MaskGitDecoder(**options)
        self.image_channels = options["in_channels"]
