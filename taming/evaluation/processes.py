"""One evaluation by several processes: what each has gathered reaches all of them."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from taming.errors import UserError
from taming.sampling.load import own_share

T = TypeVar("T")

# Processes reach the gathering as far apart as their shares differ in length, possibly by hours.
PATIENCE = timedelta(days=2)


def gather_states(state: T) -> list[T]:
    """The states of all processes that `torchrun` started, in the order of their ranks, in each.

    A state is anything that can be pickled, e.g. an accumulator's dict of arrays. One process gets
    `[state]`. The processes are connected by the first call (gloo), which waits for all of them.
    Raises UserError where torchrun's variables are incomplete.
    """
    _, processes = own_share()
    if processes == 1:
        return [state]
    _connect()
    states: list[T | None] = [None] * processes
    dist.all_gather_object(states, state)
    return [one for one in states if one is not None]


def _connect() -> None:
    if dist.is_initialized():
        return
    if not dist.is_available():
        raise UserError(
            "this torch has no support for several processes; start it without torchrun"
        )
    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
    except ValueError as error:
        raise UserError(
            f"WORLD_SIZE is set, but the processes cannot find one another ({error}); start them "
            "by torchrun, or unset WORLD_SIZE"
        ) from None
