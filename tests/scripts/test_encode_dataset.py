"""Codes in place of images: how they are written."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from taming.checkpoint import expand_stages, load_run
from taming.checkpoint.fingerprint import WeightsHash
from taming.config import instantiate_from_config, load_config
from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.base import ImageFiles
from taming.data.codes import CodeDataset, read_manifest
from taming.data.copies import Copies
from taming.data.options import ImageOptions
from taming.data.seeding import Position, SeededDataset
from taming.data.tools import code_writer
from taming.data.utils import custom_collate
from taming.errors import UserError
from taming.training.cli import main as main_command
from taming.training.code_checks import match_datasets
from taming.training.encoding import Encoding, _narrow
from tests.kit.codes import CODES, FIRST, encode, write_base, write_home
from tests.kit.datasets import Noise
from tests.kit.images import write_images
from tests.kit.models import first_stage_config, scene_config
from tests.kit.processes import in_two_processes
from tests.kit.scenes import OPTIONS, write_coco
from tests.kit.training import small_vqgan, write_config, write_transformer
from tests.support import write_run

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
NOISE = {"target": "tests.kit.datasets.Noise", "params": {"length": 12}}
COORDINATES = {
    "target": "taming.modules.misc.coord.CoordStage",
    "params": {"n_embed": 12, "down_factor": 2},
}


class Pairs(Noise):
    """`Noise`, its mirror image and coordinates as conditions."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        rows = np.linspace(0, 0.9, self.size**2, dtype=np.float32).reshape(self.size, self.size)
        return item | {"other": item["image"][:, ::-1].copy(), "coord": rows}


def arrays(folder: str | Path) -> dict[str, np.ndarray]:
    return {path.name: np.load(path) for path in sorted(Path(folder).glob("*.npy"))}


def contents(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("codes"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_writer, "PART", 5)


def test_an_interrupted_encoding_goes_on(
    home: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--base", str(home / "transformer.yaml"), f"{FIRST}{home / 'first'}"]
    command += ["--batch_size", "2", "--flips"]
    encode([*command, "--out", "whole"])
    calls, encode_batch = [], Encoding._encode_batch

    def killed(self: Encoding, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return encode_batch(self, *args)

    monkeypatch.setattr(Encoding, "_encode_batch", killed)
    with pytest.raises(KeyboardInterrupt, match="finished parts are kept"):
        encode([*command, "--out", "parts"])
    assert [path.name for path in Path("parts/unfinished").glob("*.npz")] == ["train-000000.npz"]
    with pytest.raises(UserError, match="parts are incomplete"):
        CodeDataset("parts")
    with pytest.raises(UserError, match="codes of another protocol: seed: 23 before, and 1 now"):
        encode([*command, "--out", "parts", "--seed", "1"])
    encode([*command, "--out", "parts"])
    assert len(calls) == 5 + 9 - 3  # three batches were kept
    assert contents("parts") == contents("whole")
    encode([*command, "--out", "parts"])
    assert len(calls) == 11
    settings = read_manifest(Path("parts")).settings
    was = settings.first_stage["weights"]  # of an earlier version, which hashed counts as well
    for former in (was, "another"):
        stage = {**settings.first_stage, "weights": WeightsHash("own", former)}
        another = pytest.raises(UserError, match=f"another first stage: weights: {was} before")
        with another if former != was else nullcontext():
            code_writer.CodeWriter(Path("parts"), replace(settings, first_stage=stage))
    with pytest.raises(UserError, match="another protocol: crops: 0 before, and 1 now; give anoth"):
        encode([*command, "--out", "parts", "--crops", "1"])
    Path("parts/manifest.json").write_text("[]")
    with pytest.raises(UserError, match="manifest.json is damaged; give an empty folder by --out"):
        encode([*command, "--out", "parts"])


def test_codes_of_files_that_have_changed_are_not_gone_on_with(home: Path, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images" / "dogs", 6, 16, 16)
    config = OmegaConf.load(home / "transformer.yaml")
    files = {"size": 16, "root": "images"}
    config.data.params.train = {"target": "taming.data.folder.ImageFolderTrain", "params": files}
    del config.data.params.validation
    command = ["--base", write_config(tmp_path, config), f"{FIRST}{home / 'first'}"]
    encode([*command, "--out", "changing"])
    encode([*command, "--out", "changing"])
    shutil.copyfile(paths[1], paths[0])
    with pytest.raises(UserError, match="codes of files of data.params.train that have changed"):
        encode([*command, "--out", "changing"])
    manifest = Path("changing/manifest.json")  # an earlier version's
    content = json.loads(manifest.read_text())
    del content["files"]
    manifest.write_text(json.dumps(content))
    encode([*command, "--out", "changing"])


def test_processes_share_the_work(home: Path, small_parts: None) -> None:
    command = ["--base", str(home / "transformer.yaml"), f"{FIRST}{home / 'first'}", "--out"]
    in_two_processes(encode, [*command, "two"])
    assert contents("two") == contents(home / "codes")


def first_stage(home: Path) -> Any:
    return load_run(home / "first")[0]


def test_mirrored_copies_and_their_conditions(home: Path) -> None:
    """Conditions that are images are mirrored, coordinates are not."""
    model = first_stage(home)
    items = [Pairs(12)[index] for index in range(12)]
    values = np.stack([item["image"] for item in items])
    for name, stage in (("other", "__is_first_stage__"), ("coord", COORDINATES)):
        base = write_base(Path(), f"{__name__}.Pairs", cond_stage_key=name, cond_stage_config=stage)
        encode(["--base", base, "--out", name, "--flips", f"{FIRST}{home / 'first'}"])
        made = arrays(name)
        expected = [values, values[:, :, ::-1]]
        codes = [encoded(model, views) for views in expected]
        assert np.array_equal(made["train.codes.npy"], np.stack(codes, axis=1))
        assert np.array_equal(made["validation.codes.npy"][:, 0], codes[0][:4])
        conditions = made["train.conditions.npy"]
        if name == "other":
            assert np.array_equal(conditions, np.stack(codes[::-1], axis=1))
        else:
            assert conditions.shape == (12, 2, 8, 8) and len(np.unique(conditions)) > 8
            assert np.array_equal(conditions[:, 0], conditions[:, 1])
        pictures = logged(base, name, home)
        assert ("conditioning_rec" in pictures) == (name == "other")


def encoded(model: Any, images: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).contiguous()
    return model.encode_to_indices(x).numpy()


def logged(base: str, codes: str, home: Path) -> dict[str, torch.Tensor]:
    config = load_config([base], [f"{FIRST}{home / 'first'}"])
    expand_stages(config)
    model = instantiate_from_config(config.model)
    batch = custom_collate([CodeDataset(codes)[index] for index in range(2)])
    pictures = model.log_images(batch)
    expected = model.first_stage_model.decode_indices(batch["codes"])
    assert torch.equal(pictures["reconstructions"], expected)
    return pictures


def test_scenes_are_mirrored_with_their_boxes(home: Path) -> None:
    root = write_coco(Path("data"))
    model = {"cond_stage_config": scene_config(1)["cond_stage_config"]}
    gpt = {"vocab_size": 1024, "block_size": 400, "n_layer": 1, "n_head": 1, "n_embd": 8}
    base = write_transformer(Path(), cond_stage_key="objects_bbox", **model)
    config = OmegaConf.load(base)
    config.model.params.transformer_config.params = gpt
    params = {**OPTIONS, "data_path": str(root), "random_flip": True, "target_image_size": 16}
    scenes = {"target": "taming.data.annotated_objects_coco.AnnotatedObjectsCoco"}
    config.data.params.batch_size, config.data.params.validation = 1, None
    config.data.params.train = {**scenes, "params": params}
    OmegaConf.save(config, base)
    encode(["--base", base, "--out", "codes", "--flips", f"{FIRST}{home / 'first'}"])
    items = {
        mirrored: AnnotatedObjectsCoco(**{**params, "random_flip": False})
        for mirrored in (False, True)
    }
    items[True].transform_functions[0].flip_share = 1.0
    for copy, (mirrored, dataset) in enumerate(items.items()):
        item = SeededDataset(dataset, 23)[0]
        assert item["image"].shape == (16, 16, 3)
        assert np.array_equal(
            arrays("codes")["train.conditions.npy"][0, copy], item["objects_bbox"].numpy()
        ), mirrored
        expected = encoded(first_stage(home), item["image"][None])
        assert np.array_equal(arrays("codes")["train.codes.npy"][:1, copy], expected)


def test_random_crops_and_the_choice_among_them(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of data that crop at the center, by themselves; each epoch chooses by its position."""
    files = write_images(Path("images"), 6, 16, 64)
    Path("list.txt").write_text("\n".join(files))
    unconditional = {"cond_stage_config": "__is_unconditional__"}
    base = write_base(Path(), "taming.data.custom.CustomTrain", **unconditional)
    config = OmegaConf.load(base)
    for split in ("train", "validation"):
        params = {"size": 16, "training_images_list_file": "list.txt"}
        config.data.params[split].params = params
    OmegaConf.save(config, base)
    command = ["--base", base, "--crops", "3", "--flips", f"{FIRST}{home / 'first'}"]
    encode([*command, "--out", "codes"])
    made = arrays("codes")["train.codes.npy"]
    assert made.shape == (6, 6, 8, 8) and made.dtype == np.uint16
    assert arrays("codes")["validation.codes.npy"].shape == (6, 1, 8, 8)
    options = ImageOptions(16, random_crop=True)
    dataset = SeededDataset(ImageFiles(files, options), 23)
    # What is drawn once is said, of each kind by itself.
    flip = {"target": "albumentations.HorizontalFlip"}
    drawn = ImageOptions(16, random_crop=True, random_flip=True, augmentations=[flip])
    for crops, flips, fixed in (
        (0, False, "crops and augmentations and flips of"),
        (1, True, "crops and augmentations of"),
        (2, False, "random flips of"),
        (2, True, ""),
    ):
        caplog.clear()
        Copies(ImageFiles(files, drawn), crops, flips, 0).say_what_is_fixed("train")
        assert fixed in caplog.text and bool(caplog.text) is bool(fixed)
    crops = np.stack([dataset[Position(epoch, 2)]["image"] for epoch in range(3)])
    assert np.array_equal(made[2, ::2], encoded(first_stage(home), crops))
    assert np.array_equal(made[2, 1::2], encoded(first_stage(home), crops[:, :, ::-1]))

    chosen = SeededDataset(CodeDataset("codes"), 5)
    epochs = [chosen[Position(epoch, 2)]["codes"] for epoch in range(40)]
    assert all(np.array_equal(chosen[Position(7, 2)]["codes"], epochs[7]) for _ in range(3))
    assert len({codes.tobytes() for codes in epochs}) == len({one.tobytes() for one in made[2]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--crops", "2"], "--crops 2: Noise crops nothing, so that all 2 copies would be the "),
        (["--crops", "-1"], "--crops and --seed are at least 0, and --batch_size at least 1"),
        (["model.params.cond_stage_key=depth"], "the data has no 'depth'"),
        (["model.params.transformer_config.params.vocab_size=8"], "too small for the 12 codes"),
        (["data=null"], "the configs have no 'data' section"),
    ],
)  # fmt: skip
def test_what_cannot_be_encoded_is_refused(home: Path, arguments: list[str], message: str) -> None:
    base = str(home / "transformer.yaml")
    with pytest.raises(UserError) as caught:
        encode(["--base", base, "--out", "x", f"{FIRST}{home / 'first'}", *arguments])
    assert message in str(caught.value) and not Path("x").exists()


def test_untrained_first_stages_are_not_encoded_with(home: Path) -> None:
    untrained = ["model.params.first_stage_config.params.ckpt_path=null"]
    untrained += ["model.params.transformer_config.params.vocab_size=64"]
    with pytest.raises(UserError, match="the first stage is not trained: set model.params.first_"):
        encode(["--base", str(home / "transformer.yaml"), "--out", "x", *untrained])


def test_shipped_configs_are_found_by_name() -> None:
    with pytest.raises(UserError, match="the first stage is not trained"):
        untrained = "model.params.first_stage_config.params.ckpt_path=null"
        encode(["--base", "digits_transformer", "--out", "x", untrained])
    with pytest.raises(UserError, match="there is no run or checkpoint at digits_transformers"):
        encode(["--base", "digits_transformers", "--out", "x"])


@pytest.mark.parametrize("order", ["random", "annealed"])
def test_codes_are_the_same_whatever_the_order_that_they_are_read_in(
    home: Path, order: str
) -> None:
    first = f"{FIRST}{home / 'first'}"
    base = write_base(Path(), order=order, raster_share=0.5)
    read = "model.params.transformer_config.params.target_positions=true"
    encode(["--base", base, "--out", "codes", first, read])
    assert arrays("codes").keys() and all(
        np.array_equal(array, arrays(home / "codes")[name])
        for name, array in arrays("codes").items()
    )
    main(["--base", base, "-t", "-n", "run", "--max_steps", "1", first, read, CODES])
    assert list(Path("logs").glob("*_run/checkpoints/last.ckpt"))


def test_codes_need_neither_images_nor_a_data_section(home: Path) -> None:
    """A first stage's run is enough to encode its data, and then a transformer without any."""
    files = write_images(Path("images"), 6, 16, 16)
    Path("list.txt").write_text("\n".join(files))
    config = small_vqgan()
    for split in ("train", "validation"):
        params = {"size": 16, "training_images_list_file": "list.txt"}
        config.data.params[split] = {"target": "taming.data.custom.CustomTrain", "params": params}
    run = write_run(Path("logs/first"), first_stage_config())
    OmegaConf.save({"data": config.data}, run / "configs" / "2020-project.yaml")
    encode(["--base", str(run), "--out", "codes"])
    shutil.rmtree("images")
    whole = OmegaConf.load(write_base(Path(), cond_stage_config="__is_unconditional__"))
    del whole["data"]
    base = write_config(Path(), whole)  # type: ignore[arg-type]
    main(["--base", base, "-t", "-n", "run", "--max_steps", "1", f"{FIRST}{run}", CODES])
    [stored] = Path("logs").glob("*_run/configs/*-project.yaml")
    data = OmegaConf.load(stored).data.params
    assert (data.codes, data.train.params.training_images_list_file) == ("codes", "list.txt")

    # Without a word about its images, a config gets those of the codes.
    nothing = {"target": "main.DataModuleFromConfig", "params": {"batch_size": 2}}
    config = OmegaConf.create({"data": {**nothing, "params": {"codes": "codes"}}})
    assert match_datasets(config) == [
        f"data.params.{split}=taming.data.custom.CustomTrain" for split in ("train", "validation")
    ]
    assert config.data.params.train.params.training_images_list_file == "list.txt"

    # Values that a config leaves to the user are those of images, too.
    whole.data = {"target": "main.DataModuleFromConfig", "params": {"batch_size": 2}}
    whole.data.params.train = {"target": "taming.data.custom.CustomTrain", "params": {"size": 16}}
    whole.data.params.train.params.training_images_list_file = "???"
    base = write_config(Path(), whole)  # type: ignore[arg-type]
    main(["--base", base, "-t", "-n", "open", "--max_steps", "1", f"{FIRST}{run}", CODES])
    assert list(Path("logs").glob("*_open/checkpoints/last.ckpt"))


def test_indices_take_as_many_bytes_as_they_need() -> None:
    codes = torch.tensor([[65_535]])
    assert [_narrow([codes], count).dtype for count in (2**16, 2**16 + 1)] == [np.uint16, np.int32]
    assert _narrow([codes], 2**16).item() == 65_535
