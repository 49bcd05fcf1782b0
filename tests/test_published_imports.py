"""Code written for the original imports and constructs these names unchanged."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from taming.config import get_obj_from_str, instantiate_from_config
from tests.support import load_manifest

NAMES = {
    "main": "DataModuleFromConfig SetupCallback ImageLogger LearningRateMonitor WrappedDataset "
    "instantiate_from_config get_obj_from_str",
    "taming.models.vqgan": "VQModel VQSegmentationModel VQNoDiscModel GumbelVQ EMAVQ",
    "taming.models.cond_transformer": "Net2NetTransformer",
    "taming.models.dummy_cond_stage": "DummyCondStage",
    "taming.modules.diffusionmodules.model": "Encoder Decoder ResnetBlock AttnBlock Upsample "
    "Downsample Normalize nonlinearity",
    "taming.modules.vqvae.quantize": "VectorQuantizer VectorQuantizer2 GumbelQuantize "
    "EMAVectorQuantizer",
    "taming.modules.losses": "DummyLoss",
    "taming.modules.losses.vqperceptual": "VQLPIPSWithDiscriminator DummyLoss hinge_d_loss "
    "vanilla_d_loss adopt_weight LPIPS NLayerDiscriminator weights_init",
    "taming.modules.losses.segmentation": "BCELoss BCELossWithQuant",
    "taming.modules.losses.lpips": "LPIPS normalize_tensor spatial_average",
    "taming.modules.discriminator.model": "NLayerDiscriminator weights_init",
    "taming.modules.transformer.mingpt": "GPT KMeans sample sample_with_past top_k_logits",
    "taming.modules.transformer.permuter": "Identity Subsample ZCurve SpiralOut SpiralIn Random "
    "AlternateParsing",
    "taming.modules.misc.coord": "CoordStage",
    "taming.modules.util": "ActNorm Labelator SOSProvider AbstractEncoder count_params",
    "taming.lr_scheduler": "LambdaWarmUpCosineScheduler",
    "taming.util": "download md5_hash get_ckpt_path retrieve KeyNotFoundError",
}

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


@pytest.mark.parametrize("module", NAMES)
def test_every_name_is_there(module: str) -> None:
    everything: dict[str, Any] = {}
    exec(f"from {module} import *", everything)  # as notebooks do with losses.vqperceptual
    assert set(NAMES[module].split()) <= everything.keys()


@pytest.mark.parametrize("target", SIGNATURES)
def test_parameters_come_in_the_published_order(target: str) -> None:
    function = get_obj_from_str(target)
    accepted = list(inspect.signature(function).parameters)
    wanted = SIGNATURES[target].split()
    assert accepted[: len(wanted)] == wanted


@pytest.mark.parametrize("name", ["ldm_vq_f4", "ldm_vq_f8_n256", "ldm_vq_f8_16384", "ldm_vq_f16"])
def test_latent_diffusions_first_stages_load(name: str) -> None:
    import torch

    config, expected = load_manifest(name)
    config["target"] = "ldm.models.autoencoder.VQModel"
    with torch.device("meta"):
        model = instantiate_from_config(config)
    assert model.state_dict().keys() == expected.keys()
