"""Every module computes on a made-up GPU, and is one graph of torch.compile's; none is forgotten.

See `tests/test_fake_gpu.py` and `tests/test_compiled.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.kit.parts import PARTS, classes_of, modules_of_project

NAMES = [n if PARTS[n].quick else pytest.param(n, marks=pytest.mark.slow) for n in PARTS]


COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Copies(TorchDispatchMode):
    """Counts what is copied from one device to another, which waits for a GPU."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {tensor.device for tensor in tensors_of((args, result))}
        self.count += func in COPIES and len(devices) > 1
        return result


def tensors_of(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def test_no_module_is_without_a_part() -> None:
    with torch.device("meta"):
        known = set().union(*(classes_of(part) for part in PARTS.values()))
    assert not {f"{one.__module__}.{one.__name__}" for one in set(modules_of_project()) - known}


@pytest.mark.parametrize("name", NAMES)
def test_on_a_made_up_gpu(name: str) -> None:
    part = PARTS[name]
    with FakeTensorMode():
        with torch.device("cuda"):
            module, arguments = part.make(), part.arguments()
        for training in (True, False):
            with Copies() as copies:
                results = tensors_of(part.call(module.train(training), *arguments))
            assert all(tensor.is_cuda for tensor in results) and copies.count == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_one_graph_holds_all_of_it(name: str) -> None:
    part = PARTS[name]
    torch.manual_seed(0)
    module, arguments = part.make().eval(), part.arguments()
    torch.compiler.reset()
    compiled: Any = torch.compile(part.call, fullgraph=True, backend="aot_eager")
    pairs = zip(
        tensors_of(compiled(module, *arguments)),
        tensors_of(part.call(module, *arguments)),
        strict=True,
    )
    for result, expected in pairs:
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
