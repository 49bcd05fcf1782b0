"""LPIPS, a perceptual distance by calibrated features (arXiv 1801.03924, equation 1)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from taming.devices import multiplying_in, without_autocast
from taming.errors import UserError
from taming.modules.losses.weight_files import WeightFile, find_weights, or_without
from taming.util import get_ckpt_path, lpips_file

__all__ = [
    "LPIPS",
    "NetLinLayer",
    "ScalingLayer",
    "get_ckpt_path",
    "normalize_tensor",
    "spatial_average",
    "vgg16",
]


class Backbone(NamedTuple):
    """A network of torchvision's, whose features are compared behind five of its ReLUs."""

    name: str
    digest: str  # the start of its file's SHA-256: another VGG spoils training silently
    variable: str  # of the environment, which may name its file
    slices: Sequence[Sequence[tuple[int, int, int, int]]]  # (width, kernel, stride, padding)s
    pool: int  # side of the poolings
    pooled: Sequence[int]  # the slices that begin with one, counted from 1


VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG16 = [[(width, 3, 1, 1) for width in widths] for widths in VGG16_WIDTHS]
ALEXNET = [[(64, 11, 4, 2)], [(192, 5, 1, 2)], [(384, 3, 1, 1)], [(256, 3, 1, 1)], [(256, 3, 1, 1)]]
BACKBONES = {  # as `lpips` calls them
    "vgg": Backbone("VGG16", "397923af", "TAMING_VGG16", slices=VGG16, pool=2, pooled=(2, 3, 4, 5)),
    "alex": Backbone("AlexNet", "7be5be79", "TAMING_ALEXNET", ALEXNET, pool=3, pooled=(2, 3)),
}
SMALLEST_IMAGES = {"vgg": 16, "alex": 31}  # pixels a side of which the poolings leave something


def normalize_tensor(x: Tensor, eps: float = 1e-10) -> Tensor:
    """Features [B, C, H, W] divided by their length over C; the gradient is finite at zero."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # (B, 1, H, W)
    return x / (length + eps)


def spatial_average(x: Tensor, keepdim: bool = True) -> Tensor:
    """[B, C, H, W] -> [B, C, 1, 1], or [B, C] without `keepdim`."""
    return x.mean(dim=(2, 3), keepdim=keepdim)


class _EmptyConv(nn.Conv2d):
    """A convolution that starts as zeros, by which missing weights are recognized."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class ScalingLayer(nn.Module):
    """Images in [-1, 1] -> the range of the backbones; one channel becomes three."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.shift) / self.scale


class SlicedBackbone(nn.Module):
    """Images -> the outputs of all slices; modules have the numbers that torchvision's have."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        number, before = 0, 3
        for index, convolutions in enumerate(backbone.slices, start=1):
            slice_ = nn.Sequential()
            if index in backbone.pooled:
                slice_.add_module(str(number), nn.MaxPool2d(backbone.pool, stride=2))
                number += 1
            for width, kernel, stride, padding in convolutions:
                convolution = _EmptyConv(before, width, kernel, stride, padding)
                slice_.add_module(str(number), convolution)
                slice_.add_module(str(number + 1), nn.ReLU(inplace=True))
                number, before = number + 2, width
            self.add_module(f"slice{index}", slice_)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for slice_ in self.children():
            features.append(x := slice_(x))
        return features


class Vgg16Features(NamedTuple):
    """Features [B, C, h, w] behind five of VGG16's ReLUs, by the names of torchvision's layers."""

    relu1_2: Tensor
    relu2_2: Tensor
    relu3_3: Tensor
    relu4_3: Tensor
    relu5_3: Tensor


class vgg16(SlicedBackbone):  # noqa: N801, its published name
    """VGG16 alone, under its published name: images, scaled as `ScalingLayer` does, to features.

    `pretrained` loads torchvision's weights, see `backbone_file`.
    """

    def __init__(self, requires_grad: bool = False, pretrained: bool = True) -> None:
        super().__init__(BACKBONES["vgg"])
        self.N_slices = len(VGG16)
        if pretrained:
            self.load_state_dict(backbone_weights(self, "vgg"))
        self.requires_grad_(requires_grad)

    def forward(self, x: Tensor) -> Vgg16Features:  # type: ignore[override]
        return Vgg16Features(*super().forward(x))


class NetLinLayer(nn.Module):
    """One weight per channel, [B, C, H, W] -> [B, 1, H, W].

    It is named `model.1.weight`, behind a dropout that is never active, or else `model.0.weight`.
    """

    def __init__(self, chn_in: int, chn_out: int = 1, use_dropout: bool = False) -> None:
        super().__init__()
        layer = _EmptyConv(chn_in, chn_out, 1, bias=False)
        self.model = nn.Sequential(OrderedDict({"1" if use_dropout else "0": layer}))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


class LPIPS(nn.Module):
    """Distance of images by calibrated features; frozen, always in eval mode.

    With y_l the features of slice l, of unit length at every position, and calibrated weights w_l,

        d(x, x0) = sum over l of the mean over positions of w_l . (y_l - y0_l)^2.

    The backbone `net` is "vgg" (VGG16, for training) or "alex" (AlexNet, for evaluation). All
    weights are zero until a checkpoint, `prepare` or the first use fills them. An image that needs
    no gradient costs no graph.
    """

    def __init__(self, net: str = "vgg") -> None:
        super().__init__()
        self.backbone = net
        self.scaling_layer = ScalingLayer()
        self.net = SlicedBackbone(BACKBONES[net])
        self.chns = [convolutions[-1][0] for convolutions in BACKBONES[net].slices]
        for index, channels in enumerate(self.chns):
            self.add_module(f"lin{index}", NetLinLayer(channels, use_dropout=True))
        self._known_ready = False
        self.register_load_state_dict_post_hook(_forget_ready)  # type: ignore[no-untyped-call]
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> LPIPS:
        return super().train(False)

    @property
    def ready(self) -> bool:
        """Whether no weight is zero throughout."""
        if not self._known_ready:
            weights = [p for name, p in self.named_parameters() if name.endswith("weight")]
            self._known_ready = all(bool(weight.any()) for weight in weights)
        return self._known_ready

    @torch.no_grad()
    def prepare(self, path: str | None = None) -> None:
        """Load the weights unless a checkpoint has; see `backbone_file`."""
        if self.ready:
            return
        with or_without():
            features = backbone_weights(self.net, self.backbone, path)
            weights = calibrated_layers(self.backbone)
            weights |= {f"net.{name}": tensor for name, tensor in features.items()}
        for name, parameter in self.named_parameters():
            parameter.copy_(weights[name])

    def load_from_pretrained(self, name: str = "vgg_lpips") -> None:
        """The published name of `prepare`; there is but one set of weights.

        Raises:
            UserError: for another name, and as `backbone_file` does.
        """
        if name != "vgg_lpips":
            raise UserError(f"there are no LPIPS weights named {name}; the only ones are vgg_lpips")
        self.prepare()

    @classmethod
    def from_pretrained(cls, name: str = "vgg_lpips") -> Self:
        """An LPIPS with its weights."""
        model = cls()
        model.load_from_pretrained(name)
        return model

    def forward(self, input: Tensor, target: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Distances [B, 1, 1, 1] of images [B, 3 or 1, H, W] in [-1, 1], in fp32.

        `dtype` is what the backbone multiplies in; bfloat16 moves distances of photographs by about
        a hundredth of themselves.

        The first call loads the weights, if nobody has before.

        Raises:
            UserError: for images that are too small, or of other numbers of channels; if there are
                no weights, and they cannot be downloaded.
        """
        self._check(input)
        self.prepare()
        with without_autocast(input.device):
            return self.distance(self.features(input, dtype), self.features(target, dtype))

    def features(self, images: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Each slice's features [B, C, h, w] of images in [-1, 1], of unit length over C.

        For one image that is compared with many; the weights must have been prepared.
        """
        images = self.scaling_layer(images.float())
        with multiplying_in(dtype, images.device):
            features = self.net(images)
        return [normalize_tensor(maps.float()) for maps in features]

    def distance(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Distances [B, 1, 1, 1] of what `features` gave; one of the two may be of one image."""
        distances = [
            # (B, C, h, w) -> (B, 1, h, w) -> (B, 1, 1, 1)
            spatial_average(self.get_submodule(f"lin{index}")((one - other).square()))
            for index, (one, other) in enumerate(zip(first, second, strict=True))
        ]
        return torch.stack(distances).sum(dim=0)

    def _check(self, images: Tensor) -> None:
        _, channels, height, width = images.shape
        smallest = SMALLEST_IMAGES[self.backbone]
        if channels not in (1, 3) or min(height, width) < smallest:
            raise UserError(
                f"the perceptual loss takes 1 or 3 channels and at least {smallest} pixels a "
                f"side, not {channels} channels of {height}x{width}; set perceptual_weight: 0"
            )


def _forget_ready(module: Any, incompatible_keys: Any) -> None:
    module._known_ready = False


def calibrated_layers(net: str = "vgg") -> dict[str, Tensor]:
    """The weights `lin<n>.model.1.weight` of LPIPS 0.1, from the installed `lpips` package."""
    weights: dict[str, Tensor] = torch.load(lpips_file(net), map_location="cpu", weights_only=True)
    return weights


def backbone_weights(
    backbone: SlicedBackbone, net: str, path: str | None = None
) -> dict[str, Tensor]:
    """The weights of a backbone by its names `slice<n>.<m>.{weight,bias}`; see `backbone_file`."""
    weights = {}
    for name, tensor in backbone_features(net, path).items():
        number = name.split(".")[1]
        index = next(i for i, s in enumerate(backbone.children(), 1) if number in s._modules)
        weights[name.replace("features", f"slice{index}")] = tensor
    return weights


def backbone_features(net: str, path: str | None = None) -> dict[str, Tensor]:
    """torchvision's `features.<n>.{weight,bias}` from the file of `backbone_file`."""
    weights = torch.load(backbone_file(net, path), map_location="cpu", weights_only=True)
    return {name: tensor for name, tensor in weights.items() if name.startswith("features.")}


def backbone_file(net: str, path: str | None = None, key: str | None = None) -> Path:
    """The checked file of the backbone "vgg" or "alex".

    That at `path`, which users name by `key` (default: `vgg_path`, `alex_path`), else what
    TAMING_VGG16 or TAMING_ALEXNET names, else the one in torchvision's cache, which a download
    fills.

    Raises:
        UserError: if it is missing or is not that model.
    """
    name, digest, variable, *_ = BACKBONES[net]
    return find_weights(WeightFile(name, digest, variable, key or f"{net}_path", "LPIPS"), path)
