"""A script in two processes, as torchrun starts them, but from this one: nothing to import."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context

import torch

Main = Callable[[list[str]], None]


def _process(main: Main, rank: int, port: int, argv: list[str], variables: dict[str, str]) -> None:
    torch.set_num_threads(1)  # those of the parent are not here
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **variables}
    main(argv)


def in_two_processes(main: Main, argv: list[str]) -> None:
    """`main(argv)` of a script, by two processes that share the work."""
    assert exit_codes_of_two(main, argv) == [0, 0]


def exit_codes_of_two(main: Main, argv: list[str], **variables: str) -> list[int | None]:
    """The same, which may fail; a process that is left alone is ended, as torchrun does it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = get_context("fork")
    arguments = [(main, rank, port, argv, variables) for rank in range(2)]
    started = [fork.Process(target=_process, args=args) for args in arguments]
    for one in started:
        one.start()
    for one in started:
        one.join(120)
        one.kill()
        one.join()
    return [one.exitcode for one in started]
