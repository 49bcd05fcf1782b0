"""FID, Inception Score, KID, precision and recall of a set of images against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taming.distributed import own_share
from taming.errors import UserError
from taming.evaluation.metrics.features import Extractor, default_layer
from taming.evaluation.metrics.fidelity import (
    FeatureBank,
    PerClass,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.runner import Gathered, Need, Reading
from taming.evaluation.sources.folder import ImageSource
from taming.evaluation.tasks.protocol import Protocol

ImageSet = ImageSource | Statistics
KINDS_NEEDED = {"fid": "moments", "isc": "scores", "kid": "bank", "prc": "bank"}


@dataclass(frozen=True)
class Evaluation:
    """Numbers, and what they are about.

    Attributes:
        metrics: "fid": a number, "isc" and "kid": "mean" and "std", "prc": "precision", "recall"
            and "f_score".
        protocol: what decides them, as JSON values.
        sets: descriptions of "samples" and "reference", with the hashes of their images.
        classes: with `per_class`, the Fréchet distance of every label.
        banks: with `Protocol.banks`, the features of samples and reference.
    """

    metrics: dict[str, Any]
    protocol: dict[str, Any]
    sets: dict[str, dict[str, Any]]
    classes: dict[int, float]
    banks: tuple[FeatureBank, FeatureBank] | None = None


class FidelityEvaluator:
    """Evaluates one or more sets of samples against a reference, which is gone through once.

    Args:
        reference: images or, for FID alone, their statistics; None where only the Inception Score
            is wanted.
        extractor: of all layers that the metrics need, see `needed_layers`.
        prc_extractor: another one for precision and recall.
        reading: batch size, cache.

    Raises:
        UserError: where the metrics need what is not there.
    """

    def __init__(
        self,
        reference: ImageSet | None,
        extractor: Extractor,
        protocol: Protocol | None = None,
        prc_extractor: Extractor | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.reference, self.protocol = reference, protocol or Protocol()
        self.extractor, self.prc_extractor = extractor, prc_extractor or extractor
        self.reading = reading or Reading()
        self.needs = self._needs()
        self._gathered: Gathered | Statistics | None = None
        self._require_set("reference", reference)

    def _extractor(self, metric: str) -> Extractor:
        return self.prc_extractor if metric == "prc" else self.extractor

    def _needs(self) -> dict[str, Need]:
        """What each metric needs of a set."""
        protocol = self.protocol
        kinds = {metric: (metric, KINDS_NEEDED[metric]) for metric in protocol.metrics}
        if protocol.per_class:
            kinds["classes"] = ("fid", "classes")
        if protocol.banks:
            kinds["neighbours"] = ("fid", "bank")
        needs = {}
        for name, (metric, kind) in kinds.items():
            extractor = self._extractor(metric)
            layer = protocol.layers.get(metric) or default_layer(extractor.name, metric)
            splits = protocol.isc_splits if kind == "scores" else 0
            needs[name] = Need(kind, extractor, layer, splits)
        return needs

    def _require_set(self, role: str, images: ImageSet | None) -> None:
        wanted = [name for name in self.needs if role == "samples" or name != "isc"]
        if images is None and wanted:
            raise UserError(f"{wanted[0]} compares with a set of real images; give a REFERENCE")
        if isinstance(images, Statistics):
            if others := [name for name in wanted if name != "fid"]:
                raise UserError(
                    f"the {role} are statistics, which are enough for fid; {others[0]} needs the "
                    "images themselves"
                )
            if "fid" in self.needs:
                file = images.protocol.get("file", f"the statistics given as {role}")
                images.check(self.extractor, self.needs["fid"].layer, file)
        elif images is not None:
            if self.protocol.per_class and getattr(images, "labels", ()) in (None, [None]):
                raise _unlabelled(role)
            self._require_enough(role, len(images))

    def _require_enough(self, role: str, images: int) -> None:
        """Before hours of work; the metrics check it again."""
        p = self.protocol
        least = {"fid": 2, "kid": max(p.kid_subset_size, 2), "prc": p.prc_neighbours + 1}
        flags = {"kid": "--kid_subset_size", "isc": "--isc_splits", "prc": "--prc_neighbours"}
        if role == "samples":
            least["isc"] = p.isc_splits
        for metric, number in least.items():
            if metric in p.metrics and images < number:
                way = f" or a smaller {flags[metric]}" if metric in flags else ""
                raise UserError(
                    f"{metric} needs at least {number} images, and the {role} are {images}; give "
                    f"more{way}"
                )

    def __call__(self, samples: ImageSet) -> Evaluation | None:
        """The numbers of `samples`; None in processes other than that of rank 0.

        Raises:
            UserError: for too few or unreadable images, or NaN features.
        """
        self._require_set("samples", samples)
        if self._gathered is None and self.reference is not None:
            needs = [need for name, need in self.needs.items() if name != "isc"]
            self._gathered = self._gather(self.reference, needs, "reference")
        gathered = self._gather(samples, list(self.needs.values()), "samples")
        return self._evaluation(samples, gathered) if own_share()[0] == 0 else None

    def _gather(
        self, images: ImageSet, needs: Sequence[Need], role: str
    ) -> Gathered | Statistics | None:
        if isinstance(images, Statistics):
            return images
        return self.reading.gather(images, needs, role, role == "reference") if needs else None

    def _evaluation(self, samples: ImageSet, gathered: Gathered | Statistics | None) -> Evaluation:
        metrics = {name: self._metric(name, gathered) for name in self.protocol.metrics}
        sets = {"samples": describe(samples, gathered)}
        if self._gathered is not None and self.reference is not None:
            sets["reference"] = describe(self.reference, self._gathered)
        classes = self._classes(gathered) if self.protocol.per_class else {}
        if classes:
            metrics["mean_fid_of_classes"] = sum(classes.values()) / len(classes)
        banks = None
        if self.protocol.banks:
            banks = self._part("neighbours", gathered), self._part("neighbours", self._gathered)
        return Evaluation(metrics, self.describe(), sets, classes, banks)

    def _metric(self, name: str, samples: Any) -> Any:
        first, second = (self._part(name, of) for of in (samples, self._gathered))
        p = self.protocol
        if name == "fid":
            return frechet_distance(first, second)
        if name == "isc":
            return dict(zip(("mean", "std"), first.result(), strict=True))
        if name == "kid":
            distance = kernel_distance(first, second, p.kid_subsets, p.kid_subset_size)
            return dict(zip(("mean", "std"), distance, strict=True))
        scores = precision_recall(first, second, p.prc_neighbours)
        return dict(zip(("precision", "recall", "f_score"), scores, strict=True))

    def _part(self, name: str, gathered: Gathered | Statistics | None) -> Any:
        if isinstance(gathered, Gathered):
            return gathered.parts.get(self.needs[name])
        return gathered

    def _classes(self, samples: Any) -> dict[int, float]:
        for role, found in (("samples", samples), ("reference", self._gathered)):
            if not (isinstance(found, Gathered) and found.content.labelled()):
                raise _unlabelled(role)
        first, second = (self._part("classes", of) for of in (samples, self._gathered))
        return class_distances(first, second)

    def describe(self) -> dict[str, Any]:
        """Extractors, layers and settings, as JSON values."""
        layers = {metric: self.needs[metric].layer for metric in self.protocol.metrics}
        found = {"layers": layers, **self.protocol.describe()}
        used = {need.extractor: None for need in self.needs.values()}
        for name, extractor in (("", self.extractor), ("prc_", self.prc_extractor)):
            if extractor in used:
                about = {k: v for k, v in extractor.describe().items() if k != "layers"}
                found |= {f"{name}extractor": about}
                del used[extractor]
        return found


def evaluate_fidelity(
    samples: ImageSet,
    reference: ImageSet | None,
    extractor: Extractor,
    protocol: Protocol | None = None,
    prc_extractor: Extractor | None = None,
    reading: Reading | None = None,
) -> Evaluation | None:
    """The numbers of one set of samples: see `FidelityEvaluator`. None in ranks above 0.

    What an interrupted evaluation had done is not done again.
    """
    evaluator = FidelityEvaluator(reference, extractor, protocol, prc_extractor, reading)
    evaluation = evaluator(samples)
    evaluator.reading.finish()
    return evaluation


def needed_layers(name: str, metrics: Sequence[str], given: Mapping[str, str]) -> tuple[str, ...]:
    """Layers of the extractor `name` for these metrics, those of `given` first of all."""
    layers = [given.get(metric) or default_layer(name, metric) for metric in metrics]
    return tuple(dict.fromkeys(layers))


def describe(images: ImageSet, gathered: Gathered | Statistics | None) -> dict[str, Any]:
    """A set's description for results, with the hash of its images."""
    if isinstance(images, Statistics):
        about = {"images": images.count, "fingerprint": images.fingerprint}
        return {"kind": "statistics", **about, "protocol": dict(images.protocol)}
    content = gathered.content.describe() if isinstance(gathered, Gathered) else {}
    return {**images.describe(), **content}


def _unlabelled(role: str) -> UserError:
    return UserError(
        f"--per_class needs classes, and the {role} have none; give class folders, or a dataset or "
        "a run with classes"
    )


def class_distances(samples: PerClass, reference: PerClass) -> dict[int, float]:
    """The Fréchet distance of each label that both sets have at least 2 images of.

    Raises:
        UserError: where there is none.
    """
    both = [
        label
        for label, moments in sorted(samples.moments.items())
        if moments.count > 1 and label in reference.moments and reference.moments[label].count > 1
    ]
    if not both:
        raise UserError(
            "no class has 2 images in both sets; class folders have to be named alike on both "
            "sides, or by the classes' numbers"
        )
    return {n: frechet_distance(samples.moments[n], reference.moments[n]) for n in both}
