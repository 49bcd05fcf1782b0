"""The memory that a step of guidance takes, known before it is taken."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from taming.errors import UserError
from taming.guidance.code_grids import CodeGrids, Shape
from taming.limits import check_picture, memory_limit, readable_size


class _Saved:
    """The storages that a graph keeps for its backward pass, each counted once."""

    def __init__(self) -> None:
        self.storages: dict[int, tuple[Tensor, int]] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # The tensor is kept, so that its number is not given to another.
        self.storages[storage._cdata] = (tensor, storage.nbytes())
        return tensor

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.storages.values())


def step_memory(grids: CodeGrids, shape: Shape) -> int:
    """Bytes that decoding `shape` codes keeps for the gradient: what a graph of tensors without
    content keeps, less the decoder's weights."""
    saved = _Saved()
    weights = {p.untyped_storage()._cdata for p in grids.stage.state_dict().values()}
    with FakeTensorMode(allow_non_fake_inputs=True), saved_tensors_hooks(saved.keep, lambda x: x):
        codes = [
            torch.zeros(h * w, table.shape[1], device=table.device, requires_grad=True)
            for table, (h, w) in zip(grids.tables, grids.shapes(shape), strict=True)
        ]
        image = grids.decode(codes, shape)
    kept = saved.bytes - sum(
        size for number, (_, size) in saved.storages.items() if number in weights
    )
    return kept + 2 * image.numel() * image.element_size()


def free_memory(device: torch.device) -> int:
    """Bytes that are free where a device computes: on a GPU also those that torch holds for tensors
    to come."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return memory_limit()


def check_step_memory(grids: CodeGrids, shape: Shape) -> int:
    """The bytes of a step.

    Raises:
        UserError: if there are not as many, with the size for which there are.
    """
    height, width = grids.size_of(shape)
    check_picture(height, width)
    needed, free = step_memory(grids, shape), free_memory(grids.device)
    if needed <= free:
        return needed
    factor = grids.stage.downsampling_factor
    share = math.sqrt(free / needed)
    fitting = [max(factor, int(side * share) // factor * factor) for side in (height, width)]
    raise UserError(
        f"guiding an image of {width} x {height} pixels takes {readable_size(needed)} of memory, "
        f"and {readable_size(free)} are free; try --size {fitting[0]},{fitting[1]}"
    )
