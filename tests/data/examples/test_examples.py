"""Every config's data section on the rendered example data, and the example data themselves."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import default_collate

from taming.config import instantiate_from_config, load_config
from taming.data.examples import write_all
from taming.data.examples.datasets import OPEN_IMAGES_SCENES, STUFF, SYNSETS, THINGS
from taming.data.examples.rendering import FAR, N_LABELS, SHAPES, SKY, render
from taming.data.files.imagenet_archives import TRAIN, VALIDATION, prepare

REPOSITORY = Path(__file__).parents[3]
CONFIGS = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml"))

SIDES = {"digits": 32, "multi": 64, "cin512": 512}  # pixels, of others 256


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("examples")
    write_all(root, train=5, validation=2)
    return root


@pytest.mark.parametrize("name", CONFIGS)
def test_data_section_of_every_config(
    name: str, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(examples)
    monkeypatch.setenv("XDG_CACHE_HOME", str(examples / "cache"))
    config = load_config([REPOSITORY / f"configs/{name}.yaml"])
    params = config.model.params
    keys = [params.get("first_stage_key", params.get("image_key", "image"))]
    keys += [params.cond_stage_key] if "cond_stage_key" in params else []
    for split in ("train", "validation"):
        data = instantiate_from_config(config.data.params[split], key=split)
        batch = default_collate([data[0], data[len(data) - 1]])
        for key in keys:
            assert len(batch[key]) == 2
            if batch[key].dim() > 2:
                side = batch[key].shape[1]
                assert side == batch[key].shape[2] == SIDES.get(name.partition("_")[0], 256)
        assert batch["image"].shape[3] == 3


def test_scenes_agree_with_themselves() -> None:
    scene = render(11, 64, 96)
    again = render(11, 64, 96)
    np.testing.assert_array_equal(scene.image, again.image)
    assert scene.image.shape == (64, 96, 3) and scene.depth.shape == scene.labels.shape == (64, 96)
    assert scene.labels.max() < N_LABELS and scene.depth.max() == FAR
    assert (scene.depth[scene.labels == SKY] == FAR).all()
    for found in scene.objects:
        x0, y0, width, height = found.box
        inside = scene.labels[y0 : y0 + height, x0 : x0 + width]
        own = inside == SHAPES.index(found.shape)
        assert own.any() and 0 < found.share <= 1
        assert all(side.any() for side in (own[0], own[-1], own[:, 0], own[:, -1]))  # no larger
        assert own.sum() == (scene.labels == SHAPES.index(found.shape)).sum()  # and no smaller
        assert f"{found.color} {found.shape}" in scene.caption
    changes = scene.labels[:, 1:] != scene.labels[:, :-1]
    assert (scene.edges[:, :-1][changes] == 255).all() and scene.edges[0, 0] == 0


def test_nearer_objects_hide_others() -> None:
    scenes = [render(seed).objects for seed in range(40)]
    hidden = [found.share for objects in scenes for found in objects]
    assert 0 < sum(share < 1 for share in hidden) < len(hidden)
    assert min(objects[0].share for objects in scenes) > 0.5  # of the nearest


def test_tars_hold_what_the_folders_do(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for split in (TRAIN, VALIDATION):
        split.root.mkdir(parents=True)
        shutil.copy(examples / "tars" / split.tar, split.root)
    shutil.copy(examples / "tars/validation_synset.txt", VALIDATION.root)
    for split, count in ((TRAIN, 5), (VALIDATION, 2)):
        names = list(prepare(split, "x"))
        assert len(names) == count and {name.split("/")[0] for name in names} <= set(SYNSETS)
    name = f"{SYNSETS[1]}/{SYNSETS[1]}_1.JPEG"
    folder = examples / "cache/autoencoders/data/ILSVRC2012_train/data"
    pixels = [np.asarray(Image.open(place / name)) for place in (folder, TRAIN.root / "data")]
    np.testing.assert_array_equal(*pixels)


def test_pairs_are_pairs(examples: Path) -> None:
    folder = examples / "data/pairs"
    labels = np.asarray(Image.open(folder / "segmentation/0001.png"))
    palette = np.loadtxt(folder / "palette.txt", dtype=np.uint8)
    colors = np.asarray(Image.open(folder / "colors/0001.png"))
    np.testing.assert_array_equal(palette[labels], colors)


def test_annotations_say_what_is_in_the_scenes(examples: Path) -> None:
    png = examples / "data/cocostuffthings/train2017/000000000001.png"
    scene = render(50_000)  # the first of COCO's
    stored = np.asarray(Image.open(png))
    ids = np.array([identity for identity, _ in (*THINGS, *STUFF)])
    np.testing.assert_array_equal(stored + 1, ids[scene.labels])
    table = (examples / OPEN_IMAGES_SCENES[0] / "oidv6-train-annotations-bbox.csv").read_text()
    rows = [row.split(",") for row in table.splitlines()[1:]]
    objects = [one for seed in range(60_000, 60_005) for one in render(seed).objects]
    occluded = [one.share < 0.95 for one in objects]
    assert [row[8] == "1" for row in rows] == occluded and 0 < sum(occluded) < len(occluded)
    ends = [
        [x0 / 128, (x0 + w) / 128, y0 / 96, (y0 + h) / 96]
        for x0, y0, w, h in (o.box for o in objects)
    ]
    np.testing.assert_allclose(np.array([row[4:8] for row in rows], float), ends, atol=1e-6)


def test_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["x", "-o", str(tmp_path), "--train", "5", "--validation", "1"])
    runpy.run_path(str(REPOSITORY / "scripts/make_example_data.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}: ") and "XDG_CACHE_HOME=$PWD/cache" in said
    assert (tmp_path / "data/coco/annotations/captions_val2017.json").is_file()
