"""Training on codes in place of images, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.evaluate_transformer import main as evaluate
from taming.checkpoint import read_checkpoint
from taming.config import load_config
from taming.data.codes import CodeDataset
from taming.errors import UserError
from taming.evaluation.results import read_result
from taming.models.stage_identity import describe_first_stage, difference
from taming.training import DataModuleFromConfig
from taming.training.cli import main as main_command
from taming.training.code_checks import match_datasets
from tests.kit.codes import FIRST, encode, write_home
from tests.kit.models import build, ddconfig, first_stage_config
from tests.kit.training import small_vqgan, write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
NOISE = {"target": "tests.kit.datasets.Noise", "params": {"length": 12}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("codes"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(home: Path, *arguments: str, steps: int = 4, name: str = "run") -> Path:
    """Train and return the run's folder."""
    base = ["--base", str(home / "transformer.yaml"), "-n", name, f"{FIRST}{home / 'first'}"]
    main([*base, "-t", "--max_steps", str(steps), *arguments])
    return next(Path("logs").glob(f"*_{name}"))


def losses(run: Path) -> list[tuple[str, str]]:
    """(step, loss) of training and validation, as they are written."""
    tables = sorted(run.glob("csv/*/metrics.csv"))
    rows = [row for table in tables for row in csv.DictReader(table.open())]
    return [
        (row["step"], row[key])
        for row in rows
        for key in ("train/loss", "val/loss")
        if row.get(key)
    ]


def test_training_on_codes_is_training_on_images(home: Path) -> None:
    """To the bit, through a stop; and the run goes on to be evaluated on its images."""
    images = train(home, "lightning.callbacks.image_logger=null", name="images")
    codes = train(home, f"data.params.codes={home / 'codes'}", name="codes", steps=2)
    assert losses(codes) == losses(images)[:2] and len(losses(images)) == 5
    main(["-r", str(codes), "-t", "--max_steps", "4"])
    assert losses(codes) == losses(images)
    before, after = (
        read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"] for run in (images, codes)
    )
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    kinds = {path.name.partition("_gs-")[0] for path in codes.glob("images/train/*.png")}
    assert kinds == {"reconstructions", "conditioning", "side_by_side"} | {
        f"samples_{kind}" for kind in ("half", "nopix", "det")
    }
    evaluate(["-r", str(codes), "--device", "cpu", "--workers", "0", "--no_cache"])
    (path,) = codes.glob("evaluation/transformer-*.json")
    assert read_result(path)["metrics"]["images"] == 4

    # The weights to compare with are those of the run's checkpoint.
    others = changed(home, first_stage={"n_codes": 12, "weights": "0" * 16})
    with pytest.raises(UserError, match=r"of another first stage \(weights 0{16}, the model's are"):
        main(["-r", str(codes), "-t", "--max_steps", "5", f"data.params.codes={others}"])


def changed(home: Path, **settings: Any) -> Path:
    """A copy of the codes whose manifest says something else."""
    shutil.rmtree("changed", ignore_errors=True)
    shutil.copytree(home / "codes", "changed")
    path = Path("changed", "manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return path.parent


# ---------------------------------------------------------------------- what is refused


def cut(name: str, length: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:length])

    return apply


def begun(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "unfinished").mkdir()


def larger_codes(folder: Path) -> None:
    np.save(folder / "train.codes.npy", np.full((12, 1, 8, 8), 12, np.uint16))


def without_train(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    del content["splits"]["train"]
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("train.codes.npy", 700), "train.codes.npy is cut short or damaged; copy it again"),
        (cut("validation.conditions.npy", 50), "validation.conditions.npy is cut short or damaged"),
        (cut("train.codes.npy", 0), "train.codes.npy is cut short or damaged"),
        (cut("manifest.json", 100), "manifest.json is damaged; copy it again, or write it anew"),
        (lambda folder: (folder / "train.codes.npy").unlink(), "train.codes.npy is missing"),
        (lambda folder: shutil.copy(folder / "validation.codes.npy", folder / "train.codes.npy"),
         "train.codes.npy holds uint16 [4, 1, 8, 8], and manifest.json says uint16 [12, 1, 8, 8]"),
        (begun, "are incomplete; go on with the same scripts/encode_dataset.py"),
        (without_train, "has no codes of data.params.train, only of validation; encode it"),
        (shutil.rmtree, "changed has no codes (manifest.json); write them with"),
    ],
)  # fmt: skip
def test_damaged_folders_are_refused(home: Path, damage: Any, message: str) -> None:
    damage(changed(home))
    with pytest.raises(UserError) as caught:
        DataModuleFromConfig(4, train=NOISE, validation=NOISE, codes="changed").setup()
    assert message in str(caught.value)


def test_codes_that_there_are_not_are_refused_while_loading(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger_codes(changed(home))
    with pytest.raises(UserError, match="train.codes.npy is damaged: image 3 has code 12 of 12"):
        CodeDataset("changed", "train")[3]
    for name, key in (("codes", "codes"), ("conditions", "conditions")):
        path = changed(home) / f"train.{name}.npy"
        negative = np.load(path).astype(np.int32)
        negative[3] = -1
        np.save(path, negative)
        splits = json.loads(Path("changed/manifest.json").read_text())["splits"]
        splits["train"][key]["dtype"] = "int32"
        folder = changed(home, splits=splits)
        np.save(path, negative)
        with pytest.raises(UserError, match=f"train.{name}.npy is damaged: image 3 has code -1"):
            CodeDataset(folder, "train")[3]
        assert CodeDataset(folder, "train")[2]
    monkeypatch.setenv("HOME", str(Path(folder).absolute().parent))
    assert CodeDataset(f"~/{Path(folder).name}", "train")[2]


def test_conditions_beyond_the_vocabulary_are_refused_while_loading(home: Path) -> None:
    conditions = np.load(changed(home) / "train.conditions.npy")
    conditions[1:] = 60_000  # the first one is looked at before
    np.save("changed/train.conditions.npy", conditions)
    with pytest.raises(UserError, match="image .* has the token 60000, and .*vocab_size is 1"):
        train(home, "data.params.codes=changed", "data.params.num_workers=0")


CONDITION = {"key": "class_label", "kind": "class", "class": "taming.modules.util.Labelator",
             "weights": None, "settings": {"n_classes": 5, "quantize_interface": True},
             "downsample_cond_size": -1}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "overrides", "message"),
    [
        ({}, ["{larger}"], "are of a codebook of 12 entries, and n_embed of the model's first "
         "stage is 16; encode the data"),
        ({}, ["{other}"], "are of another first stage (weights"),
        ({"condition": None}, [], "are without conditions, and the model has 'class_label'"),
        ({"condition": CONDITION}, [], "have other conditions than the model: their n_classes is "
         "5, and the model's 10"),
        ({}, ["model.params.cond_stage_key=label"], "their key is class_label, and the model's "
         "label"),
        ({"version": 2}, [], "is of version 2 of the format, and this is version 1"),
        ({}, ["model.params.transformer_config.params.block_size=60"], "block_size is 60, too "
         "small for 64 tokens"),
    ],
)  # fmt: skip
def test_codes_of_another_model_are_refused_before_training(
    home: Path, settings: dict[str, Any], overrides: list[str], message: str
) -> None:
    folder = changed(home, **settings)
    stages = {name: f"{FIRST}{home / name}" for name in ("larger", "other")}
    own = [text.format(**stages) for text in overrides]
    with pytest.raises(UserError) as caught:
        train(home, f"data.params.codes={folder}", *own)
    assert message in str(caught.value) and not Path("logs").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.params.train.params.seed=1", "train.params.seed is 1, and the codes in .* of none"),
        ("data.params.validation.params.length=9", "validation.params.length is 9, and .* of 4: "),
        ("data.params.train.target=tests.scripts.test_encode_dataset.Pairs", "train.target is .*P"),
    ],
)
def test_codes_of_other_images_are_refused_before_training(
    home: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(home, f"data.params.codes={home / 'codes'}", override)
    assert not Path("logs").exists()


def test_what_a_config_leaves_open_of_its_images_is_that_of_the_codes(home: Path) -> None:
    config = load_config([home / "transformer.yaml"], [f"data.params.codes={home / 'codes'}"])
    config.data.params.train.params.length = "???"
    config.data.params.train.params.random_flip = True  # how they are read
    assert match_datasets(config) == ["data.params.train.params.length=12"]
    assert config.data.params.train.params.length == 12


def test_first_stages_do_not_train_on_codes(home: Path) -> None:
    base = write_config(Path(), small_vqgan())
    with pytest.raises(UserError, match="codes are for transformers, and this model reads images"):
        main(["--base", base, "-t", f"data.params.codes={home / 'codes'}"])


def test_codes_of_images_of_another_size_are_refused(home: Path) -> None:
    config = load_config([home / "transformer.yaml"], [f"data.params.codes={changed(home)}"])
    path = Path("changed/manifest.json")
    content = json.loads(path.read_text())
    content["datasets"]["train"]["params"] |= {"size": 24, "crop_size": 16}
    path.write_text(json.dumps(content))
    params = config.data.params.train.params
    for sides in ({"size": 24, "crop_size": 16}, {"size": 16}, {"size": 16, "crop_size": -1}):
        config.data.params.train.params = {**params, **sides}
        assert match_datasets(config) == []  # the images are 16 x 16
    for sides, message in (
        ({"size": 256}, "train.params.size is 256, and the codes in changed are of 24: encode"),
        ({"size": 24, "crop_size": 8}, "train.params.crop_size is 8, and the codes .* of 16"),
        ({}, "train.params.size is none, and the codes in changed are of 24"),
    ):
        config.data.params.train.params = {**params, **sides}
        with pytest.raises(UserError, match=message):
            match_datasets(config)
    key = "data.params.train.params"
    config.data.params.train.params = {**params, "size": "???", "crop_size": "???"}
    assert match_datasets(config) == [f"{key}.size=24", f"{key}.crop_size=16"]


# ---------------------------------------------------------------------- what weights do not tell


def rounding(levels: list[int], symmetric: bool = False, **changes: Any) -> Any:
    """A first stage whose quantizer has no weights."""
    params = {"levels": levels, "symmetric": symmetric}
    quantizer = {"target": "taming.modules.vqvae.fsq.FSQ", "params": params}
    sizes = {"n_embed": None, "embed_dim": None, "quantizer_config": quantizer}
    return build(first_stage_config(lossconfig=None, **sizes, **changes))


def test_first_stages_of_the_same_weights_are_told_apart() -> None:
    own = describe_first_stage(rounding([8, 4]))
    network = {**ddconfig(), "norm_groups": 8}
    others = {
        "levels": rounding([4, 8]),
        "symmetric": rounding([8, 4], symmetric=True),
        "ddconfig.norm_groups": rounding([8, 4], ddconfig=network),
    }
    for name, other in others.items():
        described = describe_first_stage(other)
        assert described["weights"] == own["weights"] and described["n_codes"] == own["n_codes"]
        found = difference(own, described)
        assert found is not None and found[0] == name
    assert difference(own, describe_first_stage(rounding([8, 4], use_ema=True))) is None
    plain, cosine = (
        build(
            first_stage_config(
                lossconfig=None,
                n_embed=None,
                embed_dim=None,
                quantizer_config={
                    "target": f"taming.modules.vqvae.{name}",
                    "params": {"n_e": 12, "e_dim": 4, "beta": 0.25},
                },
            )
        )
        for name in ("nearest.VectorQuantizer2", "cosine.CosineQuantizer")
    )
    one, other = describe_first_stage(plain), describe_first_stage(cosine)
    found = difference(one, other)
    assert one["weights"] == other["weights"] and found is not None and found[0] == "quantizer"
    json.dumps(own)  # as manifests are written


def test_codes_of_other_settings_are_refused_and_those_of_before_are_not(home: Path) -> None:
    stored = json.loads((home / "codes" / "manifest.json").read_text())["first_stage"]
    settings = {**stored["settings"], "GroupNorm.num_groups": 8}
    for change, message in (
        ({"settings": settings}, r"whose ddconfig.norm_groups is 8, and the model's is 32"),
        ({"quantizer": "other.Quantizer"}, "whose quantizer is other.Quantizer, and the model's"),
    ):
        folder = changed(home, first_stage={**stored, **change})
        with pytest.raises(UserError, match=message):
            train(home, f"data.params.codes={folder}")
    before = {name: stored[name] for name in ("class", "n_codes", "weights")}
    later = {**stored, "settings": {**stored["settings"], "FSQ.of_a_later_version": 1}}
    for first_stage in ({**before, "class": "a.class.that.Moved"}, later):
        train(home, f"data.params.codes={changed(home, first_stage=first_stage)}", steps=1)
        shutil.rmtree("logs")
    command = ["--base", str(home / "transformer.yaml"), f"{FIRST}{home / 'first'}"]
    encode([*command, "--out", str(changed(home, first_stage=before))])  # which is all there
    with pytest.raises(UserError, match="another first stage: settings: GroupNorm.num_groups: 8"):
        folder = changed(home, first_stage={**stored, "settings": settings})
        encode([*command, "--out", str(folder)])
