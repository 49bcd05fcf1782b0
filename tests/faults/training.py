"""Short ways to start runs of cases, with changes and faults, and to read what they did."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from taming.checkpoint import read_checkpoint
from tests.faults.cases import write_case
from tests.faults.hooks import Fault, environment
from tests.faults.kills import TRAIN
from tests.kit.comparison import only_run
from tests.kit.launch import Ended, Launcher


class Trial:
    """A run of a case in a folder of its own, started once and resumed as often as one likes."""

    def __init__(self, launcher: Launcher, folder: Path, case: str = "vqgan") -> None:
        self.launcher, self.folder, self.case = launcher, folder, case
        self.starts = 0

    def start(
        self,
        *arguments: str,
        faults: Sequence[Fault] = (),
        fresh: bool = False,
        **changes: Any,
    ) -> Ended:
        """Train from the beginning; `changes` are `section__key=value` of the config."""
        dotted = {name.replace("__", "."): value for name, value in changes.items()}
        config = write_case(self.case, self.folder, **dotted)
        return self._run(["--base", config, *TRAIN, *arguments], faults, fresh)

    def resume(
        self,
        *arguments: str,
        path: str | None = None,
        faults: Sequence[Fault] = (),
        fresh: bool = False,
    ) -> Ended:
        """Go on with the run, named by its folder or another `path`."""
        path = path or str(self.run.relative_to(self.folder))
        return self._run(["-r", path, *TRAIN, *arguments], faults, fresh)

    def _run(self, arguments: list[str], faults: Sequence[Fault], fresh: bool) -> Ended:
        self.starts += 1
        variables = environment(list(faults), self.folder / f"{self.starts}.log")
        return self.launcher.run(arguments, self.folder, environment=variables, fresh=fresh)

    @property
    def run(self) -> Path:
        """The run's folder."""
        run = only_run(self.folder)
        assert run is not None, "there is no run"
        return run

    @property
    def last(self) -> dict[str, Any]:
        """The content of last.ckpt."""
        return read_checkpoint(self.run / "checkpoints" / "last.ckpt")

    def batches(self, start: int) -> list[int]:
        """The batches that the first process of a start (1, 2, ...) has begun."""
        text = (self.folder / f"{start}.log").read_text()
        return [int(number) for number in re.findall(r"^0 begin (\d+)$", text, re.MULTILINE)]

    def items(self, start: int) -> dict[int, list[str]]:
        """What a start has trained on: epoch -> files, of all processes."""
        text = (self.folder / f"{start}.log").read_text()
        files: dict[int, list[str]] = defaultdict(list)
        for epoch, names in re.findall(r"^\d+ seen (\d+) (.*)$", text, re.MULTILINE):
            files[int(epoch)] += names.split()
        return files


def is_sentence(ended: Ended, *words: str) -> bool:
    """Whether a program ended with one line of ours that has these words, and no traceback."""
    line = ended.last_line
    good = line.startswith("error: ") and not ended.traceback
    return good and all(word in line for word in words)


def all_finite(run: Path) -> bool:
    """Whether the weights of all checkpoints of a run are numbers."""
    return all(
        bool(torch.isfinite(value).all())
        for path in run.glob("checkpoints/*.ckpt")
        for value in read_checkpoint(path)["state_dict"].values()
        if value.is_floating_point()
    )
