"""What processes exchange: two of them, as torchrun starts them, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from taming.devices import local_rank, own_share
from taming.distributed import (
    Agreement,
    average_gradients,
    gather_objects,
    is_connected,
    is_first_process,
    rank,
    same_on_all_ranks,
    sum_over_ranks,
    world_size,
)
from taming.errors import UserError
from taming.modules.transformer.kmeans import KMeans
from taming.modules.util import ActNorm
from taming.modules.vqvae.quantize import EMAVectorQuantizer
from tests.kit.processes import exit_codes_of_two, in_two_processes


def test_a_process_alone_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not is_connected() and (rank(), world_size()) == own_share() == (0, 1)
    assert local_rank() == 0
    tensor = torch.ones(2)
    assert sum_over_ranks(tensor) is tensor and same_on_all_ranks(tensor) is tensor
    parameter = nn.Parameter(tensor.clone())
    parameter.grad = torch.ones(2)
    average_gradients([parameter])
    assert torch.equal(parameter.grad, tensor)
    assert gather_objects({"a": 1}) == [{"a": 1}] and not is_connected()


def test_incomplete_variables_of_torchrun_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="start them by torchrun, or unset WORLD_SIZE"):
        gather_objects(1)


def save(folder: Path, **values: Any) -> None:
    torch.save(values, folder / f"{rank()}.pt")


def saved(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (torch.load(folder / f"{number}.pt") for number in range(2))
    return first, second


def exchange(folder: Path) -> None:
    number, processes = own_share()
    assert processes == 2 and local_rank() == number
    assert not is_connected() and world_size() == 1  # until the first gathering
    gathered = gather_objects({"rank": number, "numbers": [number] * (number + 1)})
    assert is_connected() and (rank(), world_size()) == own_share()
    gathered += gather_objects({"rank": -number})
    mine = torch.tensor([1.0, 10.0 * (number + 1)])
    total, first = sum_over_ranks(mine.clone()), same_on_all_ranks(mine.clone())
    scale = nn.Parameter(torch.zeros(()))
    scale.grad = torch.tensor(2.0 * number)
    average_gradients([scale])
    assert scale.grad.item() == 1.0
    parts = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for part in parts[:2]:
        part.grad = mine.clone()
    average_gradients(parts)  # the third has no gradient, in any process
    assert parts[2].grad is None
    save(folder, gathered=gathered, total=total, first=first, grads=[p.grad for p in parts[:2]])
    dist.destroy_process_group()


def test_sums_copies_averages_and_gathered_objects(tmp_path: Path) -> None:
    in_two_processes(exchange, tmp_path)
    for result in saved(tmp_path):
        assert result["gathered"] == [
            {"rank": 0, "numbers": [0]},
            {"rank": 1, "numbers": [1, 1]},
            {"rank": 0},
            {"rank": -1},
        ]
        assert result["total"].tolist() == [2, 30] and result["first"].tolist() == [1, 10]
        assert [grad.tolist() for grad in result["grads"]] == [[1, 15], [1, 15]]


@pytest.mark.parametrize(("backend", "device"), [("nccl", "cuda"), ("gloo", "cpu")])
def test_counts_in_a_cpus_memory_go_through_a_gpu_if_processes_use_nccl(
    monkeypatch: pytest.MonkeyPatch, backend: str, device: str
) -> None:
    exchanged: list[str] = []

    def exchange(tensor: Tensor, **options: Any) -> None:
        exchanged.append(tensor.device.type)
        tensor.mul_(2)

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist, "all_reduce", exchange)
    monkeypatch.setattr(dist, "broadcast", exchange)
    with FakeTensorMode():  # a GPU for want of a real one
        counts = torch.zeros(3, dtype=torch.long)  # of a process that had no batch
        assert sum_over_ranks(counts) is counts and counts.is_cpu
        assert counts._version  # the sum is put back
        before = counts._version
        assert same_on_all_ranks(counts) is counts and counts._version > before
        on_gpu = torch.zeros(3, device="cuda")
        assert sum_over_ranks(on_gpu) is on_gpu
    assert exchanged == [device, device, "cuda"]


def fail_in_one(folder: Path) -> None:
    if own_share()[0] == 1:
        raise SystemExit(3)
    gather_objects(0)


def test_a_process_that_fails_is_seen(tmp_path: Path) -> None:
    codes = exit_codes_of_two(fail_in_one, tmp_path, timeout=3.0)
    assert codes[1] == 3 and codes[0] != 0


# ---------------------------------------------------------------------- modules that exchange


def latents(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(1, 2, 4, 4, generator=generator) + 3 * number


def train(folder: Path) -> None:
    gather_objects(0)
    torch.manual_seed(0)
    plain = EMAVectorQuantizer(6, 2, 0.25)
    revived = EMAVectorQuantizer(6, 2, 0.25, decay=0.5, revive_after=1)
    norm, colors = ActNorm(2), KMeans(3, nc=2)
    torch.manual_seed(rank())  # each process revives codes by latents of its own
    for _ in range(4):
        plain(latents(rank()))
        revived(latents(rank()))
        norm(latents(rank()))
        colors.encode(latents(rank()))
    parts = {"plain": plain, "revived": revived, "norm": norm, "colors": colors}
    save(folder, **{name: part.state_dict() for name, part in parts.items()})
    dist.destroy_process_group()


def test_codebooks_and_statistics_agree(tmp_path: Path) -> None:
    in_two_processes(train, tmp_path)
    first, second = saved(tmp_path)
    for part, state in first.items():
        for name, tensor in state.items():
            assert torch.equal(tensor, second[part][name]), (part, name)
    torch.manual_seed(0)
    alone = EMAVectorQuantizer(6, 2, 0.25)
    for _ in range(4):
        alone(torch.cat([latents(0), latents(1)]))
    torch.testing.assert_close(first["plain"]["embedding.weight"], alone.embedding.weight)


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "8"}, False),
        ({"LOCAL_RANK": "1"}, False),  # as Lightning starts them
        ({"NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_the_first_of_all_processes(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], first: bool
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first


def test_an_agreement_is_the_highest_number_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Work:
        def wait(self) -> None:
            asked[-1][0].fill_(7)  # another process's

    def all_reduce(value: Tensor, operation: Any, group: Any, async_op: bool) -> Work:
        asked.append((value, operation, group, async_op))
        return Work()

    monkeypatch.setattr(dist, "new_group", lambda **options: options["backend"])
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    agreement = Agreement()
    assert agreement.received() == 0
    for _ in range(2):
        agreement.send(3)
        assert asked[-1][1:] == (dist.ReduceOp.MAX, "gloo", True)
        assert agreement.received() == 7 and agreement.received() == 0
