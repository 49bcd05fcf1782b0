"""A small one of every module in `taming` that computes something, and what it computes from.

Modules and their arguments are made on torch's default device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pkgutil import walk_packages
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import taming
from taming.config import get_obj_from_str, instantiate_from_config
from taming.export.onnx import _ToImages, _ToIndices
from taming.models.dummy_cond_stage import DummyCondStage
from taming.modules.discriminator.dino import DinoDiscriminator
from taming.modules.discriminator.model import NLayerDiscriminator
from taming.modules.discriminator.stylegan2 import StyleGAN2Discriminator
from taming.modules.discriminator.vit import ViT
from taming.modules.ema import LitEma
from taming.modules.frozen import Frozen
from taming.modules.losses.features import LogitDistance
from taming.modules.losses.lpips import LPIPS, vgg16
from taming.modules.losses.segmentation import BCELoss, BCELossWithQuant
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from taming.modules.misc.coord import CoordStage
from taming.modules.synced_batch_norm import SyncedBatchNorm2d
from taming.modules.transformer import permuter
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.kmeans import KMeans
from taming.modules.util import ActNorm, Labelator, SOSProvider
from taming.modules.vqvae.bsq import BSQ
from taming.modules.vqvae.cosine import CosineQuantizer
from taming.modules.vqvae.ema import EMAVectorQuantizer
from taming.modules.vqvae.fsq import FSQ
from taming.modules.vqvae.grouped import GroupedQuantizer
from taming.modules.vqvae.gumbel import GumbelQuantize
from taming.modules.vqvae.ibq import IBQ
from taming.modules.vqvae.lfq import LFQ
from taming.modules.vqvae.multi_scale import MultiScaleQuantizer
from taming.modules.vqvae.nearest import VectorQuantizer, VectorQuantizer2
from taming.modules.vqvae.residual import ResidualQuantizer
from taming.modules.vqvae.scales import Phi
from taming.modules.vqvae.simvq import SimVQ
from tests.kit.extractor import clip, dinov2, inception, small_classifier_extractor
from tests.kit.models import (
    DALLE,
    GAN_LOSS,
    LABELS,
    SEGMENTATION,
    VQGAN,
    cosine_config,
    first_stage_config,
    transformer_config,
)
from tests.kit.tokenizers import small_section

Arguments = Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Part:
    """A module, and a call of it."""

    make: Callable[[], Any]
    arguments: Arguments
    call: Callable[..., Any] = lambda module, *arguments: module(*arguments)
    quick: bool = True  # on made-up tensors, in about half a second


def images(side: int = 16, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, side, side) * 2 - 1


def indices(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)


def of_images(side: int = 16, channels: int = 3, count: int = 1) -> Arguments:
    return lambda: tuple(images(side, channels) for _ in range(count))


def pixels() -> tuple[Tensor, ...]:
    return (torch.zeros(2, 3, 20, 24, dtype=torch.uint8),)


def encode(stage: Any, *arguments: Any) -> Any:
    return stage.encode(*arguments)


# ---------------------------------------------------------------------- networks


def with_weights(network: LPIPS) -> LPIPS:
    """Whose zeros are weights: whether they are is looked at once, and waited for."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    network._known_ready = True
    return network


def after_first_batch(module: nn.Module) -> nn.Module:
    """That batch is waited for."""
    for part in module.modules():
        if isinstance(part, ActNorm | KMeans):
            part._known_initialized = True
    return module


def logit_distance(net: str) -> LogitDistance:
    """By torchvision's network with random weights."""
    from torchvision.models import get_model

    with patch.object(nn.init, "trunc_normal_"):  # it looks at what it drew
        distance, network = LogitDistance(net), get_model(net)
    distance.classifier = Frozen(lambda: network)
    distance.prepare()
    return distance


def dino() -> DinoDiscriminator:
    """On a ViT of one block that was trained on images of 8 x 8 pixels."""
    discriminator, network = DinoDiscriminator("", 64, (0,), size=16), ViT(64, 1, 4, 4)
    discriminator.features = Frozen(lambda: network)
    discriminator.prepare()
    return discriminator


NETWORKS = {
    "patch discriminator": Part(lambda: NLayerDiscriminator(3, 8, 1), of_images()),
    "patch discriminator, ActNorm": Part(
        lambda: after_first_batch(NLayerDiscriminator(3, 8, 1, True)), of_images()
    ),
    "StyleGAN2's discriminator": Part(lambda: StyleGAN2Discriminator(16, base=64), of_images()),
    "discriminator on DINO": Part(dino, of_images(24)),
    "ViT": Part(lambda: ViT(64, 1, 4, 4), lambda: (images(8), (0,))),
    "LPIPS": Part(lambda: with_weights(LPIPS()), of_images(32, count=2)),
    "LPIPS, AlexNet": Part(lambda: with_weights(LPIPS("alex")), of_images(64, count=2)),
    "VGG16": Part(lambda: vgg16(pretrained=False), of_images(32)),
    "ResNet": Part(lambda: logit_distance("resnet50"), of_images(count=2), quick=False),
    "ConvNeXt": Part(lambda: logit_distance("convnext_small"), of_images(count=2), quick=False),
    "Inception": Part(inception, pixels, quick=False),
    "DINOv2": Part(dinov2, pixels, quick=False),
    "CLIP's images": Part(clip, pixels, quick=False),
    "classifier as extractor": Part(small_classifier_extractor, pixels),
    "SyncedBatchNorm2d": Part(lambda: SyncedBatchNorm2d(3), of_images()),
    "ActNorm": Part(lambda: after_first_batch(ActNorm(3, logdet=True)), of_images()),
}


# ---------------------------------------------------------------------- quantizers, losses


def nearest(**options: Any) -> VectorQuantizer2:
    return VectorQuantizer2(16, 4, 0.25, sane_index_shape=True, **options)


def multi_scale(**options: Any) -> MultiScaleQuantizer:
    return MultiScaleQuantizer(16, 4, [1, 2, 8], **options)


REVIVAL = {"revive_after": 2, "entropy_weight": 0.1}
LATENTS = of_images(8, 4)
COSINE = {"target": "taming.modules.vqvae.cosine.CosineQuantizer", "params": {"n_e": 8, "e_dim": 2}}
QUANTIZERS = {
    "VectorQuantizer2": Part(nearest, LATENTS),
    "VectorQuantizer2, revival": Part(lambda: nearest(**REVIVAL), LATENTS),
    "VectorQuantizer": Part(lambda: VectorQuantizer(16, 4, 0.25), LATENTS),
    "EMAVectorQuantizer": Part(lambda: EMAVectorQuantizer(16, 4, 0.25, **REVIVAL), LATENTS),
    "GumbelQuantize": Part(lambda: GumbelQuantize(4, 4, 16, revive_after=2), LATENTS),
    "GumbelQuantize, soft": Part(lambda: GumbelQuantize(4, 4, 16, straight_through=False), LATENTS),
    "CosineQuantizer": Part(lambda: CosineQuantizer(16, 4, **REVIVAL), LATENTS),
    "CosineQuantizer, clustering": Part(lambda: CosineQuantizer(16, 4, clustering=True), LATENTS),
    "FSQ": Part(lambda: FSQ([3, 4, 5, 3]), LATENTS),
    "FSQ, symmetric": Part(lambda: FSQ([2, 3, 4, 5], symmetric=True), LATENTS),
    "LFQ": Part(lambda: LFQ(16), LATENTS),
    "BSQ": Part(lambda: BSQ(16), LATENTS),
    "IBQ": Part(lambda: IBQ(16, 4), LATENTS),
    "SimVQ": Part(lambda: SimVQ(16, 4, entropy_weight=0.1), LATENTS),
    "ResidualQuantizer": Part(lambda: ResidualQuantizer(16, 4, 2, **REVIVAL), LATENTS),
    "GroupedQuantizer": Part(lambda: GroupedQuantizer(2, COSINE), LATENTS),
    "MultiScaleQuantizer": Part(partial(multi_scale, revive_after=2), LATENTS),
    "MultiScaleQuantizer, by direction": Part(partial(multi_scale, using_znorm=True), LATENTS),
    "Phi": Part(lambda: Phi(4, 0.5), LATENTS),
    "KMeans": Part(lambda: after_first_batch(KMeans(8, 3, resolution=8)), of_images(8), encode),
}


def game(**options: Any) -> VQLPIPSWithDiscriminator:
    options = {"disc_ndf": 8, "disc_num_layers": 1, "perceptual_weight": 0.0, **options}
    return VQLPIPSWithDiscriminator(0, **options)


def with_perceptual() -> VQLPIPSWithDiscriminator:
    loss = game(perceptual_weight=1.0)
    loss.perceptual_loss = with_weights(LPIPS())
    return loss


@torch.no_grad()  # as in validation: the adaptive weight takes a backward pass
def both_sides(loss: Any, x: Tensor, outputs: Tensor, condition: Tensor | None = None) -> Any:
    """The losses of generator and discriminator, with their terms."""
    of_generator = loss.generator_loss(x, outputs, x.mean(), 5, last_layer=x, cond=condition)
    return of_generator, loss.discriminator_loss(x, outputs, 5, cond=condition)


def lecam(loss: Any, x: Tensor, outputs: Tensor) -> Any:
    return loss.penalties(loss.discriminator, (x, outputs), (x.mean((1, 2, 3)), outputs.mean()))


TWO = of_images(count=2)
THREE = of_images(count=3)
LOSSES = {
    "hinge": Part(game, TWO, both_sides),
    "vanilla": Part(lambda: game(disc_loss="vanilla"), TWO, both_sides),
    "with a condition": Part(
        lambda: game(disc_conditional=True, disc_in_channels=6), THREE, both_sides
    ),
    "with LPIPS": Part(with_perceptual, of_images(32, count=2), both_sides),
    "l2": Part(lambda: game(pixel_loss="l2"), TWO, both_sides),
    "logit-Laplace": Part(
        lambda: game(pixel_loss="logit_laplace"), lambda: (images(), images(16, 6)), both_sides
    ),
    "LeCAM": Part(lambda: game(lecam_weight=0.1), TWO, lecam),
    "of segmentations": Part(
        BCELossWithQuant,
        lambda: (images(8, LABELS).mean(), images(8, LABELS).round(), images(8, LABELS), "train"),
    ),
    "BCELoss": Part(BCELoss, lambda: (images(), images().round())),
}


# ---------------------------------------------------------------------- stages


def first_stage(kind: str = VQGAN + "VQModel", **params: Any) -> Any:
    return instantiate_from_config(first_stage_config(kind, **params))


def loss_config(pixel_loss: str) -> dict[str, Any]:
    return {**GAN_LOSS, "params": {**GAN_LOSS["params"], "pixel_loss": pixel_loss}}


def there_and_back(model: Any, x: Tensor) -> Any:
    """Images -> reconstructions and loss, indices, and images of these."""
    with torch.no_grad():
        tokens = model.encode_to_indices(x)
        return model(x), tokens, model.decode_indices(tokens)


MULTI_SCALE = "taming.models.multi_scale.MultiScaleVQ"
TWO_LEVEL = "taming.models.two_level.TwoLevelVQ"
TOP = {"z_channels": 8, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": []}
GUMBEL = {"temperature_scheduler_config": cosine_config()}
OTHER_STAGES = {
    "VQModel, EMA": partial(first_stage, use_ema=True, sane_index_shape=True),
    "VQModel, distributions": lambda: first_stage(lossconfig=loss_config("logit_laplace")),
    "VQNoDiscModel": partial(first_stage, VQGAN + "VQNoDiscModel"),
    "VQModelInterface": partial(first_stage, "taming.models.latent_diffusion.VQModelInterface"),
    "DalleVAE": lambda: instantiate_from_config(DALLE),
    "MagVit2VQ": lambda: instantiate_from_config(small_section("open_magvit2")),
    "MaskGitVQ": lambda: instantiate_from_config(small_section("maskgit")),
}
STAGES = {
    "VQModel": Part(first_stage, of_images(), there_and_back),
    "EMAVQ": Part(
        partial(first_stage, VQGAN + "EMAVQ", revive_after=2), of_images(), there_and_back
    ),
    "GumbelVQ": Part(
        partial(first_stage, VQGAN + "GumbelVQ", **GUMBEL), of_images(), there_and_back
    ),
    "VQSegmentationModel": Part(
        lambda: instantiate_from_config(SEGMENTATION),
        of_images(16, LABELS),
        there_and_back,
        quick=False,
    ),
    "images to ONNX": Part(lambda: _ToIndices(first_stage()), of_images(), quick=False),
    "images from ONNX": Part(
        lambda: _ToImages(first_stage(), (8, 8)), lambda: (indices(2, 8, 8),), quick=False
    ),
    "TwoLevelVQ": Part(
        lambda: first_stage(TWO_LEVEL, top_ddconfig=TOP), of_images(), there_and_back, quick=False
    ),
    "MultiScaleVQ": Part(
        partial(first_stage, MULTI_SCALE), of_images(), there_and_back, quick=False
    ),
    "averages": Part(lambda: LitEma(nn.Linear(3, 3)), lambda: (nn.Linear(3, 3),)),
}
for name, make in OTHER_STAGES.items():
    STAGES[name] = Part(make, of_images(), there_and_back, quick=False)
CONDITIONS = {
    "Labelator": Part(lambda: Labelator(5), lambda: (indices(2),), encode),
    "SOSProvider": Part(lambda: SOSProvider(0), lambda: (indices(2),), encode),
    "CoordStage": Part(lambda: CoordStage(8, 2), of_images(8, 1), encode),
    "DummyCondStage": Part(lambda: DummyCondStage("x"), lambda: (indices(2, 3),), encode),
}


# ---------------------------------------------------------------------- transformers

VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "n_unmasked": {"n_unmasked": 4},
    "RoPE": {"rope_grid": [4, 4]},
    "QK-norm": {"qk_norm": True},
    "RMSNorm": {"norm": "rms"},
    "SwiGLU": {"mlp": "swiglu"},
    "AdaLN": {"adaln_classes": 5},
}
"""Options of a GPT for 16 codes after one class of 5; and all of them together."""
VARIANTS["all"] = {name: option for one in VARIANTS.values() for name, option in one.items()}
VARIANTS["all"]["n_unmasked"] = 0
VARIANTS["any order"] = {**VARIANTS["all"], "target_positions": True}
CACHED = dict(VARIANTS)
"""Those that are sampled code by code, with a cache."""
VARIANTS["full attention"] = {"attention": "full"}


def gpt(**options: Any) -> GPT:
    return GPT(23, 16, 2, 2, 16, **options)


def transformer(**options: Any) -> Any:
    """Over cached codes, and with a step of training and validation."""
    model = instantiate_from_config(transformer_config({"n_layer": 1, **options}))
    model._tokens_seen = True  # as after the first batch, whose tokens are waited for
    return model


def step(model: Any, codes: Tensor, labels: Tensor) -> Any:
    return model.shared_step({"codes": codes, "condition_codes": labels})


GPTS = {
    f"GPT, {name}": Part(
        partial(gpt, **options),
        lambda: (indices(2, 6),),
        lambda module, idx: module(idx, targets=idx),
    )
    for name, options in VARIANTS.items()
}
ORDERS = ("Subsample", "ZCurve", "SpiralIn", "SpiralOut", "Random", "AlternateParsing")
OTHERS = {
    "Net2NetTransformer": Part(transformer, lambda: (indices(2, 4, 4), indices(2, 1)), step),
    "Identity": Part(permuter.Identity, lambda: (indices(2, 16),)),
}
for kind in ORDERS:
    order = get_obj_from_str(f"{permuter.__name__}.{kind}")
    OTHERS[kind] = Part(partial(order, 4, 4), lambda: (indices(2, 16),))

PARTS: dict[str, Part] = {
    **NETWORKS,
    **QUANTIZERS,
    **LOSSES,
    **STAGES,
    **CONDITIONS,
    **GPTS,
    **OTHERS,
}


def modules_of_project() -> Iterator[type[nn.Module]]:
    """The classes of modules that can be called.

    Not those of `taming.data`: workers of loaders run them, on what PIL gives.
    """
    for file in walk_packages(taming.__path__, "taming."):
        if not file.name.startswith("taming.data."):
            for one in vars(__import__(file.name, fromlist=["*"])).values():
                if inspect.isclass(one) and one.__module__ == file.name and _is_called(one):
                    yield one


def _is_called(one: type) -> bool:
    return issubclass(one, nn.Module) and one.forward is not nn.Module.forward


def classes_of(part: Part) -> set[type]:
    """Of a part's module and all in it, with their bases."""
    return {base for one in part.make().modules() for base in type(one).__mro__}
