"""The table of evaluators: whose definition a number follows.

An evaluator is a network, what is done to images before it, and metrics of its features. To add
one, name it in `EVALUATORS`: `--evaluators`, results and their table follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taming.config import did_you_mean
from taming.errors import UserError
from taming.evaluation.metrics.base import Metric
from taming.evaluation.metrics.extractor_files import INCEPTION
from taming.evaluation.metrics.fid_spread import FID_SPREAD
from taming.evaluation.metrics.inception_score import ADM_INCEPTION_SCORE
from taming.evaluation.metrics.resizes import CLEAN, CMMD, DGM_EVAL, Resize
from taming.evaluation.metrics.set_metrics import METRICS

ALL_METRICS = "all"


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Whose numbers: a network, a resize and definitions of metrics."""

    name: str  # what `--evaluators` takes and results have
    extractor: str  # the network's name, see `Extractor`
    usual: tuple[str, ...]  # the metrics that it is known for, those of `--metrics all`
    source: str  # where its definition is published
    resize: Resize | None = None  # before the network; None: the network does it itself
    manifold_extractor: str | None = None  # of precision, recall, density, coverage; None: the same
    own_metrics: Mapping[str, Metric[Any]] = field(default_factory=dict)  # not those of `METRICS`
    known_references: bool = False  # whether statistics beside a reference's images are its own

    def metric(self, name: str) -> Metric[Any]:
        """Its definition of a metric."""
        return self.own_metrics.get(name) or METRICS[name]

    def of_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those metrics of `--metrics` that it is known for, and the spread of its FID.

        "all" names all that it is known for.
        """
        own = (*self.usual, FID_SPREAD.name)
        return self.usual if ALL_METRICS in names else tuple(name for name in names if name in own)


TORCH_FIDELITY = Evaluator(
    name="torch-fidelity",
    extractor=INCEPTION,
    usual=("fid", "isc", "kid", "prc", "density_coverage"),
    source="torch-fidelity 0.4",
    manifold_extractor="vgg16",
)
ADM = Evaluator(
    name="adm",
    extractor=INCEPTION,
    usual=("fid", "sfid", "isc", "prc"),
    source="evaluations/evaluator.py of openai/guided-diffusion",
    own_metrics={"isc": ADM_INCEPTION_SCORE},
    known_references=True,
)
CLEAN_FID = Evaluator(
    name="clean-fid",
    extractor=INCEPTION,
    usual=("fid", "kid"),
    source="Parmar et al. (2022), clean-fid 0.1.35",
    resize=CLEAN,
)
DINOV2 = Evaluator(
    name="dinov2",
    extractor="dinov2-vit-l-14",
    usual=("fid", "kid", "prc", "density_coverage"),
    source="Stein et al. (2023), dgm-eval",
    resize=DGM_EVAL,
)
CLIP = Evaluator(
    name="clip",
    extractor="clip-vit-l-14-336px",
    usual=("fid", "cmmd"),
    source="Jayasumana et al. (2024), CMMD",
    resize=CMMD,
)
EVALUATORS = {each.name: each for each in (TORCH_FIDELITY, ADM, CLEAN_FID, DINOV2, CLIP)}


def evaluator_named(name: str) -> Evaluator:
    """An entry of the table; UserError if there is none of that name."""
    if name not in EVALUATORS:
        raise UserError(f"there is no evaluator '{name}'{did_you_mean(name, EVALUATORS)}")
    return EVALUATORS[name]
