"""Flags that choose evaluators and their networks, as dataclasses, and what they name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taming.command_line import flag
from taming.errors import UserError
from taming.evaluation.arguments import (
    ExtractorArguments,
    extractor_dtype,
    extractor_name,
    fidelity_settings,
)
from taming.evaluation.metrics.evaluators import (
    ALL_METRICS,
    EVALUATORS,
    TORCH_FIDELITY,
    Evaluator,
    evaluator_named,
)
from taming.evaluation.metrics.extractor_files import INCEPTION
from taming.evaluation.metrics.features import Extraction, Extractor, make_extractors
from taming.evaluation.runner import Runner
from taming.evaluation.tasks.fidelity import (
    FidelityEvaluator,
    FidelitySettings,
    ImageSet,
    check_metric_names,
)
from taming.evaluation.tasks.side_by_side import SideBySide

EVALUATORS_HELP = f"comma list of {', '.join(EVALUATORS)}: all of them in one pass over the images"


def _evaluators(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"name at least one of {', '.join(EVALUATORS)}")
    return tuple(evaluator_named(name).name for name in names)


def _name_and_file(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not equals or not file:
        raise UserError(f"give EVALUATOR=FILE such as dinov2=weights.pth, not '{text}'")
    return evaluator_named(name).name, Path(file)


@dataclass(frozen=True, kw_only=True)
class FidelityExtractorArguments(ExtractorArguments):
    """Whose numbers, by which networks."""

    evaluators: tuple[str, ...] = flag((TORCH_FIDELITY.name,), EVALUATORS_HELP, parse=_evaluators)
    evaluator_weights: tuple[tuple[str, Path], ...] = flag(
        (),
        "the weights file of an evaluator's network (may be repeated)",
        metavar="EVALUATOR=FILE",
        parse=_name_and_file,
        repeated=True,
    )
    prc_extractor: str | None = flag(
        None, "another one for precision, recall, density and coverage of torch-fidelity"
    )
    prc_weights: Path | None = flag(None, "its weights file")

    def __post_init__(self) -> None:
        unused = {name for name, _ in self.evaluator_weights} - set(self.evaluators)
        if unused:
            raise UserError(
                f"--evaluator_weights {min(unused)}: it is not among --evaluators "
                f"{','.join(self.evaluators)}; name it there too"
            )
        for name in ("extractor", "layer", "prc_extractor", "prc_weights"):
            if vars(self)[name] and TORCH_FIDELITY.name not in self.evaluators:
                raise UserError(
                    f"--{name} is of the evaluator torch-fidelity, which --evaluators does not "
                    "name; leave it out"
                )

    def settings(
        self, args: argparse.Namespace, keep_features: bool = False
    ) -> list[FidelitySettings]:
        """What each of --evaluators computes of --metrics.

        Raises UserError for unknown metrics, those that none of the evaluators has, and an
        evaluator that has none of them.
        """
        self._check_metrics([name for name in args.metrics if name != ALL_METRICS])
        return [
            self._settings(evaluator_named(name), args, keep_features) for name in self.evaluators
        ]

    def _check_metrics(self, names: Sequence[str]) -> None:
        check_metric_names(names)
        if self._takes_all(evaluator_named(self.evaluators[0])):
            return
        for name in names:
            having = [each for each in EVALUATORS.values() if each.of_names([name])]
            if not {each.name for each in having} & set(self.evaluators):
                raise UserError(
                    f"{name} is no metric of --evaluators {','.join(self.evaluators)}, but of "
                    f"{', '.join(each.name for each in having)}"
                )

    def _takes_all(self, evaluator: Evaluator) -> bool:
        """Whether an evaluator computes what it is not known for: of any extractor's features."""
        return evaluator is TORCH_FIDELITY and len(self.evaluators) == 1

    def _settings(
        self, evaluator: Evaluator, args: argparse.Namespace, keep_features: bool
    ) -> FidelitySettings:
        names, layers = tuple(args.metrics), {}
        if ALL_METRICS in names or not self._takes_all(evaluator):
            names = evaluator.of_names(names)
        if not names and args.metrics:
            raise UserError(
                f"the evaluator {evaluator.name} has none of {','.join(args.metrics)}; it has "
                f"{','.join(evaluator.usual)}, and --metrics all names them"
            )
        if evaluator is TORCH_FIDELITY:
            layers = dict(self.layer)
        rest: dict[str, Any] = {"metrics": names, "evaluator": evaluator}
        if evaluator.name != self.evaluators[0]:
            rest |= {"per_class": False}  # of the first evaluator alone
            keep_features = False
        return fidelity_settings(args, layers, keep_features, **rest)

    def extractions(self, settings: FidelitySettings) -> tuple[Extraction, Extraction]:
        """The network of an evaluator, and the one for metrics of manifolds (often the same).

        Raises UserError for unknown names.
        """
        evaluator = settings.evaluator
        name, weights = self._network(evaluator)
        prc_name, prc_weights = name, None
        if evaluator is TORCH_FIDELITY:
            prc_weights = self.prc_weights
            other = self.prc_extractor or self.extractor or evaluator.manifold_extractor
            prc_name = extractor_name(other or name)
        own = [metric for metric in settings.metrics if not settings.metric(metric).of_manifold]
        own += ["fid"] if settings.per_class or settings.keep_features else []
        manifold = [metric for metric in settings.metrics if settings.metric(metric).of_manifold]
        shared = name == prc_name and prc_weights in (None, weights)

        def wanted(name: str, metrics: Sequence[str], weights: Path | None) -> Extraction:
            return Extraction(name, settings.layers_of(metrics, name), weights, evaluator.resize)

        if not shared and manifold and not own:
            one = wanted(prc_name, manifold, prc_weights)
        elif shared or not manifold:
            one = wanted(name, [*own, *settings.metrics], weights)
        else:
            return wanted(name, own, weights), wanted(prc_name, manifold, prc_weights)
        return one, one

    def _network(self, evaluator: Evaluator) -> tuple[str, Path | None]:
        """An evaluator's network and its weights file."""
        own = extractor_name(self.extractor or INCEPTION)
        name = own if evaluator is TORCH_FIDELITY else evaluator.extractor
        weights = dict(self.evaluator_weights).get(evaluator.name)
        return name, weights or (self.extractor_weights if name == own else None)

    def extractors(
        self,
        settings: Sequence[FidelitySettings],
        device: torch.device,
        precision: str,
        compiled: bool,
    ) -> list[tuple[Extractor, Extractor]]:
        """For each of `settings`, the extractor and the one for metrics of manifolds.

        Raises UserError for unknown names and layers, or weights that are not there.
        """
        wanted = [one for each in settings for one in self.extractions(each)]
        dtype = extractor_dtype(precision, device)
        made = make_extractors(wanted, device=device, dtype=dtype, compiled=compiled)
        return list(zip(made[::2], made[1::2], strict=True))


def make_evaluator(
    reference: ImageSet | None,
    settings: Sequence[FidelitySettings],
    extractors: Sequence[tuple[Extractor, Extractor]],
    runner: Runner,
) -> FidelityEvaluator | SideBySide:
    """What evaluates samples: torch-fidelity's evaluator alone, or one or several by their names.

    Raises UserError if the metrics need what is not there.
    """
    made = {
        each.evaluator.name: FidelityEvaluator(reference, first, each, second, runner)
        for each, (first, second) in zip(settings, extractors, strict=True)
    }
    alone = [*made] == [TORCH_FIDELITY.name]
    return made[TORCH_FIDELITY.name] if alone else SideBySide(made, runner)
