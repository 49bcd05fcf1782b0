"""Features of images by an extractor of torch-fidelity, or one that was registered there.

A `FeatureRequest` says which accumulator counts the features of a layer.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taming.checkpoint import is_program, read_checkpoint, read_program
from taming.devices import computing_in, dtype_name, keep_precise
from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.metrics.base import FeatureAccumulator
from taming.evaluation.metrics.extractor_files import (
    INCEPTION,
    OWN_CLASSES,
    default_layers,
    extractor_class,
    weights_file,
)
from taming.evaluation.metrics.resizes import Resize
from taming.evaluation.sources.images import (
    Manifest,
    SourceImage,
    State,
    indices_and_labels,
    joined_states,
    key_of,
    part_of,
    stack_pixels,
)

DTYPES = (torch.float32, torch.float16)

# Parts that stay in float32 with float16: rounding in the first layers, of which all others are
# made, can move the Fréchet distance by three times as much as all that comes later.
PRECISE = {
    INCEPTION: (
        *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
        *("Mixed_5b", "Mixed_5c", "Mixed_5d", "AvgPool"),
    )
}


def _module_hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Extractor:
    """uint8 images to float32 features of some layers.

    Images go in at their own size; torch-fidelity's extractors resize them as TensorFlow 1 did,
    which is part of the published numbers. With a `resize`, they get images of their input's size.

    `compiled` moves Inception's FID by less than 1e-6 of it and KID, a small difference of large
    float32 sums, by 2e-5. `torch.float16` (in Inception behind the stem only, and not in
    normalizations) moves FID by 0.05 %, KID by 0.08 % and IS by 0.01 % at most, if both sets are
    extracted so; bfloat16, which rounds 8 times as coarsely, moved them by 0.2, 0.4 and 0.05 %.
    That was measured on a CPU with 2 x 96 to 2 x 160 images and four sets of random weights whose
    normalizations were fitted to images, as trained ones are, not with Inception's own weights.

    `name` is that in torch-fidelity's registry; without `layers`, all metrics' are returned.
    `weights_hash` is the SHA-256 of the weights file, or of the module's weights without one.
    """

    def __init__(
        self,
        name: str = INCEPTION,
        layers: Iterable[str] | None = None,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
        resize: Resize | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise UserError(f"features are extracted in float32 or float16, not in {dtype}")
        self.name, self.dtype, self.compiled, self.resize = name, dtype, compiled, resize
        self.layers = tuple(layers) if layers else default_layers(name)
        self.device = torch.device(device)
        provided = extractor_class(name).get_provided_features_list()
        for layer in self.layers:
            if layer not in provided:
                raise UserError(
                    f"the extractor {name} has no layer {layer}; it has {', '.join(provided)}"
                )
        path = weights_file(name, weights)
        self.module = _build(name, self.layers, path).to(self.device)
        self.weights_hash = file_hash(path) if path else _module_hash(self.module)
        if dtype != torch.float32:
            keep_precise(self.module, PRECISE.get(name, ()))
        self._forward: Any = torch.compile(self.module) if compiled else self.module

    def with_resize(self, resize: Resize | None) -> Extractor:
        """The same network, in memory once, for images that are resized otherwise."""
        other = copy.copy(self)
        other.resize = resize
        return other

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [B, 3, H, W] -> finite float32 [B, D] on the CPU by layer; else UserError."""
        return self.of_resized(self.resize(images) if self.resize else images)

    @torch.no_grad()
    def of_resized(self, images: Tensor) -> dict[str, Tensor]:
        """`__call__` for images that went through `resize` already."""
        with computing_in(self.dtype, self.device):
            outputs = self._forward(images.contiguous().to(self.device, non_blocking=True))
        features = {}
        for layer, output in zip(self.layers, outputs, strict=True):
            features[layer] = tensor = output.flatten(1).float().cpu()
            if bad := int((~tensor.isfinite()).any(dim=1).sum()):
                raise UserError(
                    f"the extractor {self.name} gives NaN or infinity (layer {layer}, {bad} of "
                    f"{len(tensor)} images); give it other weights, or dtype float32"
                )
        return features

    def describe(self) -> dict[str, Any]:
        """What features of a layer depend on, for results and for the keys of caches."""
        return {
            "extractor": self.name,
            "weights_sha256": self.weights_hash,
            "resize": self.resize.name if self.resize else self._own_resize(),
            "dtype": dtype_name(self.dtype),
            "compiled": self.compiled,
        }

    def _own_resize(self) -> str:
        size = getattr(self.module, "INPUT_IMAGE_SIZE", getattr(self.module, "resolution", None))
        if _is_torch_fidelitys(self.name) and size:
            return f"tf1-bilinear {size}"
        return str(getattr(self.module, "resize", "by the extractor"))


def _build(name: str, layers: Sequence[str], path: Path | None) -> nn.Module:
    kind = extractor_class(name)

    def create(path: Path | None) -> nn.Module:
        options = {"feature_extractor_weights_path": str(path) if path else None, "verbose": False}
        module: nn.Module = kind(name, list(layers), **options)
        return module.requires_grad_(False).eval()

    try:
        if path is None or not _is_torch_fidelitys(name):
            return create(path)
        with tempfile.TemporaryDirectory() as folder:
            # torch-fidelity opens any pickle, which could run code: it gets what ours has read, of
            # programs of TorchScript, as CLIP's files are, the tensors alone.
            plain = Path(folder) / "plain.pth"
            runs = is_program(path)
            tensors = read_program(path) if runs else read_checkpoint(path)["state_dict"]
            torch.save(tensors, plain)
            return create(plain)
    except (RuntimeError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = _first_sentence(error)
        if path:
            raise UserError(f"{path} does not fit the extractor {name} ({reason})") from error
        if not _is_torch_fidelitys(name):
            raise
        raise UserError(
            f"the extractor {name} could not be downloaded into {torch.hub.get_dir()} ({reason}); "
            "copy that folder from a machine on which it was"
        ) from error


def _first_sentence(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    line = (str(error) or type(error).__name__).splitlines()[0]
    return "it has other tensors" if line.endswith(":") else line.split(". ")[0]


def _is_torch_fidelitys(name: str) -> bool:
    kind: type = extractor_class(name)
    return name in OWN_CLASSES or kind.__module__.startswith("torch_fidelity.")


@dataclass(frozen=True)
class Extraction:
    """Layers that are wanted of a network, for images that are resized so."""

    name: str  # the network's, in torch-fidelity's registry
    layers: tuple[str, ...]
    weights: Path | None = None
    resize: Resize | None = None

    def shares_network(self, other: Extraction) -> bool:
        return (self.name, self.weights) == (other.name, other.weights)


def make_extractors(wanted: Sequence[Extraction], **options: Any) -> list[Extractor]:
    """Extractors for `wanted`, in order: each network once, with all layers wanted of it.

    Those of one network and one resize are the same object, so that it is run once for all of them.
    """
    made: dict[tuple[str, Path | None, Resize | None], Extractor] = {}
    for one in wanted:
        alike = [other for other in wanted if one.shares_network(other)]
        first = made.get((one.name, one.weights, alike[0].resize))
        if first is None:
            layers = dict.fromkeys(layer for other in alike for layer in other.layers)
            first = Extractor(one.name, layers, one.weights, resize=one.resize, **options)
        made.setdefault((one.name, one.weights, one.resize), first.with_resize(one.resize))
    return [made[one.name, one.weights, one.resize] for one in wanted]


Layers = Mapping[str, Tensor]


@dataclass(frozen=True)
class FeatureRequest:
    """An accumulator of one layer's features that is wanted of a set.

    Requests that are equal are fulfilled once, for whatever number of metrics.
    """

    accumulator: type[FeatureAccumulator]  # a class of feature accumulators
    extractor: Extractor
    layer: str
    options: tuple[tuple[str, int], ...] = ()  # of the class, by name

    def key(self, content_key: str) -> str:
        """Hash of all that decides the accumulator's state."""
        extractor = self.extractor.describe()
        name = f"{self.accumulator.__module__}.{self.accumulator.__qualname__}"
        setting = [name, self.layer, self.options]
        return key_of(content=content_key, extractor=extractor, setting=setting)

    def make(self, images: int) -> FeatureAccumulator:
        """The empty accumulator for a set of `images` images."""
        size = {"images": images} if self.accumulator.of_sized_sets else {}
        return self.accumulator(**size, **dict(self.options))

    def update(
        self, accumulator: FeatureAccumulator, images: Sequence[SourceImage], features: Layers
    ) -> None:
        """Count `images`, whose features are given per layer."""
        indices, labels = indices_and_labels(images)
        accumulator.update(indices, features[self.layer], labels)


Requests = Sequence[FeatureRequest]


class FeatureAccumulators:
    """The accumulators of several requests: an `ImageAccumulator` that extracts features once."""

    def __init__(self, requests: Requests, images: int) -> None:
        self.parts = {request: request.make(images) for request in requests}

    def update(self, images: Sequence[SourceImage]) -> None:
        pixels = stack_pixels(images)
        extractors = dict.fromkeys(request.extractor for request in self.parts)
        resizes = dict.fromkeys(extractor.resize for extractor in extractors)
        resized = {resize: resize(pixels) if resize else pixels for resize in resizes}
        features = {each: each.of_resized(resized[each.resize]) for each in extractors}
        for request, accumulator in self.parts.items():
            request.update(accumulator, images, features[request.extractor])

    def state_dict(self) -> State:
        parts = enumerate(self.parts.values())
        return joined_states({str(number): part.state_dict() for number, part in parts})

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        for number, part in enumerate(self.parts.values()):
            part.merge_state(part_of(state, str(number)))


@dataclass(frozen=True)
class SetFeatures:
    """Which images a set has, and what was counted of their features, by request."""

    manifest: Manifest
    parts: dict[FeatureRequest, FeatureAccumulator] = field(default_factory=dict)
