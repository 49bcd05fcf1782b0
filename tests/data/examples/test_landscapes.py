"""Rendered landscapes: maps that belong to the image, and what the gallery's configs read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taming.config import load_config
from taming.data.examples import write_landscapes
from taming.data.examples.landscapes import FAR, landscape
from taming.data.examples.places import LABELS, PALETTE, PLACES, STUFF
from taming.data.from_config import dataset_of
from tests.support import ROOT

CONFIGS = sorted((ROOT / "configs" / "gallery").glob("*.yaml"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("landscapes")
    write_landscapes(root / "data/landscapes", 16, 8)
    return root


def test_a_seed_is_a_landscape() -> None:
    one, again, other = landscape(3), landscape(3), landscape(11)
    assert np.array_equal(one.image, again.image) and not np.array_equal(one.image, other.image)
    assert one.place == other.place == PLACES[3] and landscape(3, place="desert").place == "desert"
    assert landscape(5, 64, 160).image.shape == (64, 160, 3)


@pytest.mark.parametrize("seed", range(8))
def test_maps_belong_together(seed: int) -> None:
    one = landscape(seed)
    assert one.labels.shape == one.depth.shape == (128, 128) and one.labels.max() < len(LABELS)
    assert (one.depth[one.labels == LABELS.index("sky")] == FAR).all()
    assert one.depth.min() > 0 and one.depth.max() == FAR
    ground = np.isin(one.labels, [LABELS.index(name) for name in ("grass", "sand", "snow")])
    middle = one.depth[:, 64][ground[:, 64]]
    assert (np.diff(middle) <= 0).all()  # nearer towards the bottom
    assert one.things
    for thing in one.things:
        x, y, width, height = thing.box
        inside = one.labels[y : y + height, x : x + width]
        assert (inside == LABELS.index(thing.name)).any() and thing.name not in STUFF
    for region in one.regions():
        x, y, width, height = region.box
        mask = one.labels == LABELS.index(region.name)
        assert mask[y : y + height, x : x + width].sum() == mask.sum()


def test_times_of_day_differ_in_brightness() -> None:
    means: dict[str, list[float]] = {}
    for seed in range(40):
        one = landscape(seed, 32, 32)
        means.setdefault(one.time, []).append(float(one.image.mean()))
    assert set(means) == {"day", "dawn", "dusk", "night"}
    assert max(means["night"]) < min(means["day"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_read_them(path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    if path.stem == "photographs_vqgan":
        pytest.importorskip("skimage")
        from taming.data.examples.photographs import write_photographs

        write_photographs(root / "data/photographs")
    config = load_config([path])
    for split in ("train", "validation"):
        if split in config.data.params:
            data = dataset_of(config, split)
            # First stages learn from parts; what is measured, and what is encoded, is whole.
            side = 64 if split == "train" and path.stem.endswith("vqgan") else 128
            assert len(data) >= 4 and data[0]["image"].shape == (side, side, 3)
            key = config.model.params.get("cond_stage_key", "image")
            assert key in data[0]


def test_the_painted_map_has_the_labels_of_the_data() -> None:
    with Image.open(ROOT / "configs/gallery/painted_map.png") as image:
        assert image.size == (1024, 256) and image.mode == "P"
        labels = np.asarray(image)
        colors = np.asarray(image.convert("RGB"))
    assert labels.max() < len(LABELS) and np.array_equal(colors, PALETTE[labels])
