"""Several processes that work together: which one this is, and what they exchange.

Training processes are connected by Lightning. Scripts that `torchrun` starts know their share of
the work from its environment variables, and are connected by the first `gather_objects`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from taming.devices import own_share
from taming.errors import UserError

T = TypeVar("T")

# Processes reach a gathering as far apart as their shares differ in length, possibly by hours.
GATHER_TIMEOUT = timedelta(days=2)
# The others wait this long for the one that writes the last checkpoint.
SAVE_TIMEOUT = timedelta(hours=6)


def is_connected() -> bool:
    """Whether this process belongs to an initialized process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process within its process group; 0 without one."""
    return dist.get_rank() if is_connected() else 0


def world_size() -> int:
    """The number of processes of the process group; 1 without one."""
    return dist.get_world_size() if is_connected() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """`tensor` summed, in place, over all processes."""
    if is_connected():
        exchanged = _where_processes_exchange(tensor)
        dist.all_reduce(exchanged)
        tensor.copy_(exchanged)  # nothing, if it is the same
    return tensor


class _Mean(torch.autograd.Function):
    """A mean over processes. Each one's loss depends on the others' values, so that its gradient
    there is a mean over processes as well, which may be differentiated in its turn."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor.clone()) / world_size()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        mean: Tensor = _Mean.apply(grad_outputs[0])
        return mean


def finite_on_all_ranks(values: Tensor) -> Tensor:
    """`values`, with NaN in place of those that are not finite on another process."""
    if world_size() == 1:
        return values
    wrong = ~values.isfinite()
    return values.masked_fill((sum_over_ranks(wrong.float()) > 0) & ~wrong, torch.nan)


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of all processes' `tensor`; gradients go back to each of them."""
    if world_size() == 1:
        return tensor
    mean: Tensor = _Mean.apply(tensor)
    return mean


def same_on_all_ranks(tensor: Tensor) -> Tensor:
    """The first process's `tensor`, in place, on all processes."""
    if is_connected():
        exchanged = _where_processes_exchange(tensor)
        dist.broadcast(exchanged, src=0)
        tensor.copy_(exchanged)
    return tensor


def _where_processes_exchange(tensor: Tensor) -> Tensor:
    # NCCL, which connects processes that train on GPUs, takes nothing from a CPU's memory.
    return tensor.to("cuda") if tensor.is_cpu and dist.get_backend() == "nccl" else tensor


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average over processes the gradients that DistributedDataParallel was told to leave alone."""
    processes = world_size()
    if processes == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    pending = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
    for work in pending:
        work.wait()
    for gradient in gradients:
        gradient /= processes


def gather_objects(value: T) -> list[T]:
    """The values of all processes that `torchrun` started, in the order of their ranks, in each.

    A value is anything that can be pickled, such as a dict of arrays. A single process gets
    `[value]`. The first call connects the processes (gloo) and waits for all of them.

    Raises:
        UserError: if torchrun's environment variables are incomplete.
    """
    _, processes = own_share()
    if processes == 1:
        return [value]
    _connect()
    values: list[T | None] = [None] * processes
    dist.all_gather_object(values, value)
    return [one for one in values if one is not None]


def _connect() -> None:
    if is_connected():
        return
    if not dist.is_available():
        raise UserError(
            "this torch has no support for several processes; start it without torchrun"
        )
    try:
        dist.init_process_group("gloo", timeout=GATHER_TIMEOUT)
    except ValueError as error:
        raise UserError(
            f"WORLD_SIZE is set, but the processes cannot find one another ({error}); start them "
            "by torchrun, or unset WORLD_SIZE"
        ) from None


def disconnect() -> None:
    """End the connections, so that their threads do not outlive the interpreter's end."""
    if is_connected():
        dist.destroy_process_group()


class Agreement:
    """The highest number that any training process wants, known to all together a step later.

    It is exchanged by gloo while a step is computed, so that no process waits for it.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._pending: tuple[dist.Work, Tensor] | None = None

    def send(self, wanted: int) -> None:
        """Begin an exchange; each process does so after the same steps."""
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=SAVE_TIMEOUT)
        value = torch.tensor(wanted)
        work = dist.all_reduce(value, dist.ReduceOp.MAX, self._group, async_op=True)
        assert work is not None
        self._pending = work, value

    def received(self) -> int:
        """The result of the exchange that was begun last; 0 without one."""
        if self._pending is None:
            return 0
        work, value = self._pending
        self._pending = None
        work.wait()
        return int(value)

    def wait_for_all(self) -> None:
        """Wait until all processes are here."""
        if self._group is not None:
            self.received()
            dist.barrier(self._group)


def is_first_process() -> bool:
    """Whether this is the first of all processes of a command, also before they are connected."""
    names = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
    return all(int(os.environ.get(name, 0)) == 0 for name in names)
