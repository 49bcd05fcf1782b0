"""A config is checked as a whole, by the signatures of what it names, before anything is built."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import pytest
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import Dataset

import taming.data
import taming.models
import taming.modules
from taming.config import check_config, instantiate_from_config
from taming.config_values import Range, parameters_of
from taming.errors import UserError
from taming.lr_scheduler import (
    ConstantSchedule,
    CosineSchedule,
    LambdaWarmUpCosineScheduler,
    LinearSchedule,
)
from taming.modules.losses import DummyLoss
from taming.training.callbacks import ImageLogger
from taming.training.data_module import DataModuleFromConfig
from tests.kit.models import (
    CLASSES,
    FIRST_STAGE,
    SPIRAL,
    VQGAN,
    cosine_config,
    first_stage_config,
    transformer_config,
)

BUILT: list[str] = []


class Notes(nn.Module):
    """A part that notes when it is built, and takes anything."""

    def __init__(self, name: str, **anything: Any) -> None:
        super().__init__()
        BUILT.append(name)


class OwnTransformer(nn.Module):
    """A class of somebody else's, without hints, which has its own idea of a `target`."""

    def __init__(self, size, options):  # type: ignore[no-untyped-def]
        super().__init__()
        self.size, self.options = size, options


LISTED = {"size": 8, "training_images_list_file": "x.txt"}
DATA = {
    "target": "main.DataModuleFromConfig",
    "params": {
        "batch_size": 4,
        "num_workers": 0,
        "train": {"target": "taming.data.custom.CustomTrain", "params": LISTED},
    },
}
CALLBACK = {"target": "main.ImageLogger", "params": {"batch_frequency": 1, "max_images": 2}}
VQ = first_stage_config(scheduler_config=cosine_config())
EMA = first_stage_config(VQGAN + "EMAVQ", decay=0.9)
GPT = transformer_config(permuter_config=SPIRAL)
KINDS = {"model": "module", "data": "data module", "callback": "callback"}
LOSS, GPT_PARAMS = "lossconfig.params", "transformer_config.params"


def changed(config: Any, path: str, value: Any) -> Any:
    """A copy of a config with another value at a path in its params, or without one."""
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    node = config["params"]
    for key in parents:
        node = node[key]
    if value is MISSING:
        del node[last]
    else:
        node[last] = value
    return config


MISSING = object()
NAN = float("nan")

# Where, what, and words of the sentence.
WRONG: list[tuple[Any, str, Any, str]] = [
    # types
    (VQ, "ddconfig", 1, "a mapping is expected here, not 1"),
    (VQ, "ddconfig", {"ch": 32}, r"Encoder needs .*; set model\.params\.ddconfig\.out_ch$"),
    (
        VQ,
        "ddconfig",
        {"ch_mult": 1, 1: None},
        "1 is no name of a parameter; a list is written .1, 1",
    ),
    (VQ, "lossconfig.params", {2: None}, "2 is no name of a parameter; a list"),
    (VQ, "ddconfig.ch_mult", -0.5, "a list of whole numbers from 1"),
    (VQ, "ddconfig.ch_mult", [1, []], "a list of whole numbers from 1"),
    (VQ, "ddconfig.ch_mult", [1, -1], "a list of whole numbers from 1"),
    (VQ, "ddconfig.z_channels", MISSING, "needs .* set model.params.ddconfig.z_channels$"),
    (VQ, "ddconfig.attn_resolutions", 16, "a list of whole numbers"),
    (VQ, "n_embed", [[]], "a whole number"),
    (VQ, "n_embed", 1.5, "a whole number"),
    (VQ, "embed_dim", "\0", "a whole number"),
    (VQ, "lossconfig", [1], "a mapping"),
    (VQ, "lossconfig.target", 0, "0 is not a dotted path"),
    (VQ, "lossconfig.params", [1], "names and their values are expected here, not .1."),
    (VQ, f"{LOSS}.disc_weight", "\0", "a number"),
    (VQ, f"{LOSS}.disc_ndf", "abc", "a whole number"),
    (VQ, f"{LOSS}.disc_num_layers", {"target": "os.getcwd"}, "a whole number"),
    (VQ, f"{LOSS}.disc_start", MISSING, "needs the parameter 'disc_start'"),
    (VQ, f"{LOSS}.disc_loss", "hing", "hinge or vanilla is expected"),
    (VQ, "lossconfig.target", "taming.modules.losses.DummyLoss", "DummyLoss has no parameter"),
    (VQ, f"{LOSS}.disc_strat", 3, "no parameter 'disc_strat'; did you mean 'disc_start'"),
    (VQ, "scheduler_config.params.lr_max", None, "a number"),
    (VQ, "scheduler_config.target", "taming.lr_scheduler.Cosine", "there is no 'Cosine'"),
    (GPT, "transformer_config", "abc", "a mapping"),
    (GPT, "transformer_config.target", True, "True is not a dotted path"),
    (GPT, "transformer_config.target", "torch.nn.functional.relu", "no class of the kind"),
    (GPT, f"{GPT_PARAMS}.block_size", NAN, "a whole number"),
    (GPT, f"{GPT_PARAMS}.vocab_size", "", "a whole number"),
    (GPT, f"{GPT_PARAMS}.n_head", {"target": "os.getcwd"}, "a whole number"),
    (GPT, "first_stage_config.params.ddconfig.ch", "x", "a whole number"),
    (GPT, "cond_stage_config.params.n_classes", [5], "a whole number"),
    (GPT, "permuter_config.params.H", None, "a whole number"),
    (DATA, "batch_size", "abc", "a whole number"),
    (DATA, "num_workers", {"a": 1}, "a whole number"),
    (DATA, "train", [1], "a mapping"),
    (DATA, "train.params", [1, 2], "names and their values"),
    (DATA, "train.params.training_images_list_file", 1e-4, "a text"),
    (DATA, "train.params.random_crop", 1e12, "true or false"),
    (DATA, "train.params.value_range", 4095, "a list of numbers of 2 entries or null is expected"),
    (DATA, "train.params.augmentations", ["a.B"], "a list of mappings of target and params or"),
    (CALLBACK, "max_images", "abc", "a whole number"),
    # ranges
    (VQ, "n_embed", 0, "is 0; it must be from 1 to"),
    (VQ, "colorize_nlabels", -1, "is -1; it must be from 1 to"),
    (VQ, "ddconfig.ch_mult", [], "it must be of 1 to 16 entries"),
    (VQ, "ddconfig.dropout", 1, "is 1; it must be from 0 to below 1"),
    (VQ, "ddconfig.in_channels", 10**9, "it must be from 1 to 65,536"),
    (VQ, "ddconfig.num_res_blocks", -1, "it must be from 0 to 1,000"),
    (VQ, f"{LOSS}.perceptual_weight", NAN, "a number from 0 to 1,000,000 is expected"),
    (VQ, f"{LOSS}.disc_factor", float("inf"), "a number from 0 to 1,000,000 is expected"),
    (VQ, f"{LOSS}.disc_start", -5, "is -5; it must be from 0 to"),
    (VQ, f"{LOSS}.codebook_weight", -1.0, "is -1.0; it must be from 0 to"),
    (VQ, "scheduler_config.params.warm_up_steps", -1, "it must be from 0 to"),
    (EMA, "decay", 1, "is 1; it must be from 0 to below 1"),
    (EMA, "revive_after", -1, "it must be from 0 to"),
    (GPT, "pkeep", 2, "is 2; it must be at most 1"),
    (GPT, "cond_drop", 1.0, "it must be from 0 to below 1"),
    (GPT, "sos_token", -1, "it must be from 0 to"),
    (GPT, "downsample_cond_size", 0, "is 0; it must be from 1 to"),
    (GPT, f"{GPT_PARAMS}.n_layer", 0, "is 0; it must be from 1 to 10,000"),
    (GPT, f"{GPT_PARAMS}.embd_pdrop", 3, "is 3; it must be from 0 to below 1"),
    (DATA, "num_workers", -1, "is -1; it must be from 0 to"),
    (DATA, "timeout", -1, "is -1; it must be from 0 on"),
    (CALLBACK, "batch_frequency", -1, "is -1; it must be from 0 to"),
]


@pytest.mark.parametrize(("config", "path", "value", "words"), WRONG)
@pytest.mark.parametrize("as_nodes", [False, True], ids=["dicts", "nodes"])
def test_wrong_entries_are_named(
    config: Any, path: str, value: Any, words: str, as_nodes: bool
) -> None:
    section = {id(DATA): "data", id(CALLBACK): "callback"}.get(id(config), "model")
    wrong = changed(config, path, value)
    with pytest.raises(UserError, match=words) as caught:
        check_config(OmegaConf.create(wrong) if as_nodes else wrong, section, KINDS[section])
    place = f"{section}.params.{path}".removesuffix(".target")
    assert str(caught.value).startswith((place, place.rpartition(".")[0]))


def test_right_configs_are_right() -> None:
    with pytest.raises(UserError, match="first_stage_config: there is no module 'nowhere"):
        check_config(changed(GPT, "first_stage_config.target", "nowhere.Model"), "model", "module")
    check_config(changed(VQ, "lossconfig.target", "nowhere.Loss"), "model", "module")  # not needed
    for section, config in (("model", VQ), ("model", EMA), ("model", GPT), ("data", DATA)):
        check_config(config, section, KINDS[section])
    check_config(CALLBACK, "callback", "callback")
    for value in (-1, 8):
        check_config(changed(GPT, "downsample_cond_size", value), "model", "module")
    check_config(changed(GPT, "pkeep", -1), "model", "module")
    check_config(changed(VQ, "ddconfig.somebody_elses_key", "x"), "model", "module")


def test_nothing_is_built_of_a_config_with_an_error() -> None:
    note = {"target": "tests.test_config_schema.Notes", "params": {"name": "stage", "x": 1}}
    config = transformer_config(first_stage_config=note)
    with pytest.raises(UserError, match="permuter_config.params.H"):
        wrong = changed(changed(config, "permuter_config", SPIRAL), "permuter_config.params.H", 0)
        instantiate_from_config(wrong, "model", "module")
    assert BUILT == []


def test_classes_without_hints_take_anything() -> None:
    options = {"target": "a.b", "sise": float("nan"), "more": [None]}
    config = {
        "target": "tests.test_config_schema.OwnTransformer",
        "params": {"size": "large", "options": options},
    }
    assert instantiate_from_config(config, "model", "module").options == options


def test_what_does_not_fit_together_is_said_with_its_place() -> None:
    with pytest.raises(UserError, match=r"^model.params.transformer_config.params: .*n_head \(3\)"):
        instantiate_from_config(transformer_config(gpt={"n_head": 3}), "model", "module")
    with pytest.raises(UserError, match="n_unmasked is 17, beyond block_size: 16"):
        instantiate_from_config(transformer_config(gpt={"n_unmasked": 17}), "model", "module")
    start = transformer_config(cond_stage_config="__is_unconditional__", sos_token=23)
    with pytest.raises(UserError, match="vocab_size is 23, .*sos_token: 23; make it at least 24"):
        instantiate_from_config(start, "model", "module")
    with pytest.raises(UserError, match="vocab_size is 23, .*30 tokens of the condition stage"):
        stage = {**FIRST_STAGE, "params": {**FIRST_STAGE["params"], "n_embed": 30}}
        instantiate_from_config(transformer_config(cond_stage_config=stage), "model", "module")
    cold = cosine_config()
    cold["params"]["lr_max"] = 0.0
    gumbel = first_stage_config(VQGAN + "GumbelVQ", temperature_scheduler_config=cold)
    with pytest.raises(UserError, match="begins at 0.0; it must be above 0"):
        instantiate_from_config(gumbel, "model", "module")


# ---------------------------------------------------------------------- every number has its range

# `ImageOptions` says what these may be.
SIZES = {"size", "crop_size"}


def classes(package: Any) -> Iterator[type]:
    """The public classes of a package that have a constructor of their own."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        for name, entry in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(entry) and entry.__module__ == module.name and name[0] != "_":
                yield entry


def is_bare(hint: Any) -> bool:
    """Whether a hint is a number without a range."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return is_bare(parts[0]) and not any(isinstance(rule, Range) for rule in parts[1:])
    return hint in (int, float) or any(map(is_bare, parts))


def test_every_number_in_a_config_has_its_range() -> None:
    prefixes = ("taming.models.", "taming.modules.vqvae.", "taming.modules.losses.vqp")
    prefixes += ("taming.modules.losses.seg", "taming.modules.misc", "taming.modules.util")
    prefixes += ("taming.modules.transformer.gpt", "taming.modules.transformer.permuter")
    prefixes += ("taming.modules.transformer.kmeans", "taming.modules.discriminator")
    named = [
        entry
        for package in (taming.models, taming.modules)
        for entry in classes(package)
        if issubclass(entry, nn.Module) and entry.__module__.startswith(prefixes)
    ]
    named += [entry for entry in classes(taming.data) if issubclass(entry, Dataset)]
    named += [ImageLogger, DataModuleFromConfig, LambdaWarmUpCosineScheduler]
    named += [ConstantSchedule, LinearSchedule, CosineSchedule]
    inside = {"SeededDataset", "EmbeddingEMA", "CausalSelfAttention", "Block"}
    inside |= {"EqualizedConv", "ResidualBlock", "Attention", "MLP", "PatchEmbedding", "ViT"}
    inside |= {"IdleCodes", "ScaleRevival", "Phi", "PreciseConv2d"}
    bare = [
        f"{entry.__name__}.{name}"
        for entry in named
        if entry.__name__ not in inside
        for name, hint in parameters_of(entry)[0].items()
        if is_bare(hint) and name not in SIZES
    ]
    assert len(named) > 60 and bare == []
    assert is_bare(int | None) and is_bare(Annotated[float, "x"]) and not is_bare(CLASSES)


def test_a_compilation_changes_no_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile` puts a function of its own in the place of this one."""
    original = nn.Module.__init__

    def patched(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__init__", patched)
    assert parameters_of(DummyLoss) == ({}, [], False)


class ByNew:
    def __new__(cls, size: int, n: int = 1) -> Any:
        return object.__new__(cls)


class ByTuple(NamedTuple):
    size: int
    n: int = 1


class BySignature:
    __signature__ = inspect.signature(ByNew)


@pytest.mark.parametrize("kind", [ByNew, ByTuple, BySignature])
def test_classes_that_are_made_without_init(kind: type) -> None:
    accepted, required, _ = parameters_of(kind)
    assert list(accepted) == ["size", "n"] and required == ["size"]
