from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from taming.config import load_config
from taming.data.seeding import PositionSampler
from taming.data.tools.preview import CELL, first_items, label_colors, pictures, texts
from tests.kit.images import write_images
from tests.kit.scenes import OPTIONS, write_coco

SCRIPT = Path(__file__).parents[3] / "scripts/preview_data.py"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A config of ten pairs of an image and a smaller number of labels."""
    for path in write_images(tmp_path / "images", 10, 16, 32):
        labels = np.asarray(Image.open(path))[..., 0] % 3
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / "labels" / Path(path).name)
    params = {
        "images": str(tmp_path / "images"),
        "conditions": str(tmp_path / "labels"),
        "kind": "segmentation",
        "n_labels": 3,
        "size": 16,
        "random_crop": True,
        "validation_fraction": 0,
    }
    section = {"target": "taming.data.paired.PairedTrain", "params": params}
    config = {"data": {"params": {"batch_size": 2, "train": section}}}
    OmegaConf.save(OmegaConf.create(config), tmp_path / "x.yaml")
    return tmp_path / "x.yaml"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["preview_data.py", *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_items_are_those_that_training_sees_first(base: Path) -> None:
    config = load_config([base])
    dataset, items = first_items(config, "train", 3, seed=5)
    order = list(PositionSampler(10, seed=5))[:3]
    assert [item["file_path_"] for item in items] == [dataset.paths[index] for index in order]
    again = first_items(config, "train", 3, seed=5)[1]
    assert len(dataset) == 10 and len(items) == 3
    for item, other in zip(items, again, strict=True):
        np.testing.assert_array_equal(item["image"], other["image"])
    assert [i["file_path_"] for i in items] != [i["file_path_"] for i in again[::-1]]


def test_pictures_of_maps(base: Path) -> None:
    _, (item,) = first_items(load_config([base]), "train", 1, seed=5)
    shown = pictures(item | {"depth": np.zeros((8, 8), np.float32), "coord": np.ones((8, 8, 1))})
    assert set(shown) == {"image", "segmentation", "depth", "coord"}
    labels = item["segmentation"].argmax(-1)
    np.testing.assert_array_equal(np.asarray(shown["segmentation"]), label_colors(3)[labels])
    assert np.asarray(shown["depth"]).max() == 128 and np.asarray(shown["coord"]).min() == 255
    assert any(line.startswith("file_path_:") for line in texts(item))
    assert label_colors(3)[0].tolist() == [0, 0, 0]
    colors = np.eye(3, dtype=np.float32)[:, None]  # one-hot, and an image of these values
    colors[0, 0] = 1
    assert np.asarray(pictures({"image": colors})["image"])[:, 0].min() == 128


def test_pictures_of_scenes(tmp_path: Path) -> None:
    section = {
        "target": "taming.data.annotated_objects_coco.AnnotatedObjectsCoco",
        "params": {"data_path": str(write_coco(tmp_path)), **OPTIONS},
    }
    dataset, (item,) = first_items({"data": {"params": {"train": section}}}, "train", 1, 0)
    assert set(pictures(item, dataset)) == {"image", "objects_bbox"}
    assert texts(item) == ["annotations: 3 entries"]


def test_script(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = base.parent / "out/p.png"
    run(monkeypatch, "--base", base, "-n", 2, "-o", output, "data.params.train.params.size=12")
    assert capsys.readouterr().out == f"{output}: 2 of the 10 items of PairedTrain\n"
    picture = Image.open(output)
    assert picture.width > 3 * CELL and picture.height > 2 * CELL
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--base", base, "-o", base.parent / "p.xyz")
    assert "p.xyz has no ending of an image format" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--base", base, "--split", "validation")
    assert "no data.params.validation" in capsys.readouterr().err
