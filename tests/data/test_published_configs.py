"""The YAMLs in configs/ against the published YAMLs and models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from taming.config import load_config
from taming.trust import canonical_name
from tests.support import GOLDEN, load_manifest

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
PUBLISHED = json.loads((GOLDEN / "published_configs.json").read_text())
CHECKPOINTS = {  # published models and the config of the same architecture
    "cin_transformer": "cin_transformer",
    "ffhq_transformer_unconditional": "ffhq_transformer",
    "ade20k_transformer": "ade20k_transformer",
    "coco_transformer": "coco_transformer",
    "sflckr_transformer": "sflckr_transformer",
    "vqgan_gumbel_f8_8192": "imagenet_gumbel_vqgan",
}


def load(name: str) -> DictConfig:
    return load_config([CONFIGS / f"{name}.yaml"])


def architecture(node: Any) -> Any:
    """A model's config without checkpoints, losses and the learning rate."""
    if not isinstance(node, dict):
        return node
    left_out = ("ckpt_path", "lossconfig", "base_learning_rate")
    return {key: architecture(value) for key, value in node.items() if key not in left_out}


# The last part of a key whose value is another than in the published YAML, and why.
DIFFERENT = {
    "ckpt_path": "a path on the authors' disk; here it is to be given, `???`",
    "training_images_list_file": "a placeholder; here it is where make_image_list.py writes",
    "test_images_list_file": "as the training list",
    "num_workers": "of the authors' machine: custom_vqgan.yaml takes as many as there are CPUs",
}
# The last part of a key that the published YAML does not have, and why it says the same.
ADDED = {
    "exif": "named where the default is another: images as they are in the files",
    "num_workers": "how many processes load does not change what they load",
    "image_key": "of a stage: what it was trained on, which only training reads",
    "random_crop": "custom_vqgan.yaml names the default, false, as a choice",
    "random_flip": "likewise",
}


def leaves(node: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of a tree of dicts, lists as a whole, by their place in it."""
    if not isinstance(node, dict):
        yield place, canonical_name(node) if place[-1] == "target" else node
        return
    for key, value in node.items():
        yield from leaves(value, (*place, key))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_value_of_the_published_yaml(name: str) -> None:
    published, own = dict(leaves(PUBLISHED[name])), {}
    for section in ("model", "data"):
        own |= leaves(OmegaConf.to_container(load(name)[section]), (section,))
    for place, value in published.items():
        if place[-1] in DIFFERENT:
            assert place in own or place[-1] == "num_workers", place
        else:
            assert own[place] == value, place
    added = {place[-1] for place in own.keys() - published.keys()}
    assert added <= ADDED.keys()


def test_exceptions_are_needed() -> None:
    """A reason is there for something, and what is set to be given is nowhere `null`."""
    different, added = set(), set()
    for name, config in PUBLISHED.items():
        published, own = dict(leaves(config)), dict(leaves(OmegaConf.to_container(load(name))))
        different |= {place[-1] for place in published if own.get(place) != published[place]}
        added |= {place[-1] for place in own.keys() - published if place[0] != "lightning"}
    assert (different, added) == (DIFFERENT.keys(), ADDED.keys())


@pytest.mark.parametrize("name", ALL)
def test_what_the_user_has_to_give_is_asked_for(name: str) -> None:
    """Not `null`, with which a stage would start from random weights, and go unnoticed."""
    for place, value in leaves(OmegaConf.to_container(load(name))):
        assert place[-1] != "ckpt_path" or value is not None, place


@pytest.mark.parametrize("published", CHECKPOINTS)
def test_configs_of_published_models(published: str) -> None:
    model = OmegaConf.to_container(load(CHECKPOINTS[published]).model)
    assert architecture(model) == architecture(load_manifest(published)[0])


@pytest.mark.parametrize("name", ALL)
def test_every_config_says_how_long_it_runs(name: str) -> None:
    config = load(name)
    assert config.lightning.trainer.max_steps > 0
    assert config.model.base_learning_rate > 0 and config.data.target == "main.DataModuleFromConfig"
    assert (CONFIGS / f"{name}.yaml").read_text().startswith("# ")


OF_OWN_DATA = ("class", "custom", "digits", "paired")


@pytest.mark.parametrize(
    "name", [n for n in ALL if not n.endswith("transformer") or n.startswith(OF_OWN_DATA)]
)
def test_the_best_checkpoints_are_kept(name: str) -> None:
    """As README says of first stages and of transformers on your own data."""
    config = load(name)
    assert config.data.params.validation
    monitor = config.model.params.get("monitor")
    if monitor is None:
        monitor = config.lightning.modelcheckpoint.params.monitor
    assert monitor in ("val/rec_loss", "val/total_loss", "val/loss")


@pytest.mark.parametrize("name", [name for name in ALL if name.endswith("transformer")])
def test_sequences_fit(name: str) -> None:
    params = load(name).model.params
    gpt, first = params.transformer_config.params, params.first_stage_config.params
    assert gpt.vocab_size >= first.n_embed and gpt.n_embd % gpt.n_head == 0
    condition = params.cond_stage_config
    if isinstance(condition, str):
        assert condition in ("__is_unconditional__", "__is_first_stage__")
        assert params.get("unconditional", False) == (condition == "__is_unconditional__")
    elif "n_embed" in condition.params:
        assert gpt.vocab_size >= condition.params.n_embed


def test_networks_of_stages_are_written_once() -> None:
    for name in ALL:
        if name.endswith("transformer"):
            text = (CONFIGS / f"{name}.yaml").read_text()
            assert "ch_mult" not in text and text.count("ddconfig") <= 1, name  # changes alone


def test_every_key_is_explained_somewhere() -> None:
    explained: dict[str, bool] = {}
    for name in ALL:
        before = ""
        for line in (CONFIGS / f"{name}.yaml").read_text().splitlines():
            key, colon, rest = line.strip().partition(":")
            if colon and not key.startswith("#"):
                told = "#" in rest or before.strip().startswith("#")
                explained[key] = explained.get(key, False) or told
            before = line
    assert not [key for key, told in explained.items() if not told]
