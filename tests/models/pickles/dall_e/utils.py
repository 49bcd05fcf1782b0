from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, INIT, CODES, BLOCKS, GROUPS = 8, 4, 16, 2, 4


class Conv2d(nn.Module):
    def __init__(self, n_in: int, n_out: int, kw: int, requires_grad: bool = False) -> None:
        super().__init__()
        self.n_in, self.n_out, self.kw = n_in, n_out, kw
        self.use_float16, self.device = True, torch.device("cpu")
        w = torch.randn(n_out, n_in, kw, kw) / (n_in * kw**2) ** 0.5
        self.w = nn.Parameter(w, requires_grad=requires_grad)
        self.b = nn.Parameter(torch.randn(n_out) * 0.1, requires_grad=requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=(self.kw - 1) // 2)


class Block(nn.Module):
    """Kernel sizes of its four convolutions are those of the side that it is on."""

    sizes: tuple[int, ...]

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.post_gain = 1 / (GROUPS * BLOCKS) ** 2
        self.make_conv = partial(Conv2d, requires_grad=False)
        self.id_path = self.make_conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        widths = [n_in, n_out // 4, n_out // 4, n_out // 4, n_out]
        path: OrderedDict[str, nn.Module] = OrderedDict()
        for i, size in enumerate(self.sizes):
            path[f"relu_{i + 1}"] = nn.ReLU()
            path[f"conv_{i + 1}"] = self.make_conv(widths[i], widths[i + 1], size)
        self.res_path = nn.Sequential(path)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.post_gain * self.res_path(x)


class Network(nn.Module):
    """An input layer, groups of blocks with something between them, and an output layer."""

    def __init__(
        self,
        first: nn.Module,
        block: Callable[[int, int], Block],
        widths: list[int],
        between: tuple[str, nn.Module],
        n_out: int,
    ) -> None:
        super().__init__()
        self.n_hid, self.device, self.use_mixed_precision = HIDDEN, torch.device("cpu"), True
        parts: OrderedDict[str, nn.Module] = OrderedDict(input=first)
        for g in range(GROUPS):
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(BLOCKS):
                group[f"block_{i + 1}"] = block(widths[g + bool(i)], widths[g + 1])
            if g + 1 < GROUPS:
                group[between[0]] = between[1]
            parts[f"group_{g + 1}"] = nn.Sequential(group)
        last = OrderedDict(relu=nn.ReLU(), conv=Conv2d(widths[-1], n_out, 1))
        parts["output"] = nn.Sequential(last)
        self.blocks = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)
