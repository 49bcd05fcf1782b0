"""What the commands of figures share: flags of several runs, and the files that they write."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from taming.atomic_files import atomic_path, check_place
from taming.checkpoint import Run, distinct_name, find_run
from taming.command_line import Parser, flag
from taming.evaluation.arguments import make_parser
from taming.evaluation.checkpoints import describe_checkpoint
from taming.evaluation.figures.samples import Drawing
from taming.evaluation.results import command_line, make_result, markdown_table, write_result
from taming.sampling.arguments import RunArguments, require_positive
from taming.sampling.settings import SampleSettings

SCRIPT = "figures"


@dataclass(frozen=True, kw_only=True)
class FigureArguments:
    """Where a figure's files go, and where it is computed."""

    outdir: Path | None = flag(
        None, "where files go (default: `figures` in the first run, or here)", "-o"
    )
    device: str = flag("auto", "auto, cuda, cuda:1, mps or cpu")
    precision: str = flag("fp32", "of the transformers: fp32, bf16 or auto")

    def __post_init__(self) -> None:
        if self.outdir is not None:
            check_place(self.outdir, "choose another --outdir")

    def folder_for(self, run: Path | None) -> Path:
        """--outdir, or the folder of figures in `run`."""
        return self.outdir or (run or Path()) / "figures"


@dataclass(frozen=True, kw_only=True)
class RunsArguments:
    """The runs of a figure."""

    figure: FigureArguments
    resume: tuple[str, ...] = flag(
        (), "a run's folder or checkpoint (may be repeated)", "-r", metavar="RUN", repeated=True
    )
    base: tuple[str, ...] = flag(
        (), "merged over the runs' configs", "-b", metavar="YAML", nargs="*"
    )

    def runs(self) -> dict[str, Run]:
        """By a name that tells them apart: the folder's, with the checkpoint's if it has several.

        Raises UserError where there is no run.
        """
        found: dict[str, Run] = {}
        for path in self.resume:
            run = find_run(path)
            found[distinct_name(run, found)] = run
        return found

    def of(self, run: Run, overrides: Sequence[str] = ()) -> RunArguments:
        """To load one of them."""
        return RunArguments(
            resume=str(run.checkpoint),
            base=self.base,
            device=self.figure.device,
            precision=self.figure.precision,
            overrides=tuple(overrides),
        )


def described_run(run: Run, step: int) -> dict[str, Any]:
    """Which weights a figure is of, as JSON values; `step` is their global step."""
    return {"path": str(run.folder), **describe_checkpoint(run, step)}


@dataclass(frozen=True, kw_only=True)
class DrawingArguments:
    """How the samples of a figure are drawn."""

    settings: SampleSettings
    seed: int = flag(0, "decides each sample, together with its number")
    batch_size: int = flag(4, "sampled at once")

    def __post_init__(self) -> None:
        require_positive(batch_size=self.batch_size)

    def drawing(self) -> Drawing:
        return Drawing(self.settings, self.seed, self.batch_size)


def figure_parser(name: str, description: str, settings: type, **defaults: Any) -> Parser:
    """A parser of a figure's flags, with other `defaults` than the dataclass's own."""
    parser = make_parser(description, settings, **defaults)
    parser.prog = f"{Parser.program or 'figures.py'} {name}"
    return parser


@dataclass
class FigureFiles:
    """Writes what a figure's command made, under one name."""

    name: str
    argv: Sequence[str] | None  # behind the figure's name
    start: float = field(default_factory=time.monotonic)
    pictures: list[str] = field(default_factory=list)  # the files' names

    def picture(self, folder: Path, ending: str = "") -> Path:
        """Where a picture of the figure is to be written."""
        self.pictures.append(f"{self.name}{ending}.png")
        return folder / self.pictures[-1]

    def write(
        self,
        folder: Path,
        rows: Sequence[Mapping[str, Any]],
        metrics: Mapping[str, Any],
        *,
        protocol: Mapping[str, Any],
        sets: Mapping[str, Mapping[str, Any]],
        device: torch.device,
    ) -> Path:
        """The JSON and the Markdown, with `rows` as its table; returns the JSON's path."""
        result = make_result(
            metrics,
            protocol,
            sets,
            seconds=time.monotonic() - self.start,
            device=device,
            command=command_line([self.name, *(self.argv or ())], SCRIPT),
        )
        path = folder / f"{self.name}.json"
        pictures = [f"![{Path(name).stem}]({name})" for name in self.pictures]
        write_result(result, path, [markdown_table(rows), *pictures])
        print(markdown_table(rows))
        print(f"{', '.join([path.name, f'{self.name}.md', *self.pictures])} are in {folder}")
        return path


def save_page(page: Image.Image, path: Path) -> Path:
    """Write a PNG whole or not at all; returns `path`."""
    with atomic_path(path) as partial:
        page.save(partial, format="PNG")
    return path
