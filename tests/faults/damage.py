"""Damage that disks and power cuts do to checkpoints, and whether loading recognises it."""

from __future__ import annotations

import logging
import os
import random
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from taming.checkpoint import load_run, read_checkpoint
from taming.errors import UserError

KINDS = ("one bit", "4 KiB", "cut short", "zeros to the end", "zeros inside", "more at the end")


@dataclass(frozen=True)
class Damage:
    """A kind of damage, where in a file (a share of its length), and a seed of its content."""

    kind: str
    place: float
    seed: int

    def to(self, path: Path) -> None:
        """Put a damaged copy in the place of a file, whose other links stay whole."""
        data = bytearray(path.read_bytes())
        at = int(self.place * len(data))
        if self.kind == "one bit":
            data[at] ^= 1 << self.seed % 8
        elif self.kind == "4 KiB":
            size = min(4096, len(data) - at)
            noise = random.Random(self.seed).randbytes(size)
            changed = bytes([noise[0] ^ (noise[0] == data[at]) or 1]) + noise[1:]
            data[at : at + size] = changed
        elif self.kind == "cut short":
            del data[at:]
        elif self.kind == "zeros to the end":
            data[at:] = bytes(len(data) - at)
        elif self.kind == "zeros inside":
            data[at : at + 512] = bytes(len(data[at : at + 512]))
        else:
            data += random.Random(self.seed).randbytes(1 + self.seed % 1000)
        if data == path.read_bytes():  # there were zeros already
            data[at if at < len(data) else -1] ^= 0xFF
        path.unlink()
        path.write_bytes(data)


def random_damages(seed: int, count: int) -> list[Damage]:
    """Half of them flips of one bit; a function of the seed."""
    rng = random.Random(seed)
    kinds = ["one bit"] * 5 + list(KINDS)
    return [Damage(rng.choice(kinds), rng.random(), rng.randrange(2**30)) for _ in range(count)]


class DamagedRuns:
    """Copies of a run, some of whose newest checkpoints are damaged.

    A run has the same state in `last.ckpt` and in the file of its last epoch: every other time both
    are damaged, and the epoch before is the newest whole one.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        self.original, self.folder = run, folder
        names = sorted(path.name for path in run.glob("checkpoints/epoch=*.ckpt"))
        self.newest, self.older = names[-1], names[-2]
        self.states = {name: self._state(name) for name in (self.newest, self.older)}

    def _state(self, name: str) -> dict[str, Tensor]:
        checkpoint = read_checkpoint(self.original / "checkpoints" / name)
        return {key: value.clone() for key, value in checkpoint["state_dict"].items()}

    def damaged(self, damage: Damage, both: bool) -> Path:
        """A copy with a damaged last.ckpt, and a damaged file of the last epoch if `both`."""
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.original, run, copy_function=_link)
        for name in ("last.ckpt", self.newest) if both else ("last.ckpt",):
            damage.to(run / "checkpoints" / name)
        return run

    def problems(self, damage: Damage, both: bool) -> list[str]:
        """What is wrong with how the damage is taken; nothing if it is recognised."""
        run = self.damaged(damage, both)
        wanted = self.older if both else self.newest
        try:
            with messages() as lines:
                model, _, _ = load_run(run)
        except UserError as error:
            return [f"refused instead of using {wanted}: {str(error)[:100]}"]
        except Exception as error:
            return [f"traceback of {type(error).__name__}: {str(error)[:100]}"]
        problems = []
        named = [line for line in lines if "last.ckpt" in line]
        if not named:
            problems.append("loaded as if whole")
        elif len(named) > 1 or "\n" in named[0]:
            problems.append(f"said in {len(named)} messages")
        if not _equal(model.state_dict(), self.states[wanted]):
            problems.append(f"not the weights of {wanted}")
        return problems


def _link(source: str, target: str) -> None:
    os.link(source, target)


def _equal(own: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, wanted[name]) for name, value in own.items())


@contextmanager
def messages() -> Iterator[list[str]]:
    """The warnings of a block, through logging or `warnings`."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Collect(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield lines
        lines += [str(warning.message) for warning in caught]
    finally:
        logging.getLogger().removeHandler(handler)
