"""Every YAML in configs/, shrunken, trains two steps on files of its format, logs, resumes and is
sampled from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image

from scripts.make_samples import main as make_samples
from scripts.make_scene_samples import main as make_scene_samples
from scripts.reconstruct import main as reconstruct
from scripts.sample_fast import main as sample_fast
from taming.checkpoint import load_run
from taming.config import load_config
from taming.data.condition_maps import depth_to_rgba
from taming.data.examples import write_all
from taming.data.examples.rendering import render
from taming.training import run_folder
from taming.training.cli import main as main_command
from tests.kit.tokenizers import foreign_file
from tests.support import ROOT

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SPLITS = ("train", "validation")
SIZE = 32  # pixels, where the config has 256


def nodes(config: Any) -> Iterator[DictConfig]:
    """All mappings of a config, outermost first."""
    if isinstance(config, DictConfig):
        yield config
    if isinstance(config, DictConfig | ListConfig):
        keys = config.keys() if isinstance(config, DictConfig) else range(len(config))
        for key in keys:
            if not OmegaConf.is_missing(config, key) and not OmegaConf.is_interpolation(
                config, key
            ):
                yield from nodes(config[key])


def set_if_there(node: DictConfig, **values: Any) -> None:
    for key, value in values.items():
        if key in node:
            node[key] = value


def shrink(config: DictConfig) -> DictConfig:
    """The same experiment with narrow, shallow networks, small images and batches of two."""
    for node in nodes(config):
        if "ch_mult" in node:
            set_if_there(node, ch=32, ch_mult=[1] * len(node.ch_mult), num_res_blocks=1)
            set_if_there(node, z_channels=32)
            side = node.get("resolution", 0)  # of a network between levels: none
            set_if_there(node, resolution=max(SIZE, side * SIZE // 256))
            if side >= 256:  # attention stays in the level that it is in
                attended = [r * SIZE // 256 for r in node.get("attn_resolutions", [])]
                set_if_there(node, attn_resolutions=attended)
        if "n_layer" in node:
            set_if_there(node, n_layer=1, n_head=2, n_embd=16)
        if "disc_start" in node:
            node.disc_start, node.disc_ndf, node.perceptual_weight = 1, 8, 0.0
        set_if_there(node, embed_dim=8, scales=None)
        for key in ("size", "crop_size", "target_image_size"):
            if (node.get(key) or 0) >= 256:
                node[key] = node[key] * SIZE // 256
    config.data.params.batch_size, config.data.params.num_workers = 2, 0
    quick = {"max_steps": 2, "limit_val_batches": 1, "enable_progress_bar": False}
    config.lightning.trainer.update(quick)
    return config


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered datasets of all formats."""
    root = tmp_path_factory.mktemp("examples")
    write_all(root)
    return root


def prepare(name: str, folder: Path) -> str:
    """The shrunken config `name` on disk, and checkpoints of its stages."""
    config = shrink(load_config([ROOT / "configs" / f"{name}.yaml"]))
    for stage in ("first_stage_config", "cond_stage_config"):
        params = (config.model.params.get(stage) or {}) if "model" in config else {}
        if isinstance(params, DictConfig) and "ckpt_path" in list(params.get("params", {})):
            params.params.ckpt_path = _untrained(params, folder / f"{stage}.ckpt")
    if config.model.params.get("ckpt_path"):
        whole = "target" in config.model  # else all but the training is the file's
        start = _untrained(config.model, folder / "start.ckpt") if whole else None
        config.model.params.ckpt_path = start or str(foreign_file("llamagen", folder))
        if not whole:
            sizes = {"resolution": SIZE, "attn_resolutions": [SIZE // 2]}
            config.model.params.ddconfig = sizes
    OmegaConf.save(config, folder / f"{name}.yaml")
    return str(folder / f"{name}.yaml")


def _untrained(stage: DictConfig, path: Path) -> str:
    """A checkpoint of a stage with random weights."""
    from taming.checkpoint import save_atomic
    from taming.config import instantiate_from_config, without_checkpoint_paths

    model = instantiate_from_config(without_checkpoint_paths(stage))
    save_atomic({"state_dict": model.state_dict()}, path)
    return str(path)


def sample_one(run: Path, model: Any, folder: Path) -> list[Path]:
    """One image of a run, by the script that is for its condition; where it is."""
    common = ["-r", str(run), "-o", str(folder), "--batch_size", "1", "--device", "cpu"]
    if not hasattr(model, "transformer"):
        size = str(model.encoder.resolution)
        reconstruct([*common, inputs_of(model, folder / "inputs"), "--size", size])
        return list(folder.glob("3/*.png"))
    if model.cond_stage_key == "objects_bbox":
        make_scene_samples([*common, "-R", f"{SIZE},{SIZE}", "-N", "1", "-n", "1"])
        return list(folder.glob("3_*/samples/*/*.png"))
    if model.be_unconditional or model.cond_stage_key in ("class_label", "coord"):
        classes = ["--classes", "1"] if model.cond_stage_key == "class_label" else []
        sample_fast([*common, "-n", "1", *classes])
        return list(folder.glob("samples/*/3/**/*.png"))
    make_samples([*common, "-n", "1"])
    assert list(folder.glob("3_*/reconstructions/*.png"))
    return list(folder.glob("3_*/samples/*.png"))


def inputs_of(stage: Any, folder: Path) -> str:
    """A folder with a file of what a first stage reads: labels, depth or an image."""
    scene = render(0, SIZE, SIZE)
    channels = stage.encoder.conv_in.in_channels
    files = {1: depth_to_rgba(scene.depth), 3: scene.image}
    folder.mkdir(parents=True)
    Image.fromarray(files.get(channels, scene.labels)).save(folder / "a.png")
    return str(folder)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_trains_logs_resumes_and_is_sampled_from(
    path: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "max_steps" in OmegaConf.load(path).lightning.trainer
    (tmp_path / "data").symlink_to(examples / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(examples / "cache"))
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "2021-01-01T00-00-00")
    main(["--base", prepare(path.stem, tmp_path), "-t", "True"])
    [run] = tmp_path.glob(f"logs/*_{path.stem}")
    assert list(run.glob("images/train/reconstructions_gs-000001_*.png"))
    if "scene_images" in path.stem:
        assert list(run.glob("images/train/conditioning_gs-000001_*.png"))
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "2021-01-01T00-00-01")
    main(["-r", str(run), "-t", "True", "--max_steps", "3"])
    model, _, step = load_run(run)
    assert step == 3 and not model.training
    [sampled] = sample_one(run, model, tmp_path / "samples")
    with Image.open(sampled) as image:
        assert image.size == ((2 * SIZE, 2 * SIZE) if "cin512" in path.stem else (SIZE, SIZE))


def test_a_transformer_of_crops_samples_whole_images_by_sliding_its_window(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the head of cin512_transformer.yaml says; its code crops have a quarter of the tokens."""
    (tmp_path / "data").symlink_to(examples / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(examples / "cache"))
    splits = [f"data.params.{split}.params.config.crop_size={SIZE}" for split in SPLITS]
    network = "model.params.first_stage_config.params.ddconfig"  # as of a run
    own = [f"{network}.resolution={SIZE}", f"{network}.attn_resolutions=[{SIZE // 16}]"]
    overrides = [*splits, *own, "model.params.transformer_config.params.block_size=4"]
    main(["--base", prepare("cin512_transformer", tmp_path), "-t", "True", *overrides])
    [run] = tmp_path.glob("logs/*_cin512_transformer")
    model, _, _ = load_run(run)
    assert model.transformer.config.block_size == 4
    size = ["--size", f"{2 * SIZE},{2 * SIZE}"]
    sample_fast(["-r", str(run), "-o", "samples", "-n1", "--classes", "1", *size, "--device=cpu"])
    [sampled] = (tmp_path / "samples").glob("samples/*/2/**/*.png")
    with Image.open(sampled) as image:
        assert image.size == (2 * SIZE, 2 * SIZE)
