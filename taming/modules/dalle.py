"""Networks of DALL-E's discrete VAE (arXiv 2102.12092, appendix A.1), and its range of values."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn

Sizes = tuple[int, int, int, int]  # of a block's convolutions
EPS = 0.1  # keeps the logit-Laplace likelihood finite (appendix A.3)


def map_pixels(x: Tensor) -> Tensor:
    """[-1, 1] -> [eps, 1 - eps], the range of the encoder's input and of the decoder's targets."""
    return (1 - 2 * EPS) * (x + 1) / 2 + EPS


def unmap_pixels(x: Tensor) -> Tensor:
    """The inverse of `map_pixels`; what lies outside the range is cut to [-1, 1]."""
    return ((x - EPS) / (1 - 2 * EPS)).clamp(0, 1) * 2 - 1


def _conv(n_in: int, n_out: int, size: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, size, padding=(size - 1) // 2)


class ResidualBlock(nn.Module):
    """x + gain * path(x), the path being four convolutions of these sizes after ReLUs."""

    def __init__(self, n_in: int, n_out: int, sizes: Sizes, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.id_path = nn.Identity() if n_in == n_out else _conv(n_in, n_out, 1)
        widths = [n_in, *[n_out // 4] * 3, n_out]
        path: OrderedDict[str, nn.Module] = OrderedDict()
        for number, size in enumerate(sizes, 1):
            path[f"relu_{number}"] = nn.ReLU()
            path[f"conv_{number}"] = _conv(widths[number - 1], widths[number], size)
        self.res_path = nn.Sequential(path)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.id_path(x) + self.gain * self.res_path(x)
        return y


def _groups(
    widths: list[int], blocks: int, sizes: Sizes, between: tuple[str, nn.Module]
) -> OrderedDict[str, nn.Module]:
    """Groups of residual blocks; `between` stands at the end of all but the last."""
    gain = 1 / ((len(widths) - 1) * blocks) ** 2
    groups: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, width) in enumerate(pairwise(widths), 1):
        group: OrderedDict[str, nn.Module] = OrderedDict()
        for block, n_in in enumerate([before] + [width] * (blocks - 1), 1):
            group[f"block_{block}"] = ResidualBlock(n_in, width, sizes, gain)
        if number < len(widths) - 1:
            group[between[0]] = between[1]
        groups[f"group_{number}"] = nn.Sequential(group)
    return groups


def _output(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=_conv(n_in, n_out, 1)))


class DalleEncoder(nn.Module):
    """Mapped images [B, 3, H, W] -> logits [B, vocab_size, H / 8, W / 8]."""

    def __init__(self, vocab_size: int, n_hid: int, blocks_per_group: int) -> None:
        super().__init__()
        widths = [n_hid, n_hid, 2 * n_hid, 4 * n_hid, 8 * n_hid]
        pool = ("pool", nn.MaxPool2d(2))
        self.blocks = nn.Sequential(
            OrderedDict(
                input=_conv(3, n_hid, 7),
                **_groups(widths, blocks_per_group, (3, 3, 3, 1), pool),
                output=_output(8 * n_hid, vocab_size),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.blocks(x)
        return logits


class DalleDecoder(nn.Module):
    """Codes [B, n_init, h, w] -> [B, 6, 8h, 8w]: logits of the mean, and log-scales, per color."""

    def __init__(self, n_init: int, n_hid: int, blocks_per_group: int, resolution: int) -> None:
        super().__init__()
        self.resolution, self.num_resolutions = resolution, 4
        self.z_shape = (1, n_init, resolution // 8, resolution // 8)
        widths = [n_init, 8 * n_hid, 4 * n_hid, 2 * n_hid, n_hid]
        upsample = ("upsample", nn.Upsample(scale_factor=2, mode="nearest"))
        self.blocks = nn.Sequential(
            OrderedDict(
                **_groups(widths, blocks_per_group, (1, 3, 3, 3), upsample),
                output=_output(n_hid, 6),
            )
        )

    def forward(self, codes: Tensor) -> Tensor:
        distribution: Tensor = self.blocks(codes)
        return distribution
