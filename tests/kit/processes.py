"""Functions in two processes that work together, as torchrun starts them.

They are forks of this process, in which everything is imported already, where they can be.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from taming.training.cli import main
from tests.kit.launch import LIMIT, Ended, Launcher

TWO_DEVICES = ("--accelerator", "cpu", "--devices", "2")


def _process(
    function: Callable[..., Any], args: tuple[Any, ...], rank: int, variables: dict[str, str]
) -> None:
    torch.set_num_threads(1)  # the parent's threads are not here
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), **variables}
    function(*args)


def in_two_processes(function: Callable[..., Any], *args: Any, fresh: bool = False) -> None:
    """Call `function(*args)`, say the main of a script with its argv, in two processes."""
    assert exit_codes_of_two(function, *args, fresh=fresh) == [0, 0]


def exit_codes_of_two(
    function: Callable[..., Any],
    *args: Any,
    fresh: bool = False,
    timeout: float = 120,
    **variables: str,
) -> list[int | None]:
    """The same, which may fail; a process that is left alone is ended, as torchrun does it.

    `fresh` ones, which import everything anew, can do a backward pass: forks of a process that has
    done one cannot. `variables` are further environment variables; `timeout` is in seconds, for
    each process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **variables}
    context: Any = get_context("spawn" if fresh else "fork")
    processes = [
        context.Process(target=_process, args=(function, args, rank, shared)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def two_train(
    launcher: Launcher,
    folder: Path,
    arguments: list[str],
    limit: float = LIMIT,
    **variables: str,
) -> Ended:
    """main.py in two processes, forks of a fresh one: after some backward passes there are threads
    in this process without which its forks could make none. `limit` is in seconds."""
    words, program = [str(limit), *arguments], "tests/kit/processes.py"
    return launcher.run(words, folder, program=program, environment=variables, limit=limit)


def _train(arguments: list[str]) -> None:
    rank_zero_only.rank = int(os.environ["RANK"])  # type: ignore[attr-defined]  # not the parent's
    main(arguments)


if __name__ == "__main__":
    limit, *words = sys.argv[1:]
    sys.exit(max(code or 0 for code in exit_codes_of_two(_train, words, timeout=float(limit))))
