"""Names of the original project that live elsewhere here, or that make no sense any more.

Everything else that outside code imports is where it was.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from taming.errors import UserError

# By module: the old name, and where the object is today.
MOVED = {
    "taming.modules.diffusionmodules.model": {
        "get_timestep_embedding": "taming.modules.util.get_timestep_embedding",
    },
    "taming.models.vqgan": {
        "VectorQuantizer": "taming.modules.vqvae.nearest.VectorQuantizer2",
    },
    "taming.data.imagenet": {
        "ImagePaths": "taming.data.base.ImagePaths",
        "download": "taming.util.download",
        "get_preprocessor": "taming.data.transforms.get_preprocessor",
        "give_synsets_from_indices": "taming.data.imagenet_classes.give_synsets_from_indices",
        "imscale": "taming.data.degradation.imscale",
        "retrieve": "taming.util.retrieve",
        "rgba_to_depth": "taming.data.condition_maps.rgba_to_depth",
        "str_to_indices": "taming.data.imagenet_classes.class_indices",
    },
}
# By module: the old name, and what to use instead, as the end of a sentence.
_U_NETS = "networks of diffusion models are no part of this project: take latent-diffusion's own"
GONE: dict[str, dict[str, str]] = {
    "taming.modules.diffusionmodules.model": {
        "Model": _U_NETS,
        "VUNet": _U_NETS,
        "SimpleDecoder": "use Decoder, with num_res_blocks as small as you like",
        "UpsampleDecoder": "use Decoder with more levels in ch_mult",
    },
    "taming.modules.transformer.mingpt": {
        "CodeGPT": "use GPT, whose forward takes `embeddings` before the tokens",
        "DummyGPT": "use a GPT with few layers, or any module of your own",
    },
}


class NameGoneError(UserError, ImportError):
    """A published name that has no counterpart any more; from `import`, too."""


def served_by(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module with names in the tables above.

    It raises `NameGoneError` for what is gone, also from `import`, else AttributeError.
    """

    def find(name: str) -> Any:
        if (home := MOVED.get(module, {}).get(name)) is not None:
            place, _, today = home.rpartition(".")
            return vars(importlib.import_module(place))[today]
        if (advice := GONE.get(module, {}).get(name)) is not None:
            raise NameGoneError(f"there is no {module}.{name} any more; {advice}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find
