"""The figures that need nothing but models and images; see scripts/figures.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from taming.command_line import flag, from_flags, parse, parse_numbers, parse_size
from taming.devices import device_of_command
from taming.errors import UserError
from taming.evaluation.figures.arguments import (
    DrawingArguments,
    FigureFiles,
    RunsArguments,
    described_run,
    figure_parser,
    save_page,
)
from taming.evaluation.figures.samples import SizedSample, default_sizes, samples_of_sizes
from taming.evaluation.figures.sampling_cost import (
    SamplingCost,
    StandIn,
    measure_cost,
    plot_costs,
)
from taming.figures import require_matplotlib
from taming.pictures import grid
from taming.sampling.arguments import require_positive
from taming.sampling.load import data_config, open_dataset
from taming.sampling.plan import TOP_K

# ---------------------------------------------------------------------- the cost of samples


def parse_positive(text: str) -> tuple[int, ...]:
    """Numbers above 0 of a comma list."""
    numbers = parse_numbers(text)
    if not numbers or not all(numbers):
        raise UserError(f"a list takes numbers above 0 such as 4,8,16, not '{text}'")
    return numbers


@dataclass(frozen=True, kw_only=True)
class CostArguments:
    """What is measured."""

    runs: RunsArguments
    sampling: DrawingArguments
    factors: tuple[int, ...] = flag(
        (2, 4, 8, 16), "f of stand-ins with random weights, without runs", parse=parse_positive
    )
    size: tuple[int, int] = flag(
        (256, 256), "of the samples, height,width in pixels", parse=parse_size
    )
    whole: bool = flag(False, "sample to the end, instead of some first steps that tell the rest")
    window: int = flag(16, "of the stand-ins: tokens a side that the transformer sees")
    layers: int = flag(12, "of the stand-ins' transformer")
    heads: int = flag(8, "of the stand-ins' transformer")
    width: int = flag(512, "of the stand-ins' transformer")
    channels: int = flag(32, "of the stand-ins' first stage")

    def __post_init__(self) -> None:
        sizes = {"window": self.window, "layers": self.layers, "heads": self.heads}
        require_positive(**sizes, width=self.width, channels=self.channels)

    @property
    def stand_in(self) -> StandIn:
        return StandIn(self.window, self.layers, self.heads, self.width, self.channels)

    def measure(
        self, overrides: Sequence[str]
    ) -> tuple[dict[str, SamplingCost], dict[str, dict[str, Any]]]:
        """By the model's name; and what runs they are, by name, stand-ins being none."""
        sets = {}
        drawing, costs, runs = self.sampling.drawing(), {}, self.runs.runs()
        if not runs:
            self._check_factors()
        for name, run in runs.items():
            model, _, step, _ = self.runs.of(run, overrides).load()
            sets[name] = described_run(run, step)
            costs[name] = measure_cost(model, self.size, drawing, self.whole)
        for factor in () if runs else self.factors:
            model = self.stand_in.build(factor, device_of_command(self.runs.figure.device))
            costs[f"stand-in f{factor}"] = measure_cost(model, self.size, drawing, self.whole)
        return costs, sets

    def _check_factors(self) -> None:
        """Before the first of them is measured, which may take long; raises UserError."""
        for factor in self.factors:
            self.stand_in.config(factor)
            if any(side % factor for side in self.size):
                height, width = self.size
                raise UserError(
                    f"--size {height},{width} is of no whole codes at f = {factor}; give a "
                    f"multiple of {max(self.factors)}, or other --factors"
                )


def draw_cost(argv: Sequence[str]) -> None:
    """Draw what `figures.py cost` is asked for."""
    files = FigureFiles("cost", argv)
    parser = figure_parser(
        "cost", "Sampling cost against f, at equal size.", CostArguments, top_k=TOP_K
    )
    args, overrides = parse(parser, argv)
    own = from_flags(CostArguments, args)
    require_matplotlib()
    costs, sets = own.measure(overrides)
    runs = list(own.runs.runs().values())
    folder = own.runs.figure.folder_for(runs[0].folder if runs else None)
    plot_costs(list(costs.values()), files.picture(folder))
    protocol: dict[str, Any] = {"size": list(own.size), "batch_size": own.sampling.batch_size}
    protocol |= {} if runs else {"stand_in": asdict(own.stand_in)}
    protocol |= asdict(own.sampling.settings) | {"precision": own.runs.figure.precision}
    files.write(
        folder,
        [cost.row(name) for name, cost in costs.items()],
        {name: asdict(cost) for name, cost in costs.items()},
        protocol=protocol,
        sets=sets,
        device=device_of_command(own.runs.figure.device),
    )


# ---------------------------------------------------------------------- sizes


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """(height, width) of each part of "256,512,512x1024", in pixels."""
    sizes = tuple(
        parse_size(part.strip().replace("x", ",")) for part in text.split(",") if part.strip()
    )
    if not sizes:
        raise UserError("give at least one size, such as 256,512,512x1024 (height x width)")
    return tuple(dict.fromkeys(sizes))


@dataclass(frozen=True, kw_only=True)
class SizesArguments:
    """Which sample is drawn, at which sizes."""

    runs: RunsArguments
    sampling: DrawingArguments
    sizes: tuple[tuple[int, int], ...] | None = flag(
        None,
        "comma list of pixels a side, or of height x width as 512x1024 (default: once, twice and "
        "four times the training's)",
        parse=parse_sizes,
    )
    label: int | None = flag(None, "the class, for models of classes (default: the first)")
    item: int | None = flag(
        None, "the item of the run's data whose condition is taken, for models of such conditions"
    )
    split: str | None = flag(None, "of the data: validation (default), train or test")

    def samples(self, overrides: Sequence[str]) -> tuple[list[SizedSample], dict[str, Any]]:
        """One per size, and a description of the run."""
        (run,) = self.runs.runs().values()
        loaded = self.runs.of(run, overrides).load()
        item = None
        if self.item is not None:
            data = data_config(run, self.runs.base, overrides)
            dataset = open_dataset(data, self.split)
            if not 0 <= self.item < len(dataset):
                raise UserError(f"--item is from 0 to {len(dataset) - 1}, not {self.item}")
            item = (dataset, self.item)
        sizes = self.sizes or default_sizes(loaded.model)
        drawing = self.sampling.drawing()
        samples = samples_of_sizes(loaded.model, sizes, drawing, self.label, item)
        return samples, described_run(run, loaded.step)


def draw_sizes(argv: Sequence[str]) -> None:
    """Draw what `figures.py sizes` is asked for."""
    files = FigureFiles("sizes", argv)
    parser = figure_parser(
        "sizes", "One sample at several sizes.", SizesArguments, batch_size=1, top_k=TOP_K
    )
    args, overrides = parse(parser, argv)
    own = from_flags(SizesArguments, args)
    if len(own.runs.resume) != 1:
        raise UserError("--resume names the run; give one of them")
    samples, about = own.samples(overrides)
    (run,) = own.runs.runs().values()
    folder = own.runs.figure.folder_for(run.folder)
    page = grid([[(sample.caption, sample.image) for sample in samples]])
    save_page(page, files.picture(folder))
    rows = [
        {
            "height x width": one.caption,
            "tokens": one.tokens,
            "seconds": float(f"{one.seconds:.3g}"),
        }
        for one in samples
    ]
    metrics = {one.caption: {"tokens": one.tokens, "seconds": one.seconds} for one in samples}
    condition = {"label": own.label, "item": own.item, "seed": own.sampling.seed}
    files.write(
        folder,
        rows,
        metrics,
        protocol=condition | asdict(own.sampling.settings),
        sets={"run": about},
        device=device_of_command(own.runs.figure.device),
    )
