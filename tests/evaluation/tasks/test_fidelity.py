from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from taming.errors import UserError
from taming.evaluation.cache import Cache
from taming.evaluation.metrics.evaluators import ADM
from taming.evaluation.metrics.features import Extractor, FeatureRequest
from taming.evaluation.metrics.fid import Moments
from taming.evaluation.metrics.set_metrics import metric_settings
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.runner import Runner
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.npz_images import NpzImages
from taming.evaluation.sources.resize import CENTER, PILLOW, Resizing
from taming.evaluation.tasks.fidelity import (
    Evaluation,
    FidelityEvaluator,
    FidelitySettings,
)
from tests.kit.extractor import TinyExtractor, register_tiny
from tests.kit.images import image_classes, image_folder

SMALL = metric_settings(isc_splits=3, kid_subsets=5, kid_subset_size=10)
ALL = FidelitySettings(("fid", "isc", "kid", "prc"), of_metrics=SMALL)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sets")
    return image_folder(root / "a", 30), image_folder(root / "b", 40, seed=100)


@pytest.fixture(scope="module")
def tiny() -> Extractor:
    return Extractor(register_tiny())


def settings(metric: str, **values: int) -> FidelitySettings:
    return FidelitySettings((metric,), of_metrics=metric_settings(**values))


def runner(tmp_path: Path | None = None, batch_size: int = 7, **options: Any) -> Runner:
    cache = Cache(tmp_path, enabled=tmp_path is not None)
    return Runner(batch_size, cache, **options)


def evaluate(a: Any, b: Any, tiny: Extractor, *args: Any, **options: Any) -> Evaluation:
    evaluator = FidelityEvaluator(b, tiny, *args, **{"runner": runner(), **options})
    found = evaluator(a)
    evaluator.runner.finish()
    assert found is not None
    return found


def numbers(evaluation: Evaluation) -> dict[str, float]:
    found = {"fid": evaluation.metrics["fid"]}
    for name in ("isc", "kid", "prc"):
        found |= {f"{name}.{key}": value for key, value in evaluation.metrics[name].items()}
    return found


def test_equal_to_torch_fidelity(sets: tuple[Path, Path], tiny: Extractor, tmp_path: Path) -> None:
    found = evaluate(*map(FolderSource, sets), tiny, ALL)
    theirs = torch_fidelity.calculate_metrics(
        input1=str(sets[0]),
        input2=str(sets[1]),
        feature_extractor=tiny.name,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        isc_splits=3,
        kid_subsets=5,
        kid_subset_size=10,
        cuda=False,
        cache=False,
        verbose=False,
    )
    names = {
        "fid": "frechet_inception_distance",
        "isc.mean": "inception_score_mean",
        "isc.std": "inception_score_std",
        "kid.mean": "kernel_inception_distance_mean",
        "kid.std": "kernel_inception_distance_std",
        "prc.precision": "precision",
        "prc.recall": "recall",
        "prc.f_score": "f_score",
    }
    for name, value in numbers(found).items():
        assert value == pytest.approx(theirs[names[name]], rel=1e-6, abs=1e-9), name
    assert found.sets["samples"]["fingerprint"] == FolderSource(sets[0]).fingerprint()
    assert found.protocol["layers"] == {"fid": "16", "isc": "logits", "kid": "16", "prc": "16"}
    assert found.protocol["extractor"]["weights_sha256"] == tiny.weights_hash


class Shuffled(FolderSource):
    """The same set, whose images arrive in another order."""

    def batches(self, batch_size: int, *args: Any, **options: Any) -> Any:
        arrived = [p for batch in super().batches(batch_size, *args, **options) for p in batch]
        order = np.random.RandomState(3).permutation(len(arrived))
        for first in range(0, len(arrived), batch_size):
            yield [arrived[n] for n in order[first : first + batch_size]]


@pytest.mark.parametrize("batch_size", [1, 11, 100])
def test_neither_order_nor_batch_size_count(
    sets: tuple[Path, Path], tiny: Extractor, batch_size: int
) -> None:
    expected = evaluate(*map(FolderSource, sets), tiny, ALL)
    found = evaluate(*map(Shuffled, sets), tiny, ALL, runner=runner(batch_size=batch_size))
    assert numbers(found) == pytest.approx(numbers(expected), rel=1e-5, abs=1e-6)
    assert found.sets["samples"]["fingerprint"] == expected.sets["samples"]["fingerprint"]


def test_a_set_and_itself(sets: tuple[Path, Path], tiny: Extractor) -> None:
    found = numbers(evaluate(FolderSource(sets[0]), FolderSource(sets[0]), tiny, ALL))
    assert found["fid"] == pytest.approx(0, abs=1e-6)
    assert found["prc.precision"] == found["prc.recall"] == 1


class Counting(FolderSource):
    read = 0

    def __init__(self, path: Path) -> None:
        super().__init__(path, workers=0)

    def load(self, index: int) -> Any:
        self.read += 1
        return super().load(index)


def test_the_reference_is_read_once(
    sets: tuple[Path, Path], tiny: Extractor, tmp_path: Path
) -> None:
    samples, first, second, third = (Counting(path) for path in (sets[0], *[sets[1]] * 3))
    expected = evaluate(samples, first, tiny, ALL, runner=runner(tmp_path))
    again = evaluate(samples, second, tiny, ALL, runner=runner(tmp_path))
    assert (samples.read, first.read, second.read) == (60, 40, 0)
    assert again.metrics == expected.metrics
    assert again.sets == expected.sets
    # What the cache lacks is computed, here a bank of another layer.
    other = replace(ALL, layers={"kid": "logits"})
    assert (
        numbers(evaluate(samples, third, tiny, other, runner=runner(tmp_path)))["fid"]
        == (expected.metrics["fid"])
    )
    assert third.read == 40
    alone = Counting(sets[1])  # without a cache, for several sets of samples
    evaluator = FidelityEvaluator(alone, tiny, runner=runner())
    for path in sets:
        assert evaluator(FolderSource(path)) is not None
    assert alone.read == 40


def test_changed_images_are_not_taken_from_the_cache(tiny: Extractor, tmp_path: Path) -> None:
    a, b = image_folder(tmp_path / "a", 5), image_folder(tmp_path / "b", 6, seed=100)
    first = evaluate(FolderSource(a), FolderSource(b), tiny, runner=runner(tmp_path / "c"))
    image_folder(b, 6, seed=200)
    second = evaluate(FolderSource(a), FolderSource(b), tiny, runner=runner(tmp_path / "c"))
    alone = evaluate(FolderSource(a), FolderSource(b), tiny)
    assert second.metrics == alone.metrics
    assert second.metrics != first.metrics


def test_statistics_as_reference(sets: tuple[Path, Path], tiny: Extractor, tmp_path: Path) -> None:
    source = FolderSource(sets[1])
    request = FeatureRequest(Moments, tiny, "16")
    moments: Any = runner().features(source, [request], "images").parts[request]
    about = (tiny.name, "16", tiny.weights_hash, moments.count, source.fingerprint())
    statistics = Statistics(moments.mean, moments.covariance, *about)
    found = evaluate(FolderSource(sets[0]), statistics, tiny)
    expected = evaluate(FolderSource(sets[0]), source, tiny)
    assert found.metrics["fid"] == pytest.approx(expected.metrics["fid"], rel=1e-6)
    about = expected.sets["reference"]
    assert found.sets["reference"]["fingerprint"] == about["fingerprint"]
    assert found.sets["reference"]["images"] == 40
    with pytest.raises(UserError, match="kid needs the images themselves"):
        evaluate(source, statistics, tiny, replace(ALL, metrics=("fid", "kid")))
    with pytest.raises(UserError, match="of another extractor"):
        evaluate(source, replace(statistics, weights_hash="0" * 64), tiny)


def test_statistics_beside_images_stand_for_these_as_a_reference_alone(
    sets: tuple[Path, Path], tiny: Extractor, tmp_path: Path
) -> None:
    """Of images as they are, by the evaluator whose files have them."""
    np.savez(
        tmp_path / "a.npz", np.zeros((3, 8, 8, 3), np.uint8), mu=np.zeros(16), sigma=np.eye(16)
    )
    images, of_adm = NpzImages(tmp_path / "a.npz", 0), replace(ADM, extractor=tiny.name)
    for evaluator, expected in ((of_adm, 0), (replace(of_adm, known_references=False), 1)):
        own = FidelitySettings(("fid",), {"fid": "16"}, evaluator=evaluator)
        one = FidelityEvaluator(FolderSource(sets[1]), tiny, own, runner=runner())
        assert len(one.requests_of("reference", images)) == expected
        assert len(one.requests_of("samples", images)) == 1
    images.resizing = Resizing(PILLOW, CENTER, (4, 4))
    own = FidelitySettings(("fid",), {"fid": "16"}, evaluator=of_adm)
    resized = FidelityEvaluator(FolderSource(sets[1]), tiny, own, runner=runner())
    assert len(resized.requests_of("reference", images)) == 1


def test_other_extractor_for_precision_and_recall(
    sets: tuple[Path, Path], tiny: Extractor, tmp_path: Path
) -> None:
    weights = tmp_path / "other.pth"
    state = {name: tensor.flip(0) + 0.1 for name, tensor in tiny.module.state_dict().items()}
    torch.save(state, weights)
    other = Extractor(tiny.name, ["16"], weights)
    sources = [FolderSource(path) for path in sets]
    found = evaluate(*sources, tiny, ALL, other)
    by_other = evaluate(*sources, other, FidelitySettings(("prc",)))
    assert found.metrics["prc"] == by_other.metrics["prc"]
    assert found.metrics["fid"] == evaluate(*sources, tiny, ALL).metrics["fid"]
    assert found.protocol["prc_extractor"]["weights_sha256"] == other.weights_hash
    assert found.protocol["extractor"]["weights_sha256"] == tiny.weights_hash


def test_classes(tiny: Extractor, tmp_path: Path) -> None:
    a = FolderSource(image_classes(tmp_path / "a", {"0": 6, "3": 8, "7": 1}))
    b = FolderSource(image_classes(tmp_path / "b", {"0": 9, "3": 7, "5": 4}, seed=300))
    found = evaluate(a, b, tiny, FidelitySettings(per_class=True))
    alone = [FolderSource(tmp_path / name / "3") for name in "ab"]
    expected = evaluate(*alone, tiny).metrics["fid"]
    assert list(found.classes) == [0, 3]
    assert found.classes[3] == pytest.approx(expected, rel=1e-6)
    assert found.metrics["mean_fid_of_classes"] == pytest.approx(sum(found.classes.values()) / 2)
    with pytest.raises(UserError, match="the samples have none"):
        evaluate(alone[0], b, tiny, FidelitySettings(per_class=True))
    other = FolderSource(image_classes(tmp_path / "c", {"8": 3}))
    with pytest.raises(UserError, match="no class has 2 images in both sets"):
        evaluate(a, other, tiny, FidelitySettings(per_class=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (FidelitySettings(("kid",)), "kid needs at least 1000 images.*smaller --kid_subset_size"),
        (
            settings("isc", isc_splits=31),
            "isc needs at least 31 images, and the samples are 30",
        ),
        (settings("prc", prc_neighbours=30), "prc needs at least 31 images"),
    ],
)
def test_too_few_images(
    sets: tuple[Path, Path], tiny: Extractor, wrong: FidelitySettings, message: str
) -> None:
    samples, reference = Counting(sets[0]), Counting(sets[1])
    with pytest.raises(UserError, match=message):
        evaluate(samples, reference, tiny, wrong)
    assert samples.read == 0  # nobody waits for hours to hear it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("fdi",)}, "no metric 'fdi'; did you mean 'fid'"),
        ({"metrics": ()}, "--metrics names none"),
        ({"layers": {"lpips": "1"}}, "no metric 'lpips'"),
    ],
)
def test_unknown_metrics(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FidelitySettings(**options)


def test_wrong_settings_of_metrics() -> None:
    with pytest.raises(UserError, match="--kid_subsets must be at least 1, not 0"):
        FidelitySettings(of_metrics=metric_settings(kid_subsets=0))
    with pytest.raises(TypeError, match="no metric has the setting splits"):
        metric_settings(splits=3)


def test_the_least_number_of_images_is_enough(sets: tuple[Path, Path], tiny: Extractor) -> None:
    for least in (settings("isc", isc_splits=30), settings("prc", prc_neighbours=29)):
        found = evaluate(*map(FolderSource, sets), tiny, least)
        assert found.sets["samples"]["images"] == 30


def test_some_images_without_a_class(tiny: Extractor, tmp_path: Path) -> None:
    """Which shows only when they are read."""

    class PartlyLabeled(FolderSource):
        def has_classes(self) -> bool | None:  # type: ignore[override]
            return None

        def load(self, index: int) -> Any:
            pixels, label, *rest = super().load(index)
            return pixels, label if index else None, *rest

    root = image_classes(tmp_path, {"0": 4, "1": 3})
    whole, part = FolderSource(root, workers=0), PartlyLabeled(root, workers=0)
    for pair, role in (((part, whole), "samples"), ((whole, part), "reference")):
        with pytest.raises(UserError, match=f"the {role} have none"):
            evaluate(*pair, tiny, FidelitySettings(per_class=True))


def test_no_reference(sets: tuple[Path, Path], tiny: Extractor) -> None:
    found = evaluate(FolderSource(sets[0]), None, tiny, settings("isc", isc_splits=3))
    assert list(found.sets) == ["samples"]
    with pytest.raises(UserError, match="give a REFERENCE"):
        FidelityEvaluator(None, tiny)


class Broken(TinyExtractor):
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(features / 0 for features in super().forward(images))


def test_features_that_are_no_numbers(sets: tuple[Path, Path]) -> None:
    if "broken" not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor("broken", Broken)
    with pytest.raises(UserError, match="NaN or infinity"):
        evaluate(*map(FolderSource, sets), Extractor("broken"))


def test_images_of_many_sizes(tiny: Extractor, tmp_path: Path) -> None:
    for n in range(6):
        image_folder(tmp_path / str(n), 3, seed=n, width=9 + n)
    source = FolderSource(tmp_path)
    found = evaluate(source, source, tiny)
    assert len(found.sets["samples"]["sizes"]) == 6
    alone = evaluate(source, source, tiny, runner=runner(batch_size=1))
    assert found.metrics["fid"] == pytest.approx(alone.metrics["fid"], abs=1e-6)


def test_a_set_that_loses_images(sets: tuple[Path, Path], tiny: Extractor) -> None:
    class Lossy(FolderSource):
        def batches(self, *args: Any, **options: Any) -> Any:
            yield from list(super().batches(*args, **options))[:-1]

    with pytest.raises(UserError, match="images did not arrive"):
        evaluate(Lossy(sets[0]), FolderSource(sets[1]), tiny)
