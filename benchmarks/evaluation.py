"""Memory of an evaluation of many images, beside the networks that extract the features.

    python benchmarks/evaluation.py --memory

Stand-ins of the networks give random features of the sizes of the real ones: Inception's 2,048 and
1,008 logits, VGG16's 4,096, DINOv2's 1,024 (ViT-L) and CLIP's 768 (ViT-L). They go through the
evaluation itself, as far as it has metrics for them. Distances between images are computed for the
first blocks alone, and later ones are random, as they take the same memory.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure import write_results
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

from taming.evaluation.cache import Cache
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.set_metrics import METRICS, metric_settings
from taming.evaluation.runner import Runner
from taming.evaluation.sources.images import ImageSource, SourceImage
from taming.evaluation.tasks.fidelity import FidelityEvaluator, FidelitySettings

# Stand-ins by name: features by layer, and the metrics that take them.
NETWORKS: dict[str, tuple[Mapping[str, int], tuple[str, ...]]] = {
    "vgg16": ({"fc2": 4096}, ("prc", "density_coverage")),
    "inception": ({"pool": 2048, "logits": 1008}, ("fid", "isc", "kid")),
    "dinov2": ({"cls": 1024}, ("fid", "kid")),
    "clip": ({"embedding": 768}, ("fid", "kid", "cmmd")),
}
COMPUTED = 8  # calls of torch.cdist that are
KID_SUBSETS = 5  # one after another, each in the memory of one


class StandIn(FeatureExtractorBase):
    """Random features of the sizes that a network has, by the pixels of each image."""

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        self.layers = NETWORKS[name.partition("-")[2]][0]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        seed = int(images[0].flatten()[:4].long() @ torch.tensor([1, 256, 65536, 7]))
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randn(len(images), self.layers[layer], generator=generator)
            for layer in self.features_list
        )

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return metric

    @staticmethod
    def can_be_compiled() -> bool:
        return False


def stand_in(name: str) -> str:
    """Register a stand-in with torch-fidelity; returns its name there."""
    layers, _ = NETWORKS[name]

    class Named(StandIn):
        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return tuple(layers)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return list(layers)[-1 if metric == "isc" else 0]

    register_feature_extractor(f"stand_in-{name}", Named)
    return f"stand_in-{name}"


class Numbers(ImageSource):
    """So many images of four pixels, which hold the image's number."""

    def __init__(self, count: int, first: int) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def describe(self) -> dict[str, Any]:
        return {"kind": "numbers", "first": self.first}

    def content_key(self) -> str:
        return f"numbers from {self.first}"

    def images(self, indices: Sequence[int], batch_size: int) -> Iterator[SourceImage]:
        for index in indices:
            number = torch.tensor([self.first + index]).view(torch.uint8)[:4]
            yield SourceImage(index, number.view(1, 2, 2).expand(3, 2, 2))


@contextmanager
def few_distances(computed: int) -> Iterator[None]:
    """The first calls of torch.cdist compute; later ones give noise of the same size."""
    real, calls, noise = torch.cdist, itertools.count(), torch.rand(10**7)

    def cdist(a: Tensor, b: Tensor) -> Tensor:
        if next(calls) < computed:
            return real(a, b)
        return noise[: len(a) * len(b)].view(len(a), len(b))

    with patch.object(torch, "cdist", cdist):
        yield


class Memory:
    """The most memory that the process has in MB beyond `start`, while a thread looks at it.

    `anonymous` is what it has taken; `mapped` is with those parts of files that the system keeps in
    memory for it, and could forget.
    """

    def __init__(self, start: Mapping[str, float], every: float = 0.02) -> None:
        self.start, self.every = start, every
        self.most = dict.fromkeys(start, 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    @staticmethod
    def now() -> dict[str, float]:
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        kilobytes = {line[0]: int(line[1]) for line in lines if line[0].startswith("Rss")}
        anonymous = kilobytes["RssAnon:"] + kilobytes["RssShmem:"]
        return {"anonymous": anonymous / 1e3, "mapped": (anonymous + kilobytes["RssFile:"]) / 1e3}

    def _look(self) -> None:
        while not self._stop.wait(self.every):
            for name, megabytes in self.now().items():
                self.most[name] = max(self.most[name], megabytes - self.start[name])

    def __enter__(self) -> dict[str, float]:
        self._thread.start()
        return self.most

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def measure(images: int, batch_size: int) -> Iterator[dict[str, Any]]:
    """Peaks of one pass per network, and of the metrics behind it.

    What has been counted of the references by earlier networks stays, as in an evaluation by all.
    """
    found: dict[str, Any] = {}
    evaluators, start_memory = [], Memory.now()
    for name, (_, metrics) in NETWORKS.items():
        there = tuple(metric for metric in metrics if metric in METRICS)
        if not there:
            continue
        extractor = Extractor(stand_in(name))
        evaluator = FidelityEvaluator(
            Numbers(images, 0),
            extractor,
            FidelitySettings(there, of_metrics=metric_settings(kid_subsets=KID_SUBSETS)),
            runner=Runner(batch_size, Cache(enabled=False)),
        )
        evaluators.append(evaluator)
        with Memory(start_memory) as most, few_distances(COMPUTED):
            evaluator(Numbers(images, images))
        found[name] = {
            "metrics": list(there),
            "most_megabytes": {kind: round(value) for kind, value in most.items()},
        }
        print(name, found[name], flush=True)
        yield found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Memory of an evaluation, beside the networks.")
    parser.add_argument("--memory", action="store_true", required=True, help="measure memory")
    parser.add_argument("--images", type=int, default=50_000, help="of each set")
    parser.add_argument("--batch_size", type=int, default=50, help="images at once")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        sizes = {"images": args.images, "batch_size": args.batch_size, "rounds": 1}
        sizes["cdist_computed"] = COMPUTED
        for found in measure(args.images, args.batch_size):
            write_results("evaluation-memory", torch.device("cpu"), {**sizes, "networks": found})


if __name__ == "__main__":
    main()
