from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from taming.errors import UserError
from taming.guidance import CodeGrids, GuideSettings, Objective, Start, class_target, guide, memory
from taming.guidance.memory import check_step_memory, step_memory
from tests.kit.guidance import small_guide
from tests.kit.models import build, first_stage_config


@pytest.fixture(scope="module")
def grids() -> CodeGrids:
    return CodeGrids.of(build(first_stage_config()).eval().requires_grad_(False))


def kept_in_truth(grids: CodeGrids, shape: tuple[int, int]) -> int:
    """Bytes that the graph of a real decoding keeps."""
    weights = {p.untyped_storage().data_ptr() for p in grids.stage.state_dict().values()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        codes = torch.zeros(shape[0] * shape[1], 4, requires_grad=True)
        image = grids.decode([codes], shape)
    total = sum(t.untyped_storage().nbytes() for p, t in kept.items() if p not in weights)
    return total + 2 * image.nbytes


def test_the_estimate_is_what_is_kept(grids: CodeGrids) -> None:
    for shape in ((8, 8), (6, 20)):
        assert step_memory(grids, shape) == pytest.approx(kept_in_truth(grids, shape), rel=0.02)
    assert step_memory(grids, (40, 40)) > 20 * step_memory(grids, (8, 8))


def test_sizes_beyond_the_memory(grids: CodeGrids, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = check_step_memory(grids, (16, 32))
    monkeypatch.setattr(memory, "memory_limit", lambda: needed // 4)
    with pytest.raises(UserError) as caught:
        check_step_memory(grids, (16, 32))
    said = str(caught.value)
    assert said.startswith("guiding an image of 64 x 32 pixels takes ")
    match = re.search(r"try --size (\d+),(\d+)", said)
    assert match and (int(match[1]), int(match[2])) == (16, 32)
    encoder = small_guide()
    objective = Objective(encoder, [class_target(encoder, 0)])
    start = Start([torch.zeros(512, dtype=torch.long)], (16, 32))
    with pytest.raises(UserError, match="takes .* of memory, and .* are free"):
        guide(grids.stage, objective, GuideSettings(steps=1), start=start)
    with pytest.raises(UserError, match="too large"):
        check_step_memory(grids, (10**6, 10**6))


def test_what_torch_holds_on_a_gpu_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of the image before leaves its memory there, where the driver takes it for used."""
    for name, value in (
        ("mem_get_info", (6, 24)),
        ("memory_reserved", 17),
        ("memory_allocated", 1),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free_memory(torch.device("cuda")) == 22
