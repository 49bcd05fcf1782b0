"""First stages on the same images: against the numbers computed by hand, whatever the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taming.errors import UserError
from taming.evaluation.cache import Cache
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.fid import frechet_distance
from taming.evaluation.metrics.fid_spread import ResampledMoments, times_in_sets
from taming.evaluation.metrics.reconstruction import PairAccumulator, to_pixels
from taming.evaluation.runner import Runner
from taming.evaluation.sources.dataset import DatasetSource
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.prepared import LabelSource, PreparedSource, model_input
from taming.evaluation.tasks.first_stage import (
    FirstStageEvaluator,
    FirstStageResult,
    LoadedFirstStage,
    load_first_stages,
)
from taming.pictures import to_gray, to_values
from taming.sampling.load import load_first_stage
from taming.weight_choice import choosing_weights
from tests.evaluation.features import moments_of
from tests.kit.datasets import Scenes
from tests.kit.extractor import register_tiny
from tests.kit.images import image_sizes
from tests.kit.models import (
    DALLE,
    DEPTH,
    FIRST_STAGE,
    LABELS,
    SEGMENTATION,
    TRANSFORMER,
    build,
    first_stage_config,
)
from tests.kit.runs import run_with_data, tiny_run
from tests.support import GOLDEN

CLOSE = 1e-6


def evaluator(tmp_path: Path, batch_size: int = 4, **options: Any) -> FirstStageEvaluator:
    extractor = Extractor(register_tiny(), ["16"])
    runner = Runner(batch_size, Cache(tmp_path / "cache"), save_every=0)
    return FirstStageEvaluator(extractor=extractor, metrics=("ssim",), runner=runner, **options)


def validation(run: Path, key: str = "image") -> DatasetSource:
    return DatasetSource(next((run / "configs").glob("*.yaml")), key=key, workers=0)


def evaluated(tmp_path: Path, run: Path, **options: Any) -> FirstStageResult:
    result = evaluator(tmp_path, **options)(
        LoadedFirstStage.load(run), PreparedSource(validation(run))
    )
    assert result is not None
    return result


def by_hand(run: Path, images: torch.Tensor) -> dict[str, Any]:
    """Metrics of uint8 images [N, 3, H, W] as the first stage of a run reconstructs them."""
    stage, _, _ = load_first_stage(run, device="cpu")
    x = to_values(images)
    with torch.no_grad():
        found, indices = to_pixels(stage(x)[0]), stage.encode_to_indices(x)
    pairs, extractor = PairAccumulator(("ssim",)), Extractor(register_tiny(), ["16"])
    pairs.update(range(len(x)), images, found)
    moments = [moments_of(extractor(pixels)["16"]) for pixels in (images, found)]
    share = torch.bincount(indices.flatten(), minlength=20).double() / indices.numel()
    return pairs.compute() | {
        "rfid": frechet_distance(*moments),
        "codebook_usage": float((share > 0).double().mean()),
        "codebook_perplexity": float(torch.exp(-torch.xlogy(share, share).sum())),
    }


def scenes(count: int = 6) -> torch.Tensor:
    images = np.stack([Scenes(count)[index]["image"] for index in range(count)])
    return to_pixels(torch.from_numpy(images).permute(0, 3, 1, 2))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_with_data(tmp_path / "run")


@pytest.mark.parametrize("config", [FIRST_STAGE, TRANSFORMER], ids=["first stage", "transformer"])
def test_all_numbers_are_those_computed_by_hand(config: dict[str, Any], tmp_path: Path) -> None:
    run = run_with_data(tmp_path / "run", config)
    result = evaluated(tmp_path, run)
    assert result.metrics == pytest.approx(by_hand(run, scenes()), rel=CLOSE)
    assert result.name == "run" and result.left_out == {}
    assert result.counts.sum() == 6 * 8 * 8 and len(result.counts) == 20
    assert list(result.classes) == [0, 1] and result.classes[0]["images"] == 3
    assert result.values["psnr"].mean() == pytest.approx(result.metrics["psnr"])
    assert result.reconstructions["f"] == 2 and result.reconstructions["codes"] == 20
    assert result.reconstructions["global_step"] == 7
    assert result.images["fingerprint"] != result.reconstructions["fingerprint"]


def test_the_spread_of_the_rfid_draws_images_with_their_reconstructions(
    run: Path, tmp_path: Path
) -> None:
    result = evaluated(tmp_path, run, rfid_resamples=4, batch_size=5)
    stage, _, _ = load_first_stage(run, device="cpu")
    extractor, images = Extractor(register_tiny(), ["16"]), scenes()
    with torch.no_grad():
        copies = to_pixels(stage(to_values(images))[0])
    rows = [extractor(pixels)["16"] for pixels in (copies, images)]
    drawn = FirstStageEvaluator(extractor=extractor, rfid_resamples=4).describe()
    seed = drawn["rfid_resamples_seed"]
    times = torch.from_numpy(times_in_sets(torch.arange(6), 4, seed))
    distances = [
        frechet_distance(*(moments_of(r.repeat_interleave(column, dim=0)) for r in rows))
        for column in times.T
        if column.sum() > 1
    ]
    spread = result.metrics.pop("rfid_spread")
    assert spread["std"] == pytest.approx(np.std(distances, ddof=1), rel=CLOSE)
    assert result.metrics == pytest.approx(by_hand(run, images), rel=CLOSE)


def test_batches_change_nothing(run: Path, tmp_path: Path) -> None:
    whole = evaluated(tmp_path / "a", run, batch_size=6)
    for batch_size in (1, 4):
        other = evaluated(tmp_path / str(batch_size), run, batch_size=batch_size)
        assert other.metrics == pytest.approx(whole.metrics, rel=CLOSE)
        assert other.images == whole.images


def test_an_interrupted_evaluation_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluated(tmp_path / "whole", run)
    read: list[int] = []
    load = DatasetSource.load

    def failing(self: DatasetSource, index: int) -> Any:
        read.append(index)
        if len(read) == 5:
            raise KeyboardInterrupt
        return load(self, index)

    source = PreparedSource(validation(run))
    source.content_key()
    monkeypatch.setattr(DatasetSource, "load", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluator(tmp_path, batch_size=2)(LoadedFirstStage.load(run), source)
    result = evaluator(tmp_path, batch_size=2)(LoadedFirstStage.load(run), source)
    assert result is not None and result.metrics == pytest.approx(expected.metrics, rel=CLOSE)
    assert read[5:] == [4, 5]
    assert result.reconstructions == expected.reconstructions


def test_several_first_stages_share_the_originals(run: Path, tmp_path: Path) -> None:
    other = tiny_run(tmp_path / "dalle", DALLE)
    stages = load_first_stages([run, other])
    images = PreparedSource(validation(run), multiple=8)
    evaluate = evaluator(tmp_path, batch_size=6)
    assert evaluate.extractor is not None
    counted: list[int] = []
    evaluate.extractor.module.register_forward_hook(lambda *call: counted.append(len(call[2][0])))
    first, second = [evaluate(stage, images) for stage in stages]
    assert first is not None and second is not None
    assert counted == [6, 6, 6]  # the originals once
    alone = evaluator(tmp_path / "alone")(LoadedFirstStage.load(other), images)
    assert alone is not None
    assert second.metrics == pytest.approx(alone.metrics, rel=CLOSE)
    assert second.reconstructions["f"] == 8 and second.reconstructions["codes"] == 16
    assert first.images == second.images
    pictures = evaluate.pictures(stages[0], images, [1, 5])
    assert sorted(pictures) == [1, 5]
    original, reconstruction = pictures[5]
    assert (original == scenes()[5].permute(1, 2, 0).numpy()).all()
    assert reconstruction.shape == (16, 16, 3) and (reconstruction != original).any()


def test_depths_are_of_one_channel(tmp_path: Path) -> None:
    run = run_with_data(tmp_path / "run", DEPTH)
    stage = LoadedFirstStage.load(run)
    images = PreparedSource(validation(run, stage.image_key))
    evaluate = evaluator(tmp_path)
    result = evaluate(stage, images)
    assert result is not None
    assert {"l1", "psnr", "ssim", "rfid", "codebook_usage"} <= set(result.metrics)
    depth = to_pixels(torch.from_numpy(Scenes(6)[2]["depth"]))
    original, _ = evaluate.pictures(stage, images, [2])[2]
    assert (original == depth[..., None].numpy()).all()


def test_pictures_become_grey() -> None:
    from PIL import Image

    pixels = scenes(1)
    expected = np.asarray(Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).convert("L"))
    difference = to_gray(pixels)[0, 0].numpy().astype(int) - expected
    assert abs(difference).max() <= 1


def test_segmentations_keep_their_labels_or_not(tmp_path: Path) -> None:
    run = run_with_data(tmp_path / "run", SEGMENTATION)
    stage = LoadedFirstStage.load(run)
    config = next((run / "configs").glob("*.yaml"))
    source = LabelSource(LABELS, config, "validation", stage.image_key, workers=0)
    evaluate = evaluator(tmp_path)
    result = evaluate(stage, PreparedSource(source))
    assert result is not None
    x = torch.from_numpy(np.stack([Scenes(6)[n]["segmentation"] for n in range(6)]))
    with torch.no_grad():
        found = stage.model(x.permute(0, 3, 1, 2))[0].argmax(dim=1)
    right = float((found == x.argmax(dim=3)).double().mean())
    assert result.metrics["pixel_accuracy"] == pytest.approx(right)
    assert 0 < result.metrics["mean_iou"] < 1 and "psnr" not in result.metrics
    assert result.left_out["rfid"] == "segmentations have no colors"
    pictures = evaluate.pictures(stage, PreparedSource(source), [0])[0]
    labels = x[:1].permute(0, 3, 1, 2), torch.eye(LABELS)[found[:1]].permute(0, 3, 1, 2)
    for picture, one_hot in zip(pictures, labels, strict=True):
        colored = to_pixels(stage.model.to_rgb(one_hot))[0]
        assert (picture == colored.permute(1, 2, 0).numpy()).all()
    with pytest.raises(UserError, match="'image' is .*takes .height, width, 5 labels"):
        LabelSource(LABELS, config, "validation", "image", workers=0).load(0)


def test_images_of_a_folder_are_prepared(tmp_path: Path, run: Path) -> None:
    folder = image_sizes(tmp_path / "images", {"a.png": (9, 14), "b.png": (13, 9), "c.png": (8, 8)})
    source = FolderSource(folder, workers=0)
    as_they_are = PreparedSource(source, multiple=4)
    sizes = [pixels.shape for pixels, *_ in map(as_they_are.load, range(3))]
    assert sizes == [(3, 8, 12), (3, 12, 8), (3, 8, 8)]
    squares = PreparedSource(source, size=(10, 10), multiple=4, limit=2)
    assert len(squares) == 2
    assert [squares.load(index)[0].shape for index in range(2)] == [(3, 8, 8)] * 2
    others = [
        PreparedSource(source, size=(10, 10), multiple=4),
        PreparedSource(source, size=(10, 11), multiple=4, limit=2),
        PreparedSource(source, size=(10, 10), multiple=5, limit=2),
    ]
    assert len({one.content_key() for one in (squares, *others)}) == 4
    assert (len(others[0]), others[0].workers) == (3, 0)
    assert len(PreparedSource(source, limit=50)) == 3
    for count in (0, -1):
        with pytest.raises(UserError, match=f"--num_images must be at least 1, not {count}"):
            PreparedSource(source, limit=count)
    result = evaluator(tmp_path)(LoadedFirstStage.load(run), as_they_are)
    assert result is not None and result.images["sizes"] == {"12x8": 1, "8x12": 1, "8x8": 1}
    assert "ssim" in result.left_out
    with pytest.raises(UserError, match="c.png has 8 x 8 pixels, fewer than the 16"):
        PreparedSource(source, multiple=16).load(2)


def test_images_that_are_left_out_make_another_set(tmp_path: Path) -> None:
    folder = image_sizes(tmp_path / "1", {"a.png": (8, 8), "b.png": (9, 8), "c.png": (8, 9)})
    images = PreparedSource(FolderSource(folder, workers=0))
    key = images.content_key()
    for _ in range(2):  # those behind move up
        images.leave_out({0})
    assert len(images) == 1 and images.load(0)[0].shape == (3, 8, 9)
    assert images.content_key() != key
    assert images.has_classes() is False
    labeled = PreparedSource(FolderSource(tmp_path, workers=0))
    assert labeled.has_classes() is True
    labeled.leave_out({0, 1})
    assert labeled.load(0)[1] == 1


def test_gray_images_are_those_of_all_colors() -> None:
    pixels = scenes(2)
    gray, color = (build(first_stage_config(channels=channels)) for channels in (1, 3))
    assert torch.equal(model_input(pixels, gray), to_values(to_gray(pixels)))
    assert torch.equal(model_input(pixels, color), to_values(pixels))
    labels = torch.tensor([[[[0, 2], [1, 0]]]], dtype=torch.uint8)
    for count in (3, 4):
        stage = build(first_stage_config(channels=count, colorize_nlabels=count))
        one_hot = model_input(labels, stage)
        assert one_hot.shape == (1, count, 2, 2) and (one_hot.sum(1) == 1).all()
        assert torch.equal(one_hot.argmax(1), labels[:, 0].long())
    with pytest.raises(UserError, match="takes segmentations, and these are images in color"):
        model_input(pixels, stage)


def test_labels_that_one_byte_can_tell_apart(run: Path) -> None:
    config = next((run / "configs").glob("*.yaml"))
    assert len(LabelSource(256, config)) == 6
    with pytest.raises(UserError, match="of 257 labels cannot be evaluated; 256 at most"):
        LabelSource(257, config)


def test_what_is_cached_is_of_all_that_decides_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []

    def noted(self: Runner, source: Any, make: Any, key: str, label: str) -> None:
        keys.append(key)
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", noted)
    images, few = PreparedSource(validation(run)), PreparedSource(validation(run), limit=3)
    stage = LoadedFirstStage.load(run)

    def key(stage: LoadedFirstStage = stage, images: Any = images, **options: Any) -> str:
        with pytest.raises(KeyboardInterrupt):
            evaluator(tmp_path, **options)(stage, images)
        return keys[-1]

    first = key()
    assert key(LoadedFirstStage.load(run)) == first
    other = LoadedFirstStage.load(run)
    other.config.model.params.n_embed = 21
    different = [key(other), key(images=few), key(dtype=torch.bfloat16)]
    different.append(key(_originals={3: ResampledMoments(0)}))
    different.append(key(rfid_resamples=2))
    with choosing_weights("raw", ()):
        different.append(key())
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt")
    torch.save(checkpoint | {"global_step": 8}, run / "checkpoints" / "last.ckpt")
    different.append(key(LoadedFirstStage.load(run)))
    assert len({first, *different}) == 8


def test_precision_is_that_of_numbers_and_pictures(run: Path, tmp_path: Path) -> None:
    stage, images = LoadedFirstStage.load(run), PreparedSource(validation(run), limit=2)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        evaluate = evaluator(tmp_path / str(dtype), dtype=dtype)
        result = evaluate(stage, images)
        assert result is not None
        found[dtype] = result.metrics["l1"], evaluate.pictures(stage, images, [0])[0][1].tobytes()
    for exact, rounded in zip(*found.values(), strict=True):
        assert exact != rounded


def test_one_image_has_no_covariance(run: Path, tmp_path: Path) -> None:
    result = evaluator(tmp_path)(
        LoadedFirstStage.load(run), PreparedSource(validation(run), limit=1)
    )
    assert result is not None and "rfid" not in result.metrics
    assert "2 images at least" in result.left_out["rfid"]


def test_names_differ(run: Path, tmp_path: Path) -> None:
    other = tiny_run(tmp_path / "b" / "run", FIRST_STAGE)
    assert [s.name for s in load_first_stages([run, run, other])] == [
        "run",
        "run last",
        "run last (2)",
    ]
    segmentation = tiny_run(tmp_path / "segmentation", SEGMENTATION)
    with pytest.raises(UserError, match="cannot be compared"):
        load_first_stages([run, segmentation])


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return


def test_codes_are_those_that_there_are_indices_for(tmp_path: Path) -> None:
    inner = {"n_e": 40, "e_dim": 2, "beta": 0.25, "remap": str(GOLDEN / "used.npy")}
    nearest = {"target": "taming.modules.vqvae.nearest.VectorQuantizer2", "params": inner}
    grouped: dict[str, Any] = {"groups": 2, "quantizer_config": nearest}
    section = {"target": "taming.modules.vqvae.grouped.GroupedQuantizer", "params": grouped}
    sizes = {"n_embed": None, "embed_dim": None}
    run = tiny_run(tmp_path / "run", first_stage_config(quantizer_config=section, **sizes))
    assert LoadedFirstStage.load(run).describe()["codes"] == 26
