"""The report of a run: what it finds, and what it says where there is too little."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import Dataset

from scripts.report import main, require_data
from taming.checkpoint import load_run, model_hashes
from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.checkpoints import OwnWeights
from taming.evaluation.metrics.fid import frechet_distance
from taming.evaluation.metrics.small_classifier import SmallClassifier
from taming.evaluation.model_card import results_of
from taming.evaluation.results import differences, read_result
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.tasks.report import (
    _settings,
    class_grid,
    newest_samples,
    read_labeled,
    similar_groups,
)
from taming.pictures import HEAD
from taming.sampling.folder import png_info
from taming.weight_choice import WeightChoice
from tests.evaluation.features import moments_of
from tests.evaluation.metrics.test_accuracy import stripes
from tests.kit.images import image_folder, touch
from tests.kit.models import CLASSES, transformer_config
from tests.kit.runs import tiny_run

THREE = CLASSES | {"params": {"n_classes": 3}}


class Stripes(Dataset[dict[str, Any]]):
    """Stripes of three directions, 8 x 8; with `classes` false nobody says which."""

    def __init__(self, count: int, seed: int, classes: bool = True) -> None:
        self.images, self.labels = stripes(count, seed, side=8)
        self.classes = classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index].permute(1, 2, 0).float() / 127.5 - 1
        label = {"class_label": int(self.labels[index])} if self.classes else {}
        return {"image": image.numpy(), **label}


def write_run(folder: Path, classes: bool = True, **gpt: Any) -> Path:
    """A run whose data are stripes, with real ones (others) as its samples."""
    stage: Any = THREE if classes else "__is_unconditional__"
    run = tiny_run(folder, transformer_config(gpt, cond_stage_config=stage))

    def dataset(count: int, seed: int) -> dict[str, Any]:
        params = {"count": count, "seed": seed, "classes": classes}
        return {"target": f"{__name__}.Stripes", "params": params}

    params = {"batch_size": 8, "num_workers": 0}
    params |= {"train": dataset(120, 0), "validation": dataset(30, 1)}
    data = {"target": "main.DataModuleFromConfig", "params": params}
    OmegaConf.save(OmegaConf.create({"data": data}), run / "configs" / "0-project.yaml")
    return run


def write_samples(
    run: Path, count: int = 24, classes: bool = True, step: str = "7", **record: Any
) -> Path:
    root = run / "samples" / "top_k_250_temp_1.00_top_p_1.0" / step
    images, labels = stripes(count, seed=2, side=8)
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        folder = root / str(label) if classes else root
        folder.mkdir(parents=True, exist_ok=True)
        pixels = image.permute(1, 2, 0).numpy()
        info = png_info(record) if record else None
        Image.fromarray(pixels).save(folder / f"{number:06}.png", pnginfo=info)
    return root


def test_all_of_it_says_how_it_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    root = write_samples(run)
    main(["-r", str(run), "--device", "cpu"])
    result = read_result(run / "report" / "report.json")
    own = result["metrics"]["by_own_classifier"]
    assert result["by_own_classifier"] == own
    assert own["samples"]["top_1"] > 0.9
    assert {"fid", "isc", "kid", "precision", "recall", "top_5"} <= own["samples"].keys()
    assert own.keys() == {"by", "samples", "validation_images"}
    assert result["samples"]["folder"] == str(root)
    assert result["samples"]["named_right_by_5_neighbours"] > 0.9
    assert set(result["sets"]) == {"samples", "validation_images", "reference"}
    assert all(len(about["fingerprint"]) == 64 for about in result["sets"].values())
    assert result["protocol"]["checkpoint_hash"] and result["command"][0] == "scripts/report.py"
    assert sum(row["images"] for row in result["by_class"].values()) == 24
    protocol = result["protocol"]["by_own_classifier"]
    assert (protocol["isc_splits"], protocol["kid_subset_size"]) == (1, 12)  # of 24 samples
    printed = capsys.readouterr().out
    assert "by a classifier of the training images" in printed and "class right" in printed
    main(["-r", str(run), "--device", "cpu", "-o", str(tmp_path / "again")])
    again = read_result(tmp_path / "again" / "report.json")
    assert not differences(result, again, 1e-6)


def test_a_run_on_cached_codes_is_reported_by_its_images(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = run / "configs" / "0-project.yaml"
    config = OmegaConf.load(path)
    OmegaConf.update(config, "data.params.codes", str(tmp_path / "codes"), force_add=True)
    OmegaConf.save(config, path)
    write_samples(run)
    main(["-r", str(run), "--device", "cpu"])
    assert read_result(run / "report" / "report.json")["metrics"]["transformer"]["images"] == 30


def test_masked_codes_have_no_likelihood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", attention="full", block_size=17)
    write_samples(run)
    main(["-r", str(run), "--device", "cpu"])
    assert "transformer" not in read_result(run / "report" / "report.json")["metrics"]
    printed = capsys.readouterr().out
    assert "validation loss" not in printed and "class right" in printed


def test_the_distance_is_that_of_the_saved_classifier(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    root = write_samples(run)
    (root / "0" / "000000.png").rename(root / "1" / "000000.png")  # the wrong class
    main(["-r", str(run), "--device", "cpu"])
    classifier = SmallClassifier.load(run / "report" / "classifier.pt")
    with torch.no_grad():
        images = [stripes(*options, side=8)[0] for options in ((24, 2), (120, 0))]
        moments = [moments_of(classifier(pixels)[0]) for pixels in images]
    result = json.loads((run / "report" / "report.json").read_text())
    assert result["samples"]["named_right_by_5_neighbours"] == pytest.approx(23 / 24)
    assert result["by_class"]["1"]["images"] == 9 and result["by_class"]["1"]["top_1"] < 1
    found = result["by_own_classifier"]["samples"]["fid"]
    assert found == pytest.approx(frechet_distance(*moments), rel=1e-4)


def test_with_few_images_there_is_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(tmp_path / "run")
    write_samples(run, 7)
    main(["-r", str(run), "--device", "cpu"])
    result = read_result(run / "report" / "report.json")
    assert "by_own_classifier" not in result
    assert result["samples"]["images"] == 7
    assert result["first_stage"]["images"] == result["transformer"]["images"] == 30
    said = "without distances .*: there are 7 samples, and 8 are needed; make more with the script"
    assert re.search(said, caplog.text)
    assert (run / "report" / "samples.png").is_file()


def test_samples_of_other_weights_are_not_this_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training has gone on since they were made: the card has none of their numbers."""
    folder = write_run(tmp_path / "run")
    model, run, _ = load_run(folder)
    own = model_hashes(model, run.model) | {"dtype": "torch.float32", "global_step": 7}
    old = write_samples(folder, 7, step="6", **{**own, "weights": "others", "global_step": 6})
    with pytest.raises(SystemExit) as stop:
        main(["-r", str(folder), "--device", "cpu"])
    assert stop.value.code == 2 and "with other weights than" in capsys.readouterr().err
    main(["-r", str(folder), "--device", "cpu", "--samples", str(old)])
    assert "not those of this checkpoint" in capsys.readouterr().out
    weights = OwnWeights(file_hash(run.checkpoint), WeightChoice(), model, run.model)

    def pushed() -> dict[str, Any]:
        return results_of(folder, weights)[0]["report/report.json"]["metrics"]

    assert pushed().keys() == {"first_stage", "transformer"}
    new = write_samples(folder, 6, **own)
    os.utime(old / "0" / "000000.png")
    main(["-r", str(folder), "--device", "cpu"])
    said = capsys.readouterr().out
    assert said.startswith(f"on the samples in {new}\nreconstruction error")
    assert pushed()["samples"]["images"] == 6


def test_without_classes_distances_are_by_groups_of_similar_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", classes=False)
    folder = write_samples(run, 24, classes=False)
    (folder / "000003.png").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        main(["-r", str(run), "--device", "cpu"])
    printed = capsys.readouterr()
    assert stop.value.code == 1 and "000003.png is empty" in printed.err
    assert "by a classifier of groups of similar training images" in printed.out
    result = read_result(run / "report" / "report.json")
    own = result["metrics"]["by_groups_of_images"]
    assert {"fid", "kid", "precision", "recall"} <= own["samples"].keys()
    assert own.keys() == {"by", "samples", "validation_images"} and "top_1" not in own["samples"]
    assert "by_own_classifier" not in result and result["samples"]["images"] == 23
    # Samples of noise are farther away than those like the training images.
    for path in folder.glob("*.png"):
        Image.effect_noise((8, 8), 60).convert("RGB").save(path)
    main(["-r", str(run), "--device", "cpu", "-o", str(tmp_path / "noise")])
    noise = read_result(tmp_path / "noise" / "report.json")["metrics"]["by_groups_of_images"]
    assert noise["samples"]["fid"] > 2 * own["samples"]["fid"]


def test_images_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """However they come: sizes and workers may mix them."""
    source = FolderSource(image_folder(tmp_path / "a", 5))
    pixels, _ = read_labeled(source, "images")
    batches = [image for batch in source.batches(64) for image in batch][::-1]
    source.batches = lambda *_, **__: iter([batches])  # type: ignore[method-assign]
    np.testing.assert_array_equal(read_labeled(source, "images")[0], pixels)
    assert not (pixels[0] == pixels[-1]).all()


def test_pictures_are_spread_over_their_sets() -> None:
    """Real images that follow each other may be crops of one photograph."""
    real = np.arange(100, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    pixels = np.broadcast_to(real, (100, 4, 4, 3))
    unlabeled = pixels, np.full(100, -1)
    page = np.asarray(class_grid(unlabeled, unlabeled, scale=1))
    shown = set(np.unique(page[HEAD:])) - {255}
    assert {0, 99} <= shown and len(shown) == 40
    labeled = pixels, np.arange(100) // 50
    page = np.asarray(class_grid(labeled, labeled, scale=1))
    assert {0, 49, 50, 99} <= set(np.unique(page[HEAD:])) and len(np.unique(page[HEAD:])) <= 22


def samples_at(folder: Path, age: int, count: int = 8, size: tuple[int, int] = (8, 8)) -> Path:
    for number in range(count):
        path = folder / "0" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
        os.utime(path, (1e9 - age, 1e9 - age))
    return folder


def test_the_newest_samples_of_the_trainings_size_are_taken(tmp_path: Path) -> None:
    def newest(name: str = "sample_fast") -> Path:
        return newest_samples(tmp_path, name, (8, 8), OwnWeights("", WeightChoice()))

    with pytest.raises(UserError, match="has no samples yet"):
        newest()
    of_other_size = samples_at(tmp_path / "samples/top_k_250_size_4x8/7", 1, size=(8, 4))
    assert newest() == of_other_size
    few = samples_at(tmp_path / "samples/top_k_9/7", 2, count=7)
    assert newest() == few
    old = samples_at(tmp_path / "samples/top_k_100/7", 9)
    assert newest() == old
    new = samples_at(tmp_path / "samples/top_k_100/8", 3)
    assert newest() == new
    touch(tmp_path / "samples/top_k_1/8/0/000000.png")  # no image
    assert newest() == new
    for script, folder in (("make_samples", "samples_of_data"), ("make_scene_samples", "scenes")):
        made = samples_at(tmp_path / folder / "7_100_1.0" / "samples", 1)
        assert newest(script) == made


def test_samples_are_not_compared_with_images_of_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    folder = samples_at(tmp_path / "run/samples/top_k_250_size_4x16/7", 1, size=(16, 4))
    with pytest.raises(SystemExit):
        main(["-r", str(run), "--device", "cpu"])
    said = capsys.readouterr()
    assert f"on the samples in {folder}\n" in said.out
    assert "the samples have 16 x 4 pixels, and the training images 8 x 8" in said.err


@pytest.mark.parametrize(
    ("images", "splits", "subset"), [(8, 1, 4), (99, 1, 49), (100, 10, 50), (5000, 10, 1000)]
)
def test_settings_fit_the_smallest_set(images: int, splits: int, subset: int) -> None:
    settings = _settings(images)
    expected = {"isc_splits": splits, "kid_subset_size": subset, "kid_subsets": 100}
    assert settings.describe("isc", "kid").items() >= expected.items()


def test_groups_are_of_images_that_look_alike() -> None:
    levels = torch.arange(10).repeat(4) * 25
    images = levels.to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    groups = similar_groups(images)
    assert all(len(groups[levels == level].unique()) == 1 for level in levels.unique())
    assert len(groups.unique()) > 4 and torch.equal(groups, similar_groups(images))


def test_samples_of_another_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    folder = write_samples(run)
    Image.new("RGB", (9, 8)).save(folder / "0" / "000099.png")
    with pytest.raises(SystemExit):
        main(["-r", str(run), "--device", "cpu"])
    assert "the samples have several sizes" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_run_without_some_of_its_data(split: str) -> None:
    sections = {name: {"target": "x"} for name in ("train", "validation") if name != split}
    config = OmegaConf.create({"data": {"params": sections}})
    with pytest.raises(UserError, match=f"no data.params.{split}, .* add -b YAML with both"):
        require_data(config)
