"""Code written for the original imports and constructs these names unchanged."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

from taming import published_names
from taming.config import get_obj_from_str, instantiate_from_config
from taming.errors import UserError
from tests.support import GOLDEN, load_manifest

# Parameters in their published order; ours may have more after them.
SIGNATURES = {
    "taming.models.vqgan.VQModel": "ddconfig lossconfig n_embed embed_dim ckpt_path ignore_keys "
    "image_key colorize_nlabels monitor remap sane_index_shape",
    "taming.models.vqgan.VQSegmentationModel": "n_labels",
    "taming.models.vqgan.VQNoDiscModel": "ddconfig lossconfig n_embed embed_dim ckpt_path "
    "ignore_keys image_key colorize_nlabels",
    "taming.models.vqgan.GumbelVQ": "ddconfig lossconfig n_embed embed_dim "
    "temperature_scheduler_config ckpt_path ignore_keys image_key colorize_nlabels monitor "
    "kl_weight remap",
    "taming.models.cond_transformer.Net2NetTransformer": "transformer_config first_stage_config "
    "cond_stage_config permuter_config ckpt_path ignore_keys first_stage_key cond_stage_key "
    "downsample_cond_size pkeep sos_token unconditional",
    "taming.modules.vqvae.quantize.VectorQuantizer2": "n_e e_dim beta remap unknown_index "
    "sane_index_shape legacy",
    "taming.modules.vqvae.quantize.VectorQuantizer": "n_e e_dim beta",
    "taming.modules.vqvae.quantize.GumbelQuantize": "num_hiddens embedding_dim n_embed "
    "straight_through kl_weight temp_init use_vqinterface remap unknown_index",
    "taming.modules.vqvae.quantize.EMAVectorQuantizer": "n_embed embedding_dim beta decay eps "
    "remap unknown_index",
    "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator": "disc_start codebook_weight "
    "pixelloss_weight disc_num_layers disc_in_channels disc_factor disc_weight "
    "perceptual_weight use_actnorm disc_conditional disc_ndf disc_loss",
    "taming.modules.discriminator.model.NLayerDiscriminator": "input_nc ndf n_layers use_actnorm",
    "taming.modules.transformer.mingpt.GPT": "vocab_size block_size n_layer n_head n_embd "
    "embd_pdrop resid_pdrop attn_pdrop n_unmasked",
    "taming.modules.transformer.mingpt.KMeans": "ncluster nc niter",
    "taming.modules.transformer.mingpt.sample_with_past": "x model steps temperature "
    "sample_logits top_k top_p callback",
    "taming.modules.misc.coord.CoordStage": "n_embed down_factor",
    "taming.modules.util.ActNorm": "num_features logdet affine allow_reverse_init",
    "taming.modules.util.Labelator": "n_classes quantize_interface",
    "taming.modules.util.SOSProvider": "sos_token quantize_interface",
    "taming.lr_scheduler.LambdaWarmUpCosineScheduler": "warm_up_steps lr_min lr_max lr_start "
    "max_decay_steps verbosity_interval",
}


def published() -> Iterator[tuple[str, str, str, str]]:
    """Module, kind, name, and methods or parameters, of tests/golden/published_names.txt."""
    for line in (GOLDEN / "published_names.txt").read_text().splitlines():
        if not line.startswith("#"):
            module, kind, rest = line.split(" ", 2)
            name, *details = re.findall(r"\w+", rest)
            yield module, kind, name, " ".join(details)


PUBLISHED = list(published())


@pytest.mark.parametrize("module", sorted({module for module, *_ in PUBLISHED}))
def test_every_published_name_is_there_or_says_what_to_use(module: str) -> None:
    for place, kind, name, details in PUBLISHED:
        if place != module:
            continue
        if name in published_names.GONE.get(module, {}):
            with pytest.raises(UserError, match=f"no {module}.{name} any more; \\w+"):
                get_obj_from_str(f"{module}.{name}")
            with pytest.raises(ImportError, match="any more"):
                exec(f"from {module} import {name}")
            continue
        found: dict[str, Any] = {}
        exec(f"from {module} import {name}", found)
        thing = found[name]
        assert thing is get_obj_from_str(f"{module}.{name}")
        if kind == "class":
            subclass = type("Own", (thing,), {})
            missing = [method for method in details.split() if not hasattr(subclass, method)]
            assert not missing, f"{module}.{name}"
        if kind == "function":
            accepted = list(inspect.signature(thing).parameters)
            assert accepted[: len(details.split())] == details.split(), f"{module}.{name}"


@pytest.mark.parametrize("module", ["main", "taming.modules.losses.vqperceptual"])
def test_star_imports(module: str) -> None:
    everything: dict[str, Any] = {}
    exec(f"from {module} import *", everything)  # as notebooks do
    names = {name for place, _, name, _ in PUBLISHED if place == module}
    assert names <= everything.keys()


@pytest.mark.parametrize("target", SIGNATURES)
def test_parameters_come_in_the_published_order(target: str) -> None:
    function = get_obj_from_str(target)
    accepted = list(inspect.signature(function).parameters)
    wanted = SIGNATURES[target].split()
    assert accepted[: len(wanted)] == wanted


# Of methods that subclasses override, and pass on to.
METHODS = {
    "taming.modules.transformer.mingpt.CausalSelfAttention": {"forward": "x layer_past"},
    "taming.modules.transformer.mingpt.Block": {"forward": "x layer_past return_present"},
    "taming.modules.transformer.mingpt.GPT": {
        "forward": "idx embeddings targets",
        "forward_with_past": "idx embeddings targets past past_length",
    },
    "taming.modules.vqvae.quantize.VectorQuantizer2": {
        "forward": "z temp rescale_logits return_logits",
        "get_codebook_entry": "indices shape",
    },
    "taming.modules.vqvae.quantize.GumbelQuantize": {"forward": "z temp return_logits"},
    "taming.modules.vqvae.quantize.EMAVectorQuantizer": {"forward": "z"},
    "taming.modules.diffusionmodules.model.ResnetBlock": {"forward": "x temb"},
    "taming.models.cond_transformer.Net2NetTransformer": {
        "sample": "x c steps temperature sample top_k callback",
        "log_images": "batch temperature top_k",
    },
}


@pytest.mark.parametrize("target", METHODS)
def test_parameters_of_methods_come_in_the_published_order(target: str) -> None:
    methods = dict(inspect.getmembers(get_obj_from_str(target)))
    for name, wanted in METHODS[target].items():
        _, *accepted = inspect.signature(methods[name]).parameters
        assert accepted[: len(wanted.split())] == wanted.split(), name


LEVELS = {"ch": 32, "out_ch": 3, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": []}
AUTOENCODER = {**LEVELS, "in_channels": 3, "resolution": 8, "z_channels": 4}
# What bodies of methods written for the original read, beyond submodules of checkpoints.
ATTRIBUTES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "taming.modules.transformer.mingpt.GPT": (
        {"vocab_size": 9, "block_size": 7, "n_layer": 1, "n_head": 1, "n_embd": 4},
        {"block_size": 7},
    ),
    "taming.modules.diffusionmodules.model.Encoder": (AUTOENCODER, {"temb_ch": 0, "ch": 32}),
    "taming.modules.diffusionmodules.model.Decoder": (AUTOENCODER, {"temb_ch": 0, "resolution": 8}),
    "taming.modules.diffusionmodules.model.ResnetBlock": (
        {"in_channels": 32, "out_channels": 64, "conv_shortcut": True},
        {"use_conv_shortcut": True, "in_channels": 32, "out_channels": 64},
    ),
    "taming.modules.vqvae.quantize.EMAVectorQuantizer": (
        {"n_embed": 5, "embedding_dim": 4, "beta": 0.25},
        {"num_tokens": 5, "codebook_dim": 4, "beta": 0.25},
    ),
    "taming.modules.losses.lpips.LPIPS": ({}, {"chns": [64, 128, 256, 512, 512]}),
    "taming.modules.losses.lpips.vgg16": ({"pretrained": False}, {"N_slices": 5}),
    "main.ImageLogger": (
        {"batch_frequency": 6, "max_images": 2},
        {"batch_freq": 6, "log_steps": [1, 2, 4], "max_images": 2, "clamp": True},
    ),
}


@pytest.mark.parametrize("target", ATTRIBUTES)
def test_attributes_have_their_published_names(target: str) -> None:
    params, expected = ATTRIBUTES[target]
    attributes = vars(instantiate_from_config({"target": target, "params": params}))
    assert {name: attributes.get(name) for name in expected} == expected


@pytest.mark.parametrize("name", ["ldm_vq_f4", "ldm_vq_f8_n256", "ldm_vq_f8_16384", "ldm_vq_f16"])
def test_latent_diffusions_first_stages_load(name: str) -> None:
    import torch

    config, expected = load_manifest(name)
    config["target"] = "ldm.models.autoencoder.VQModel"
    with torch.device("meta"):
        model = instantiate_from_config(config)
    assert model.state_dict().keys() == expected.keys()
