"""Seconds of one pass over images for all evaluators, against one pass for each of them.

    python benchmarks/evaluators.py

Every round goes through the same images in turn: once for all, and once for each; for the five
evaluators of the table, and for the eight programs that people use for the same numbers (KID,
density and coverage, and CMMD are programs of their own elsewhere). The networks have
random weights, which are as fast as trained ones, and the real size, but for two: a CPU takes
DINOv2 as ViT-S/14 for ViT-L/14, and CLIP as ViT-B/32 for ViT-L/14 at 336 pixels. Larger ones, which
are run once either way, bring the ratio nearer to 1.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure import interleaved, write_results
from PIL import Image
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor
from torchvision.models import vit_b_32

from taming.data.examples.rendering import render
from taming.errors import command
from taming.evaluation.cache import Cache
from taming.evaluation.metrics.dinov2 import VisionTransformer
from taming.evaluation.metrics.evaluators import EVALUATORS, Evaluator
from taming.evaluation.metrics.extractor_files import INCEPTION
from taming.evaluation.metrics.features import Extraction, make_extractors
from taming.evaluation.metrics.inception import Inception
from taming.evaluation.metrics.resizes import Resize
from taming.evaluation.metrics.set_metrics import metric_settings
from taming.evaluation.runner import Runner
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.tasks.fidelity import FidelityEvaluator, FidelitySettings
from taming.evaluation.tasks.side_by_side import SideBySide

CPU = torch.device("cpu")
DINOV2 = "dinov2-vit-s-14"
CLIP = "stand-in-of-clip"
# What is computed in a pass of its own: an evaluator, and its metrics.
FIVE = {name: (name, evaluator.usual) for name, evaluator in EVALUATORS.items()}
# Those that are several programs, each of which reads the images by itself.
DIVIDED = {
    "FID, IS, precision and recall": ("torch-fidelity", ("fid", "isc", "prc")),
    "KID": ("torch-fidelity", ("kid",)),
    "density and coverage": ("torch-fidelity", ("density_coverage",)),
    "FD-CLIP": ("clip", ("fid",)),
    "CMMD": ("clip", ("cmmd",)),
}
UNDIVIDED = {
    name: of for name, of in FIVE.items() if name not in {name for name, _ in DIVIDED.values()}
}
EIGHT = UNDIVIDED | DIVIDED


class ClipStandIn(FeatureExtractorBase):
    """A network of the size of CLIP's ViT-B/32."""

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        self.network = vit_b_32(weights=None)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.network(images / 127.5 - 1),)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("clip",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "clip"


def write_weights(folder: Path) -> dict[str, Path]:
    """Files of random weights by network."""
    files = {INCEPTION: folder / "inception.pth", DINOV2: folder / "dinov2.pth"}
    download = patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url")
    with download, patch.object(nn.Module, "load_state_dict"):
        inception = Inception(INCEPTION, ["2048"])
    for parameter in inception.parameters():
        if parameter.dim() > 1:  # kept in size, since numbers near 0 take a CPU much longer
            nn.init.kaiming_normal_(parameter)
    torch.save(inception.state_dict(), files[INCEPTION])
    torch.save(VisionTransformer(384, 12).state_dict(), files[DINOV2])
    return files


def write_images(folder: Path, count: int, first: int) -> FolderSource:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(render(first + number, 256, 256).image).save(folder / f"{number:04}.png")
    return FolderSource(folder, workers=0)


def passes(
    programs: Mapping[str, tuple[str, Sequence[str]]],
    sets: tuple[FolderSource, FolderSource],
    files: Mapping[str, Path],
    batch_size: int,
) -> dict[str, Callable[[], object]]:
    """One pass for all evaluators, as "together", and one for each program, by name."""
    sizes = metric_settings(isc_splits=2, kid_subset_size=len(sets[0]))
    settings, wanted = {}, {}
    for program, (name, metrics) in programs.items():
        evaluator = stand_in(name)
        settings[program] = FidelitySettings(tuple(metrics), of_metrics=sizes, evaluator=evaluator)
        layers = settings[program].layers_of(metrics, evaluator.extractor)
        weights = files.get(evaluator.extractor)
        wanted[program] = Extraction(evaluator.extractor, layers, weights, evaluator.resize)
    runner = Runner(batch_size, Cache(enabled=False))

    def evaluate(*names: str) -> Callable[[], object]:
        extractors = make_extractors([wanted[name] for name in names])

        def call() -> object:
            made = {
                name: FidelityEvaluator(sets[1], extractor, settings[name], runner=runner)
                for name, extractor in zip(names, extractors, strict=True)
            }
            return SideBySide(made, runner)(sets[0])

        return call

    return {"together": evaluate(*FIVE), **{name: evaluate(name) for name in programs}}


def stand_in(name: str) -> Evaluator:
    """An evaluator with a network that a CPU can run."""
    evaluator = EVALUATORS[name]
    if name == "dinov2":
        return replace(evaluator, extractor=DINOV2)
    if name == "clip":
        return replace(evaluator, extractor=CLIP, resize=Resize(224, center=True))
    return evaluator


def shares(times: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The time of one pass over that of one pass each, of five evaluators and of eight programs.

    The same numbers come from both ways.
    """
    together = times["together"]["median"]
    named = {"five evaluators": FIVE, "eight programs": EIGHT}
    return {
        name: together / sum(times[program]["median"] for program in programs)
        for name, programs in named.items()
    }


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=50, help="in a round, half of them samples")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=25)
    parser.add_argument("--no_results", action="store_true", help="print, and write no file")
    args = parser.parse_args()
    register_feature_extractor(CLIP, ClipStandIn)
    with tempfile.TemporaryDirectory() as temporary:
        folder, half = Path(temporary), args.images // 2
        files = write_weights(folder)
        sets = write_images(folder / "a", half, 0), write_images(folder / "b", half, half)
        candidates = passes(FIVE | EIGHT, sets, files, args.batch_size)
        times = interleaved(candidates, CPU, args.rounds, warmup=1)
    ratios = shares(times)
    for name, ratio in ratios.items():
        print(f"one pass for {name} takes {ratio:.2f} of the time of one pass each")
    if not args.no_results:
        about: dict[str, Any] = {"images": args.images, "rounds": args.rounds}
        about |= {"batch_size": args.batch_size, "dtype": "fp32"}
        path = write_results("evaluators", CPU, {**about, "share": ratios, "seconds": times})
        print(f"{path.name} is in {path.parent}")


if __name__ == "__main__":
    main()
