"""FID, Inception Score, KID, precision and recall of a set of images against another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from taming.command_line import flag
from taming.config import did_you_mean
from taming.devices import own_share
from taming.errors import UserError
from taming.evaluation.metrics.base import SEED, Metric, MetricSettings
from taming.evaluation.metrics.evaluators import ALL_METRICS, TORCH_FIDELITY, Evaluator
from taming.evaluation.metrics.extractor_files import default_layer
from taming.evaluation.metrics.feature_bank import FeatureBank
from taming.evaluation.metrics.features import Extractor, FeatureRequest
from taming.evaluation.metrics.fid import PerClass, class_distances
from taming.evaluation.metrics.set_metrics import METRICS
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.runner import Runner, SetFeatures
from taming.evaluation.sources.images import NO_LABEL, ImageSource
from taming.evaluation.sources.npz_images import NpzImages

ImageSet = ImageSource | Statistics
Features = SetFeatures | Statistics | None  # None: no metric needs the set
CLASSES, NEIGHBORS = "classes", "neighbors"  # requests beside those of metrics
METRICS_HELP = f"comma list of {', '.join(METRICS)}, or {ALL_METRICS} of the evaluator"


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


@dataclass(frozen=True)
class FidelitySettings:
    """What decides the numbers beside images and extractors; torch-fidelity's values by default.

    Raises UserError for an unknown metric, and settings below 1.
    """

    metrics: tuple[str, ...] = flag(("fid",), METRICS_HELP, parse=_names)
    layers: Mapping[str, str] = field(default_factory=dict)  # by metric, others than the usual
    per_class: bool = flag(False, "FID of every class, as a table and a plot")
    keep_features: bool = False  # keep the features of all images, to look for neighbors
    of_metrics: Mapping[str, MetricSettings] = field(default_factory=dict)  # see `metric_settings`
    evaluator: Evaluator = TORCH_FIDELITY  # whose definitions of metrics

    def __post_init__(self) -> None:
        check_metric_names((*self.metrics, *self.layers))
        if not self.metrics:
            raise UserError(f"--metrics names none; there are {', '.join(METRICS)}")
        for settings in self.of_metrics.values():
            for name, value in asdict(settings).items():
                if value < 1:
                    raise UserError(f"--{name} must be at least 1, not {value}")

    def of(self, name: str) -> MetricSettings:
        """The settings of a metric."""
        own, given = self.metric(name).settings, self.of_metrics.get(name)
        return given if given is not None and type(given) is own else own()

    def metric(self, name: str) -> Metric[Any]:
        """The evaluator's definition of a metric."""
        return self.evaluator.metric(name)

    def layer(self, name: str, extractor: str) -> str:
        """The extractor's layer that a metric takes."""
        return self.layers.get(name) or default_layer(extractor, self.metric(name).layer_of or name)

    def layers_of(self, names: Sequence[str], extractor: str) -> tuple[str, ...]:
        """The extractor's layers that these metrics take, each once."""
        return tuple(dict.fromkeys(self.layer(name, extractor) for name in names))

    def smallest_set(self, name: str) -> int:
        """How many images a metric needs of each set."""
        smallest = self.metric(name).smallest_set
        return 2 if smallest is None else smallest(self.of(name))

    def request(self, name: str, extractor: Extractor) -> FeatureRequest:
        """What a metric needs of a set."""
        metric, settings = self.metric(name), asdict(self.of(name))
        options = tuple((option, settings[flag]) for option, flag in metric.options.items())
        layer = self.layer(name, extractor.name)
        return FeatureRequest(metric.accumulator, extractor, layer, options)

    def describe(self, *names: str) -> dict[str, Any]:
        """What decides the numbers of these metrics, as JSON values."""
        about: dict[str, Any] = {}
        for name in names:
            about |= {**asdict(self.of(name)), **self.metric(name).facts}
        return about


def check_metric_names(names: Sequence[str]) -> None:
    """Raise UserError for a name of no metric."""
    for name in names:
        if name not in METRICS:
            raise UserError(f"there is no metric '{name}'{did_you_mean(name, METRICS)}")


@dataclass(frozen=True)
class Evaluation:
    """Numbers, and what they are about.

    `sets` are descriptions of "samples" and "reference", with the hashes of their images; `banks`,
    with `keep_features`, are the features of both.
    """

    metrics: dict[str, Any]  # by name, what `Metric.compute` gives: a number or a dict of numbers
    protocol: dict[str, Any]  # what decides them, as JSON values
    sets: dict[str, dict[str, Any]]
    classes: dict[int, float]  # with `per_class`, the Fréchet distance of every label
    banks: tuple[FeatureBank, FeatureBank] | None = None


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers by one name each: ("kid.mean", 0.1) of {"kid": {"mean": 0.1}}."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class FidelityEvaluator:
    """Evaluates one or more sets of samples against a reference, which is gone through once.

    Args:
        reference: images, or statistics for metrics that accept them; None if no metric needs it.
        extractor: of all layers that the metrics need, see `FidelitySettings.layers_of`.
        prc_extractor: another one for precision and recall, and other metrics of manifolds.

    Raises UserError if the metrics need what is not there.
    """

    def __init__(
        self,
        reference: ImageSet | None,
        extractor: Extractor,
        settings: FidelitySettings | None = None,
        prc_extractor: Extractor | None = None,
        runner: Runner | None = None,
    ) -> None:
        self.reference, self.settings = reference, settings or FidelitySettings()
        self.extractor, self.prc_extractor = extractor, prc_extractor or extractor
        self.runner = runner or Runner()
        self.requests = self._requests()
        self._reference_features: Features = None
        self.require_set("reference", reference)

    def _requests(self) -> dict[str, FeatureRequest]:
        """What each metric needs of a set, and what classes and neighbors need."""
        settings, requests = self.settings, {}
        for name in settings.metrics:
            manifold = settings.metric(name).of_manifold
            extractor = self.prc_extractor if manifold else self.extractor
            requests[name] = settings.request(name, extractor)
        layer = settings.layer("fid", self.extractor.name)
        if settings.per_class:
            requests[CLASSES] = FeatureRequest(PerClass, self.extractor, layer)
        if settings.keep_features:
            requests[NEIGHBORS] = FeatureRequest(FeatureBank, self.extractor, layer)
        return requests

    def _needed_of(self, role: str) -> list[str]:
        """Names of the requests that are made of a set."""
        names, metric = self.settings.metrics, self.settings.metric
        alone = {name for name in names if not metric(name).needs_reference}
        return [name for name in self.requests if role == "samples" or name not in alone]

    def requests_of(self, role: str, images: ImageSet | None) -> list[FeatureRequest]:
        """What has to be counted of the images of a set, "samples" or "reference"."""
        if images is None or isinstance(images, Statistics):
            return []
        needed = [name for name in self._needed_of(role) if self._known(name, role, images) is None]
        return [self.requests[name] for name in needed]

    def _known(self, name: str, role: str, images: ImageSet | None) -> Statistics | None:
        """Statistics that stand for a request: a file's, or those beside the ADM suite's images."""
        if isinstance(images, NpzImages):
            own = role == "reference" and self.settings.evaluator.known_references
            own = own and images.resizing.changes_nothing
            metric = self.settings.metric(name) if name in self.settings.metrics else None
            images = images.statistics if own and metric and metric.accepts_statistics else None
        return images.of(self.requests[name].layer) if isinstance(images, Statistics) else None

    def require_set(self, role: str, images: ImageSet | None) -> None:
        """Raise UserError if a set, "samples" or "reference", is not enough for the metrics."""
        needed = self._needed_of(role)
        if isinstance(images, Statistics):
            self._require_statistics(role, images, needed)
        elif images is not None:
            if self.settings.per_class and images.has_classes() is False:
                raise _without_classes(role)
            self._require_enough(role, len(images), needed)
        elif needed:
            raise UserError(f"{needed[0]} compares with a set of real images; give a REFERENCE")

    def _require_statistics(self, role: str, statistics: Statistics, needed: Sequence[str]) -> None:
        file = statistics.protocol.get("file", f"the statistics of the {role}")
        accepted = [name for name, metric in METRICS.items() if metric.accepts_statistics]
        for name in needed:
            if name not in accepted:
                raise UserError(
                    f"the {role} are statistics, which are enough for {', '.join(accepted)}; "
                    f"{name} needs the images themselves"
                )
            request = self.requests[name]
            statistics.of(request.layer).check(request.extractor, request.layer, file)

    def _require_enough(self, role: str, images: int, needed: Sequence[str]) -> None:
        """Before hours of work; the metrics check it again."""
        for name in (name for name in self.settings.metrics if name in needed):
            metric, least = self.settings.metric(name), self.settings.smallest_set(name)
            smaller = metric.smallest_flag
            if images < least:
                remedy = f" or a smaller {smaller}" if smaller else ""
                raise UserError(
                    f"{name} needs at least {least} images, and the {role} are {images}; give "
                    f"more{remedy}"
                )

    def __call__(self, samples: ImageSet) -> Evaluation | None:
        """The numbers of `samples`; None in processes other than that of rank 0.

        Raises UserError for too few or unreadable images, or NaN features.
        """
        self.require_set("samples", samples)
        if self._reference_features is None and self.reference is not None:
            self._reference_features = self._features("reference", self.reference)
        features = self._features("samples", samples)
        if own_share()[0] > 0:
            return None
        return self.evaluation(samples, features, self._reference_features)

    def _features(self, role: str, images: ImageSet) -> Features:
        return features_of_set(self.runner, images, self.requests_of(role, images), role)

    def evaluation(self, samples: ImageSet, features: Features, reference: Features) -> Evaluation:
        """The numbers, once `requests_of` both sets are fulfilled."""
        parts: dict[str, tuple[Any, Any]] = {
            name: (
                self._part(name, "samples", samples, features),
                self._part(name, "reference", self.reference, reference),
            )
            for name in self.requests
        }
        metrics: dict[str, Any] = {}
        for name in self.settings.metrics:
            compute = self.settings.metric(name).compute
            metrics[name] = compute(*parts[name], self.settings.of(name))
        sets = {"samples": describe_set(samples, features)}
        if self.reference is not None and (reference is not None or self._needed_of("reference")):
            sets["reference"] = describe_set(self.reference, reference)
        classes = {}
        if self.settings.per_class:
            for role, part in (("samples", features), ("reference", reference)):
                if not isinstance(part, SetFeatures) or (part.manifest.labels == NO_LABEL).any():
                    raise _without_classes(role)
            classes = class_distances(*parts[CLASSES])
            metrics["mean_fid_of_classes"] = sum(classes.values()) / len(classes)
        return Evaluation(metrics, self.describe(), sets, classes, parts.get(NEIGHBORS))

    def _part(self, name: str, role: str, images: ImageSet | None, features: Features) -> Any:
        """The accumulator of a request, or what stands for it."""
        if (known := self._known(name, role, images)) is not None:
            return known
        found = features.parts if isinstance(features, SetFeatures) else {}
        return found.get(self.requests[name])

    def describe(self) -> dict[str, Any]:
        """Extractors, layers and settings, as JSON values."""
        layers = {name: self.requests[name].layer for name in self.settings.metrics}
        about: dict[str, Any] = {"layers": layers, "metrics": list(self.settings.metrics)}
        about |= {"seed": SEED, "evaluator": self.settings.evaluator.name}
        about |= self.settings.describe(*self.settings.metrics)
        used = {request.extractor for request in self.requests.values()}
        # One extractor for everything is described once, under "extractor".
        extractors = {self.prc_extractor: "prc_extractor"} | {self.extractor: "extractor"}
        for extractor, name in extractors.items():
            if extractor in used:
                about[name] = extractor.describe()
        return about


def features_of_set(
    runner: Runner, images: ImageSet, requests: Sequence[FeatureRequest], role: str
) -> Features:
    """What `requests` ask of a set, in one pass; a reference's is kept for other evaluations."""
    if isinstance(images, Statistics):
        return images
    return runner.features(images, requests, role, role == "reference") if requests else None


def describe_set(images: ImageSet, features: Features) -> dict[str, Any]:
    """A set's description for results, with the hash of its images."""
    if isinstance(images, Statistics):
        about = {"images": images.count, "fingerprint": images.fingerprint}
        return {"kind": "statistics", **about, "protocol": dict(images.protocol)}
    manifest = features.manifest.describe() if isinstance(features, SetFeatures) else {}
    return {**images.describe(), **manifest}


def _without_classes(role: str) -> UserError:
    return UserError(
        f"--per_class needs classes, and the {role} have none; give class folders, or a dataset or "
        "a run with classes"
    )
