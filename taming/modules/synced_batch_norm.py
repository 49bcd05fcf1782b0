"""Batch normalization over the batches of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taming.distributed import mean_over_ranks, world_size


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization by mean and variance of all processes' batches, on any device.

    torch's `SyncBatchNorm` does the same in fewer kernels, and on GPUs alone. Batches are of equal
    size. Takes and returns [B, C, H, W].
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        mean = mean_over_ranks(x.mean((0, 2, 3)))  # (C,)
        centered = x - mean[:, None, None]  # (B, C, H, W)
        variance = mean_over_ranks(centered.square().mean((0, 2, 3)))  # (C,)
        self._follow(mean, variance, world_size() * x.numel() // len(mean))
        normed = centered * torch.rsqrt(variance + self.eps)[:, None, None]
        return normed * self.weight[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, values: int) -> None:
        """Move the running statistics; that of the variance is unbiased, as torch's."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * values / (values - 1), self.momentum)


def synced(module: nn.Module) -> nn.Module:
    """`module` with `SyncedBatchNorm2d` for each `BatchNorm2d`, with the same parameters."""
    if type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats:
        layer = SyncedBatchNorm2d(module.num_features, module.eps, module.momentum)
        layer.weight, layer.bias = module.weight, module.bias
        layer.running_mean, layer.running_var = module.running_mean, module.running_var
        layer.num_batches_tracked = module.num_batches_tracked
        return layer.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, synced(child))
    return module
