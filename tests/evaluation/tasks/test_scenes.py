"""Distances between scenes and between their objects, against what they are defined as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from taming.data.helper_types import Annotation
from taming.data.helper_types import BoundingBox as Box
from taming.errors import UserError
from taming.evaluation.cache import Cache
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.fid import Moments, frechet_distance
from taming.evaluation.metrics.set_metrics import metric_settings
from taming.evaluation.runner import Runner
from taming.evaluation.sources.resize import Resizing
from taming.evaluation.sources.scenes import (
    Layouts,
    RealScenes,
    SampledScenes,
    SceneImage,
    cut_objects,
    visible_boxes,
)
from taming.evaluation.tasks.fidelity import FidelitySettings
from taming.evaluation.tasks.scenes import SceneEvaluation, SceneRequest, evaluate_scenes
from taming.sampling import SampleSettings
from taming.sampling.scenes import Scene
from tests.evaluation.features import moments_of, scores_of
from tests.kit.extractor import register_tiny
from tests.kit.models import tiny_model, transformer_config
from tests.kit.scenes import SCENES, layouts, write_scenes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("examples"))


def sampled(layouts: Layouts, per_layout: int = 2, **changes: Any) -> SampledScenes:
    model = tiny_model(transformer_config(**SCENES))
    settings = SampleSettings(top_k=100)
    return SampledScenes(layouts, model, {"checkpoint_hash": "0"}, per_layout, settings, **changes)


def evaluate(
    samples: SampledScenes,
    cache: Path | None = None,
    batch_size: int = 4,
    isc_splits: int = 2,
    **changes: Any,
) -> SceneEvaluation:
    runner = Runner(batch_size, Cache(cache, enabled=cache is not None))
    of_metrics = metric_settings(isc_splits=isc_splits)
    settings = FidelitySettings(("fid", "isc"), of_metrics=of_metrics)
    found = evaluate_scenes(samples, Extractor(register_tiny()), runner, settings, **changes)
    assert found is not None
    return found


def scene_images(source: RealScenes | SampledScenes) -> dict[int, SceneImage]:
    batches = source.batches(3)
    return {p.index: p for batch in batches for p in batch if isinstance(p, SceneImage)}


def object_moments(images: list[SceneImage], min_side: float = 1.0) -> Moments:
    crops = torch.cat([cut_objects(p.pixels, p.boxes, min_side) for p in images])
    return moments_of(features(crops))


def features(images: Tensor) -> Tensor:
    return Extractor(register_tiny())(images)["16"]


def scene(*boxes: Box, **changes: Any) -> Scene:
    return Scene("s", [Annotation(0.1, "i", box, 0, "c") for box in boxes], **changes)


def assert_boxes(found: Sequence[Box], expected: Sequence[Box]) -> None:
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-12)


def test_boxes_are_those_that_the_image_shows() -> None:
    boxes = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.25, 0.5, 0.5), (0.0, 0.8, 0.1, 0.2)]
    assert_boxes(visible_boxes(scene(*boxes)), boxes)
    # The right half, twice as wide: the first box ends where it begins, the second fills it.
    half = visible_boxes(scene(*boxes, crop=(0.5, 0.0, 0.5, 1.0)))
    assert_boxes(half, [(0.0, 0.25, 1.0, 0.5)])
    middle = visible_boxes(scene(boxes[0], crop=(0.25, 0.25, 0.5, 0.5), flipped=True))
    assert_boxes(middle, [(0.5, 0.0, 0.5, 0.5)])  # cut off, and on the right


def test_objects_are_cut_at_their_boxes() -> None:
    image = torch.zeros(3, 16, 32, dtype=torch.uint8)
    image[0, 4:8, 8:24] = 200
    found = cut_objects(image, [(0.25, 0.25, 0.5, 0.25), (0.0, 0.0, 0.25, 1.0)], 1.0)
    assert found.shape == (2, 3, 224, 224)
    assert (found[0, 0] == 200).all() and (found[0, 1:] == 0).all()  # nothing from around it
    assert (found[1] == 0).all()
    boxes = [(0.0, 0.0, 1.9 / 32, 1.0), (0.0, 0.0, 2 / 32, 2 / 16), (0.5, 0.5, 0.6, 0.6)]
    assert len(cut_objects(image, boxes, 2.0)) == 2
    assert cut_objects(image, boxes, 17.0).shape == (0, 3, 224, 224)
    assert len(cut_objects(image, [(0.0, 0.0, 1.0, 1.9 / 16)], 2.0)) == 0  # not high enough
    # All pixels that a box touches, by a hair not those that it ends at, and smoothly resized.
    image[2] = torch.arange(32)
    (touched,) = cut_objects(image, [(1.5 / 32, 0.0, 1 / 32, 1.0)], 1.0)
    assert touched[2].unique().tolist() == [1, 2]
    (ends,) = cut_objects(image[..., :10], [(0.1, 0.0, 0.2, 1.0)], 1.0)
    assert ends[2].unique().tolist() == [1, 2]
    (ramp,) = cut_objects(image * 8, [(0.0, 0.0, 1.0, 1.0)], 1.0)
    assert len(ramp[2].unique()) > 100


def test_objects_are_all_pixels_of_a_box_resized_by_pillow() -> None:
    """Of any boxes, equal in every value to crops that are found pixel by pixel."""
    generator = np.random.RandomState(0)
    whole = generator.randint(0, 256, (17, 40, 3)).astype(np.uint8)
    edges = [(0.0, 0.0, 1.0, 1.0), (3 / 40, 5 / 17, 2 / 40, 1 / 17), (0.1, 0.2, 0.3, 0.4)]
    corners = generator.rand(12, 2) * 0.8
    boxes = [*edges, *(tuple(c) + tuple(generator.rand(2) * (1 - c)) for c in corners)]
    found = cut_objects(torch.from_numpy(whole).permute(2, 0, 1), boxes, 1e-3)
    assert len(found) == len(boxes)
    for crop, (x0, y0, width, height) in zip(found, boxes, strict=True):
        columns = [n for n in range(40) if n + 1 > 40 * x0 + 1e-6 and n < 40 * (x0 + width) - 1e-6]
        rows = [n for n in range(17) if n + 1 > 17 * y0 + 1e-6 and n < 17 * (y0 + height) - 1e-6]
        place = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        image = Image.fromarray(whole).crop(place)
        expected = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(crop.permute(1, 2, 0), expected)
    large = generator.randint(0, 256, (700, 500, 3)).astype(np.uint8)
    (crop,) = cut_objects(torch.from_numpy(large).permute(2, 0, 1), [(0.0, 0.0, 1.0, 1.0)], 1.0)
    expected = np.asarray(Image.fromarray(large).resize((224, 224), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(crop.permute(1, 2, 0), expected)
    # Just as large as the least, and a little less.
    least = [(0.0, 0.0, 4 / 40, 4 / 17), (0.0, 0.0, 3.9 / 40, 1.0), (0.0, 0.0, 1.0, 3.9 / 17)]
    assert len(cut_objects(torch.zeros(3, 17, 40, dtype=torch.uint8), least, 4.0 - 1e-9)) == 1


@pytest.mark.parametrize("flip", [False, True])
def test_real_images_by_another_filter(data: Path, flip: bool) -> None:
    """They are what the layout shows of its file, by that filter alone."""
    scenes = layouts(data, 6, crop_method="center", random_flip=flip)
    assert any(scenes[number][0].flipped for number in range(6)) is flip
    resized = RealScenes(scenes, Resizing("opencv", "center", (20, 20)))
    found = scene_images(resized)
    for number in range(6):
        layout, _ = scenes[number]
        whole = scenes.dataset.pixels(number)
        expected = Resizing("opencv", "center", (20, 20))(whole)
        shown = expected[:, ::-1] if layout.flipped else expected
        np.testing.assert_array_equal(found[number].pixels.permute(1, 2, 0), shown)
        assert found[number].boxes == visible_boxes(layout)
    assert resized.content_key() != RealScenes(scenes).content_key() == scenes.key
    about = resized.describe()
    assert (about["resize"], about["crop"], about["size"]) == ("opencv", "center", [20, 20])
    own = RealScenes(scenes).describe()
    assert (own["resize"], own["crop"], own["size"]) == ("pillow-antialias", "center", [8, 8])
    # A crop that is wider than high, of whole pixels.
    part = RealScenes(scenes, Resizing("opencv", "none", (10, 30)))
    height, width = scenes.dataset.pixels(0).shape[:2]
    view = scene(crop=(3 / width, 5 / height, 30 / width, 10 / height))
    np.testing.assert_array_equal(
        part._resized(0, view).permute(1, 2, 0), scenes.dataset.pixels(0)[5:15, 3:33]
    )
    scenes.numbers = range(4, 6)  # without those before, as if these were damaged
    expected = part.resizing(scenes.dataset.pixels(4))
    np.testing.assert_array_equal(part._resized(0, scene()).permute(1, 2, 0), expected)


@pytest.mark.parametrize("flip", [False, True])
def test_real_boxes_follow_crop_and_flip(data: Path, flip: bool) -> None:
    """A box of the whole image, cut out of the shown one, holds the same thing."""
    changes = {"crop_method": "random-1d", "random_flip": flip, "target_image_size": 96}
    scenes = layouts(data, 4, **changes)
    for number in range(4):
        found, pixels = scenes[number]
        left, _, share, _ = found.crop
        dataset = scenes.seeded.dataset
        full = torch.tensor(dataset.pixels(number)).permute(2, 0, 1)
        crops = cut_objects(pixels, visible_boxes(found), 4, side=32).float()
        inside = []
        for annotation in found.annotations:  # those that the crop shows as a whole
            x0, _, width, _ = annotation.bbox
            inside.append(left <= x0 and x0 + width <= left + share)
        wanted = [a.bbox for a, whole in zip(found.annotations, inside, strict=True) if whole]
        assert wanted
        for crop in cut_objects(full, wanted, 4, side=32).float():
            seen = crop.flip(2) if found.flipped else crop
            assert (crops - seen).abs().mean((1, 2, 3)).min() < 15  # others: 40 and more


def test_samples_have_their_layouts_numbers_whatever_is_left_out(data: Path) -> None:
    """As make_scene_samples.py numbers them: one damaged image changes none of the others."""
    whole, rest = sampled(layouts(data, 3)), sampled(layouts(data, 3))
    rest.layouts.numbers = [1, 2]
    before, after = scene_images(whole), scene_images(rest)
    assert sorted(after) == [0, 1, 2, 3]
    assert all(after[n].digest == before[n + 2].digest for n in after)
    assert all(after[n].name == before[n + 2].name for n in after)
    same = sampled(layouts(data, 2))  # of the same content at other places, as by a flip
    vars(same.layouts)["key"] = rest.layouts.key
    assert same.content_key() != rest.content_key()


def test_numbers_are_those_of_the_images(data: Path) -> None:
    samples = sampled(layouts(data))
    found = evaluate(samples)
    real, made = scene_images(RealScenes(samples.layouts)), scene_images(samples)
    assert sorted(made) == list(range(12)) and sorted(real) == list(range(6))
    truth = [real[n] for n in range(6)]
    whole = moments_of(features(torch.stack([p.pixels for p in truth])))
    for k, row in enumerate(found.rows):
        own = [made[2 * n + k] for n in range(6)]
        assert [p.boxes for p in own] == [p.boxes for p in truth]
        images = moments_of(features(torch.stack([p.pixels for p in own])))
        assert row["fid"] == pytest.approx(frechet_distance(images, whole), rel=1e-6)
        distance = frechet_distance(object_moments(own), object_moments(truth))
        assert row["scene_fid"] == pytest.approx(distance, rel=1e-6)
        logits = torch.stack([p.pixels for p in own])
        scores = scores_of(Extractor(register_tiny())(logits)["logits"], 2)
        assert row["isc"] == pytest.approx(scores.compute()[0], rel=1e-6)
    everything = list(made.values())
    distance = frechet_distance(object_moments(everything), object_moments(truth))
    assert found.metrics["scene_fid"] == pytest.approx(distance, rel=1e-6)
    pixels = torch.stack([made[n].pixels for n in range(12)])
    distance = frechet_distance(moments_of(features(pixels)), whole)
    assert found.metrics["fid"] == pytest.approx(distance, rel=1e-6)
    assert found.metrics["fid"] != pytest.approx(found.rows[0]["fid"], rel=1e-3)
    mean, std = scores_of(Extractor(register_tiny())(pixels)["logits"], 2).compute()
    assert found.metrics["isc"] == pytest.approx({"mean": mean, "std": std}, rel=1e-6)
    assert found.sets["samples"]["objects"] == 2 * found.sets["reference"]["objects"]
    spread = found.metrics["one_per_layout"]["fid"]
    for name, over_rows in (("mean", np.mean), ("std", np.std)):
        assert spread[name] == pytest.approx(over_rows([row["fid"] for row in found.rows]))
    assert found.protocol["min_object_side"] == 1.0 and "224" in found.protocol["objects"]


def test_batches_processes_and_caches_change_nothing(data: Path, tmp_path: Path) -> None:
    samples = sampled(layouts(data, 5))
    expected = evaluate(samples).metrics
    flat = lambda m: [m["fid"], m["scene_fid"], m["isc"]["mean"], m["isc"]["std"]]  # noqa: E731
    for batch_size in (1, 7):
        found = evaluate(samples, batch_size=batch_size).metrics
        assert flat(found) == pytest.approx(flat(expected), rel=1e-5)
    shares = [p.index for rank in (0, 1) for batch in samples.batches(3, (rank, 2)) for p in batch]
    assert sorted(shares) == list(range(10))
    rest = [p.index for batch in samples.batches(3, skip={0, 1, 2, 5}) for p in batch]
    assert sorted(rest) == [3, 4, 6, 7, 8, 9]
    evaluate(samples, cache=tmp_path)
    kept = len(list(tmp_path.glob("*.npz")))
    again = evaluate(samples, cache=tmp_path).metrics
    assert flat(again) == pytest.approx(flat(expected), rel=1e-5)
    assert len(list(tmp_path.glob("*.npz"))) == kept
    # Other smallest objects are other objects: what is cached of them is not used.
    fewer = evaluate(samples, cache=tmp_path, min_side=4.0)
    assert fewer.sets["reference"]["objects"] < found_objects(samples)
    assert fewer.metrics["scene_fid"] != expected["scene_fid"]


def found_objects(samples: SampledScenes) -> int:
    return sum(len(p.boxes) for p in scene_images(RealScenes(samples.layouts)).values())


def test_samples_are_of_their_seed(data: Path) -> None:
    one = layouts(data, 1)
    first, other = (scene_images(sampled(one, 1, seed=seed))[0] for seed in (0, 1))
    assert not torch.equal(first.pixels, other.pixels)


def test_keys_are_of_the_content(data: Path, tmp_path: Path) -> None:
    key = layouts(data, 3).key
    assert layouts(data, 3).key == key
    copied = write_scenes(tmp_path / "copy")
    assert layouts(copied, 3).key == key  # another place, the same content
    assert layouts(data, 4).key != key
    assert layouts(data, 3, crop_method="none").key != key
    tokens = layouts(data, 3, encode_crop=False)
    assert tokens.key != key  # the same images
    assert sampled(tokens).content_key() != sampled(layouts(data, 3)).content_key()
    own = sampled(layouts(data, 3)).content_key()
    assert sampled(layouts(copied, 3)).content_key() == own
    assert sampled(layouts(data, 3), per_layout=3).content_key() != own
    assert sampled(layouts(data, 3), seed=1).content_key() != own
    there = [replace(sampled(layouts(data, 3)), identity={"path": path}) for path in "ab"]
    assert there[0].content_key() == there[1].content_key()
    request = SceneRequest(Moments, Extractor(register_tiny()), "16", number=0, of=2)
    changes: list[dict[str, Any]] = [{}, {"number": 1}, {"of": 3}, {"min_side": 1.0}]
    changes += [{"min_side": 2.0}, {"layer": "logits"}]
    assert len({replace(request, **change).key("a") for change in changes}) == 6


def test_sampled_images_have_the_wanted_size(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = sampled(layouts(data, 2), per_layout=1, shape=(3, 5))
    next(samples.batches(2, skip={1}))
    said = "10 x 6 pixels are 15 tokens for each image: about"
    assert capsys.readouterr().out.startswith(said)
    assert {tuple(p.pixels.shape) for p in scene_images(samples).values()} == {(3, 6, 10)}
    assert samples.describe()["sampler"]["tokens"] == [3, 5]


@pytest.mark.parametrize(
    ("count", "changes", "message"),
    [
        (1, {}, "FID needs at least 2 layouts, and there are 1"),
        (3, {"isc_splits": 4}, "needs at least 4 layouts"),
        (3, {"min_side": 9.0}, "SceneFID needs two or more"),
    ],
)
def test_too_little(data: Path, count: int, changes: dict[str, Any], message: str) -> None:
    samples = sampled(layouts(data, count), per_layout=1)
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        evaluate(samples, **changes)
