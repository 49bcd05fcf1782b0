"""What is chosen on the page, as actions get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from taming.checkpoint.runs import name_of
from taming.demo.arguments import PageArguments
from taming.demo.drawing import Drawn, draw, requests_for_inputs
from taming.demo.links import Choices
from taming.demo.runs import Loaded, is_gone, load
from taming.errors import UserError
from taming.guidance.arguments import Guide
from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling import SampleSettings
from taming.sampling.arguments import DataArguments
from taming.sampling.inputs import SampleInputs


@dataclass(frozen=True)
class Desk:
    """A run, its condition, and how to sample.

    Attributes:
        run: its path.
        inputs: None while there is nothing painted that could be drawn.
        keep, kept: what is kept of the inputs' image, in words and as tokens bool (h, w).
        link: all of it as text, see `Choices`.
        choices: the page's widgets, to which tabs add their own.
        arguments, data, guide: the command line.
    """

    run: str
    loaded: Loaded
    inputs: SampleInputs | None
    keep: str | None
    kept: Tensor | None
    settings: SampleSettings
    seed: int
    count: int
    link: Mapping[str, str]
    choices: Choices
    arguments: PageArguments
    data: DataArguments
    guide: Guide

    @property
    def model(self) -> Net2NetTransformer:
        """The run's."""
        return self.loaded.model

    def model_of(self, drawn: Drawn) -> Net2NetTransformer:
        """That of samples, to draw parts of them again; UserError if its run is gone."""
        if drawn.run != self.run and is_gone(drawn.run, self.arguments.resume):
            raise UserError(
                f"the run of this image, {name_of(drawn.run)}, is not there any more, so that "
                "nothing can be drawn with it; show another image, or press Sample"
            )
        return load(self.arguments.of(drawn.run), self.data).model

    def draw(self, settings: SampleSettings, link: Mapping[str, str]) -> Drawn:
        """Samples of the inputs, with these settings in place of those that are chosen."""
        assert self.inputs is not None
        requests = requests_for_inputs(self.model, self.inputs, self.kept, self.count)
        return draw(
            self.model,
            requests,
            settings,
            self.seed,
            shape=self.inputs.shape,
            run=self.run,
            link=link,
            keep=self.keep,
        )
