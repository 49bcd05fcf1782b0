"""A checkpoint that does not fit says which config value is likely wrong."""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from taming.checkpoint import load_run, load_weights
from taming.checkpoint.fit import misfit
from taming.checkpoint.weights import LargeTensorsUnset, check_fit
from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.modules.transformer.gpt import GPT
from tests.kit.datasets import images
from tests.kit.models import build, first_stage_config, transformer_config, unconditional_config
from tests.support import write_run


def set_in(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    node: Any = config["params"]
    *parents, last = path.split(".")
    for key in parents:
        node = node[key]
    node[last] = value
    return config


FIRST_STAGE = {
    "n_embed": (20, "n_embed is 20, but 12 in the checkpoint"),
    "embed_dim": (5, "embed_dim is 5, but 4"),
    "ddconfig.ch": (64, "ddconfig.ch is 64, but 32"),
    "ddconfig.ch_mult": ([1, 1, 1], "the length of ddconfig.ch_mult is 3, but 2"),
    "ddconfig.num_res_blocks": (2, "ddconfig.num_res_blocks is 2, but 1"),
    "ddconfig.attn_resolutions": ([8], "levels in attn_resolutions is 1, but 0"),
    "ddconfig.in_channels": (1, "ddconfig.in_channels is 1, but 3"),
    "ddconfig.out_ch": (1, "ddconfig.out_ch is 1, but 3"),
    "ddconfig.z_channels": (16, "ddconfig.z_channels is 16, but 8"),
    "ddconfig.double_z": (True, r"z_channels \(twice that with double_z\) is 16, but 8"),
    "lossconfig.params.disc_ndf": (16, "disc_ndf is 16, but 8"),
    "lossconfig.params.disc_in_channels": (6, "disc_in_channels is 6, but 3"),
}


@pytest.mark.parametrize("path", FIRST_STAGE)
def test_a_first_stages_value_is_named(path: str) -> None:
    value, expected = FIRST_STAGE[path]
    state = build(first_stage_config()).state_dict()
    other = instantiate_from_config(set_in(first_stage_config(), path, value))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(UserError, match=f"^a.ckpt does not fit the config: .*{expected}"):
        load_weights(other, state, source="a.ckpt")
    assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())


def test_labels_of_segmentations_are_named() -> None:
    def config(labels: int) -> dict[str, Any]:
        target = "taming.models.vqgan.VQSegmentationModel"
        return first_stage_config(target, n_labels=labels, lossconfig=None)

    with pytest.raises(UserError, match="n_labels .*is 7, but 5 in the checkpoint"):
        load_weights(build(config(7)), build(config(5)).state_dict())


TRANSFORMER = {
    "transformer_config.params.n_layer": 2,
    "transformer_config.params.n_embd": 32,
    "transformer_config.params.vocab_size": 50,
    "transformer_config.params.block_size": 170,
    "first_stage_config.params.n_embed": 20,
}


@pytest.mark.parametrize("path", TRANSFORMER)
def test_a_transformers_value_is_named_by_its_place(path: str) -> None:
    state = build(unconditional_config()).state_dict()
    other = instantiate_from_config(set_in(unconditional_config(), path, TRANSFORMER[path]))
    with pytest.raises(UserError, match=f"{path} is {TRANSFORMER[path]}, but"):
        load_weights(other, state)


VARIANTS = {
    "rope_grid": ([4, 4], "null", "one of 16 codes"),
    "qk_norm": (True, "false", "true"),
    "norm": ("rms", "layer", "rms"),
    "mlp": ("swiglu", "gelu", "swiglu"),
    "adaln_classes": (5, "0", "5"),
    "target_positions": (True, "false", "true"),
}


@pytest.mark.parametrize("option", VARIANTS)
def test_a_variants_option_is_named_either_way(option: str) -> None:
    (value, off, on), key = VARIANTS[option], f"transformer_config.params.{option}"
    with torch.device("meta"):
        usual, variant = (
            instantiate_from_config(transformer_config(o)) for o in ({}, {option: value})
        )
    for model, other, values in ((usual, variant, (off, on)), (variant, usual, (on, off))):
        with pytest.raises(UserError) as error:
            check_fit(model.state_dict(), other.state_dict(), source="a.ckpt")
        difference = f"{key} is {values[0]}, but {values[1]} in the checkpoint"
        assert str(error.value) == f"a.ckpt does not fit the config: {difference}"


def test_all_that_differs_of_a_variant_is_named_and_sizes_as_the_config_has_them() -> None:
    def tensors(**options: Any) -> dict[str, torch.Tensor]:
        with torch.device("meta"):
            return GPT(
                **{"vocab_size": 23, "block_size": 20, "n_layer": 1, "n_embd": 16, **options}
            ).state_dict()

    both = tensors(rope_grid=[2, 2], adaln_classes=3, n_head=2)
    with pytest.raises(
        UserError, match="adaln_classes is 3, but 0 .* and rope_grid is one of 4 codes"
    ):
        check_fit(both, tensors(), source="a.ckpt")
    turned = tensors(rope_grid=[2, 2], n_head=2)
    longer = tensors(rope_grid=[2, 2], n_head=2, block_size=30)
    with pytest.raises(UserError, match="block_size is 20, but 30 in the checkpoint"):
        check_fit(turned, longer, source="a.ckpt")


def test_codes_that_turn_are_counted_as_they_are_read() -> None:
    """Of full attention, and of any order, the last code is read as well."""

    def tensors(**options: Any) -> dict[str, torch.Tensor]:
        return GPT(23, 20, 1, 2, 16, rope_grid=[3, 4], **options).state_dict()

    for options in ({}, {"attention": "full"}, {"target_positions": True}):
        usual = GPT(23, 20, 1, 2, 16, **options).state_dict()
        with pytest.raises(UserError, match="rope_grid is one of 12 codes, but null in"):
            check_fit(tensors(**options), usual, source="a.ckpt")


def test_tensors_of_other_dimensions_tell_nothing_of_variants() -> None:
    with torch.device("meta"):
        own = GPT(23, 20, 1, 2, 16).state_dict()
    for name in ("pos_emb", "blocks.0.attn.mask", "blocks.0.mlp.0.weight", "ln_f.bias"):
        with pytest.raises(UserError, match="in the checkpoint|has shape"):
            check_fit(own, {**own, name: torch.zeros(())}, source="a.ckpt")


def test_what_the_file_has_more_of_is_named() -> None:
    larger = build(unconditional_config(gpt={"n_layer": 2})).state_dict()
    with pytest.raises(UserError, match="params.n_layer is 1, but 2 in the checkpoint"):
        load_weights(build(unconditional_config()), larger)
    one = torch.zeros(1)
    assert "x: 1 key unknown" in str(
        misfit("a", {"x.a": one, "x.b": one}, {"x.a": one}, [], ["x.b"])
    )


def test_half_of_a_model_is_neither_kind(tmp_path: Path) -> None:
    one = torch.zeros(1)
    second = {"transformer.a": one, "first_stage_model.b": one}
    missing = sorted(second)
    text = str(misfit("a", {"encoder.a": one}, second, missing, ["encoder.a"]))
    assert "it is a first stage" not in text and "1 key missing" in text
    # Counts are compared of stages that both have.
    model = {"encoder.down.0.block.0.a": one, "decoder.a": one}
    text = str(misfit("a", {"decoder.a": one}, model, ["encoder.down.0.block.0.a"], []))
    assert "encoder: 1 key missing" in text and "--parts decoder" in text


@pytest.mark.parametrize(
    ("name", "shapes", "expected"),
    [
        ("quantize.used", ((5,), (7,)), "the number of codes in remap is 7, but 5 in the "),
        ("first_stage_model.C", ((3, 9), (4, 9)), "first_stage_config.params.ncluster is 4, but 3"),
        (
            "cond_stage_model.quantize.embedding.weight",
            ((12, 4), (20, 4)),
            "cond_stage_config.params.n_embed is 20, but 12",
        ),
        ("quantize.embedding.weight", ((), (20, 4)), "embed is 20, but something else in the "),
        (
            "loss.discriminator.main.5.weight",
            ((8, 4), (16, 4)),
            "a width by lossconfig.params.disc_num_layers and disc_ndf is 16, but 8",
        ),
    ],
)
def test_shapes_are_named(name: str, shapes: tuple[Any, Any], expected: str) -> None:
    file, model = ({name: torch.zeros(shape)} for shape in shapes)
    assert expected in str(misfit("a.ckpt", file, model, [], []))


def test_whole_parts_alone_can_be_loaded() -> None:
    model = {f"{part}.{name}": torch.zeros(1) for part in ("encoder", "decoder") for name in "ab"}
    for names, advised in ((["encoder.a", "encoder.b"], True), (["encoder.a"], False)):
        missing = sorted(model.keys() - set(names))
        error = misfit("a.ckpt", {name: model[name] for name in names}, model, missing, [])
        assert ("--parts encoder" in str(error)) is advised


def test_the_other_stages_checkpoint_is_recognized() -> None:
    first, second = build(first_stage_config()), build(unconditional_config())
    with pytest.raises(UserError, match="x.ckpt .*it is a first stage.*ckpt_path"):
        load_weights(second, first.state_dict(), source="x.ckpt")
    with pytest.raises(UserError, match="it is a transformer.*extract_submodel"):
        load_weights(first, second.state_dict())


def test_what_starts_anew_is_told_by_part(caplog: pytest.LogCaptureFixture) -> None:
    model = build(first_stage_config())
    state = {**model.state_dict(), "loss.logvar": torch.zeros(1)}
    with caplog.at_level(logging.INFO):
        missing = load_weights(model, state, source="a.ckpt", ignore_keys=["loss.discriminator"])
    assert len(missing) == 10
    assert (
        "a.ckpt: logvar: 1 key left out, which only its training needed (loss.logvar)"
        in caplog.text
    )
    assert "a.ckpt: discriminator: 10 keys" in caplog.text and "initialized anew" in caplog.text


def test_layers_for_other_channels_can_start_anew() -> None:
    color, gray = build(first_stage_config()), build(first_stage_config(channels=1))
    anew = ["encoder.conv_in", "decoder.conv_out", "loss.discriminator"]
    missing = load_weights(gray, color.state_dict(), ignore_keys=anew)
    assert {name.rpartition(".")[0] for name in missing if "loss" not in name} == set(anew[:2])
    assert torch.equal(gray.quantize.embedding.weight, color.quantize.embedding.weight)


def file_at(address: int) -> str:
    """The file that is mapped there."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= address < end:
            return " ".join(line.split()[5:])
    return ""


def test_a_run_is_loaded_without_its_stale_paths(tmp_path: Path) -> None:
    model = build(unconditional_config()).eval()
    config = unconditional_config()
    config["params"]["first_stage_config"]["params"]["ckpt_path"] = "/gone/last.ckpt"
    folder = write_run(tmp_path / "run", config, model.state_dict())
    loaded, run, step = load_run(folder)
    assert step == 5 and run.folder == folder and not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not any(p.requires_grad for p in loaded.first_stage_model.parameters())
    if os.path.exists("/proc/self/maps"):  # weights stay in the file until they are used
        weight = loaded.transformer.tok_emb.weight
        assert file_at(weight.data_ptr()) == str(run.checkpoint)
    x = images(2).permute(0, 3, 1, 2)
    torch.testing.assert_close(loaded(x, x)[0], model(x, x)[0])


def test_a_run_that_lacks_its_loss_gets_a_new_one(tmp_path: Path) -> None:
    config = first_stage_config(n_embed=20000)  # large enough to be left unset at first, as is:
    config = set_in(config, "lossconfig.params.disc_ndf", 64)
    model = build(config)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("loss.")}
    loaded, _, _ = load_run(write_run(tmp_path / "run", config, state))
    assert torch.equal(loaded.quantize.embedding.weight, model.quantize.embedding.weight)
    weights = [w for w in loaded.loss.discriminator.parameters() if w.dim() == 4]
    assert max(weight.numel() for weight in weights) > LargeTensorsUnset.LARGE
    assert all(0.015 < weight.std() < 0.025 for weight in weights)


def test_half_precision_checkpoints_load_in_the_models_precision(tmp_path: Path) -> None:
    model = build(first_stage_config())
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    loaded, _, _ = load_run(write_run(tmp_path / "run", first_stage_config(), state))
    assert loaded.encoder.conv_in.weight.dtype is torch.float32
