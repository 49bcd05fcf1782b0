"""What computes on a GPU, on one that is made up: PyTorch's fake tensors have a device and a shape.

A tensor on another device than the others raises, as on a GPU, and so does every wait for a value
(`.item()`, an `if` on a tensor), which would leave the GPU idle.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from taming.config import instantiate_from_config
from taming.data.utils import custom_collate
from taming.evaluation.metrics.reconstruction import _differences
from taming.evaluation.metrics.small_classifier import SmallClassifier
from taming.evaluation.metrics.ssim import ms_ssim, ssim
from taming.models.codes import CodeHistogram, in_colors
from taming.modules.discriminator.model import NLayerDiscriminator
from taming.modules.ema import LitEma
from taming.modules.losses.lpips import LPIPS, vgg16
from taming.modules.losses.segmentation import BCELoss, BCELossWithQuant
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from taming.modules.transformer import mingpt
from taming.modules.transformer.decoding import CachedDecoder
from taming.modules.transformer.kmeans import KMeans
from taming.modules.util import ActNorm
from taming.modules.vqvae.quantize import (
    EMAVectorQuantizer,
    GumbelQuantize,
    VectorQuantizer,
    VectorQuantizer2,
)
from taming.sampling import engine, sample_images, sample_sliding_window
from taming.sampling.requests import Request, condition_indices
from taming.sampling.settings import SampleSettings
from tests.kit.models import (
    DALLE,
    LABELS,
    SEGMENTATION,
    SPIRAL,
    VQGAN,
    cosine_config,
    first_stage_config,
    transformer_config,
    unconditional_config,
)

GPU = torch.device("cuda")


def slow(*values: Any) -> Any:
    """A case that takes a second or more, though each operation is made up."""
    return pytest.param(*values, marks=pytest.mark.slow)


IMAGES = (2, 3, 32, 32)


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps are not recorded as graphs, which takes a real one."""
    monkeypatch.setattr(CachedDecoder, "_as_graph", lambda self, step: step)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    with FakeTensorMode():
        yield


def on_gpu(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A module on the GPU. What it computes has to say itself that it is there."""
    with GPU:
        return make(*args, **options)


def images(*shape: int) -> Tensor:
    return torch.rand(*(shape or IMAGES), device=GPU) * 2 - 1


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    return first_stage_config(f"{VQGAN}{kind}", **changes)


FIRST_STAGES: dict[str, dict[str, Any]] = {
    "VQModel": config_of("VQModel"),
    "VQModel, ema": config_of("VQModel", use_ema=True, sane_index_shape=True),
    "VQNoDiscModel": config_of("VQNoDiscModel"),
    "EMAVQ": config_of("EMAVQ", revive_after=2),
    "GumbelVQ": config_of("GumbelVQ", temperature_scheduler_config=cosine_config()),
    "VQModelInterface": first_stage_config("taming.models.latent_diffusion.VQModelInterface"),
    "VQSegmentationModel": SEGMENTATION,
    "DalleVAE": DALLE,
}


QUICK = ("VQModel, ema", "EMAVQ", "GumbelVQ")


@pytest.mark.parametrize("name", [n if n in QUICK else slow(n) for n in FIRST_STAGES])
def test_first_stages(name: str) -> None:
    model = on_gpu(instantiate_from_config, FIRST_STAGES[name])
    x = images(2, model.channels, 16, 16)
    for training in (True, False):
        model.train(training)
        reconstructions, loss = model(x)
        assert reconstructions.shape == x.shape and reconstructions.is_cuda and loss.is_cuda
    with torch.no_grad():
        indices = model.encode_to_indices(x)
        assert model.decode_indices(indices).is_cuda
        histogram = CodeHistogram(model.quantize.n_e)
        histogram.add(indices)
        assert histogram.counts_so_far().is_cuda
        assert in_colors(x).is_cuda
    if not isinstance(model, nn.Module) or name == "DalleVAE":
        return
    batch = {model.image_key: x.permute(0, 2, 3, 1)}
    assert all(picture.is_cuda for picture in model.log_images(batch).values())


def test_bytes_become_images_on_the_gpu() -> None:
    model = on_gpu(instantiate_from_config, config_of("VQModel"))
    pixels = torch.zeros(2, 16, 16, 3, dtype=torch.uint8, device=GPU)
    assert model.get_input({"image": pixels}, "image").is_cuda


QUANTIZERS: dict[str, Callable[[], nn.Module]] = {
    "VectorQuantizer2": lambda: VectorQuantizer2(16, 4, 0.25, sane_index_shape=True),
    "VectorQuantizer": lambda: VectorQuantizer(16, 4, 0.25),
    "EMAVectorQuantizer": lambda: EMAVectorQuantizer(16, 4, 0.25, revive_after=2),
    "GumbelQuantize": lambda: GumbelQuantize(4, 4, 16),
    "GumbelQuantize, soft": lambda: GumbelQuantize(4, 4, 16, straight_through=False),
}


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("training", [True, False])
def test_quantizers(name: str, training: bool) -> None:
    quantizer: Any = on_gpu(QUANTIZERS[name]).train(training)
    z_q, loss, info = quantizer(images(2, 4, 8, 8))
    assert z_q.is_cuda and loss.is_cuda and info[2].is_cuda
    assert quantizer.get_codebook_entry(info[2].reshape(-1), (2, 8, 8, 4)).is_cuda


@pytest.mark.parametrize("unknown", ["random", "extra", 3])
def test_remapped_indices(unknown: Any) -> None:
    quantizer: Any = on_gpu(VectorQuantizer2, 16, 4, 0.25)
    quantizer.remap, quantizer.unknown_index = "made up", 5 if unknown == "extra" else unknown
    quantizer.register_buffer("used", torch.arange(5, device=GPU))
    z_q, _, (_, _, indices) = quantizer(images(2, 4, 8, 8))
    assert z_q.is_cuda and quantizer.get_codebook_entry(indices).is_cuda


def lpips(net: str) -> LPIPS:
    network: LPIPS = on_gpu(LPIPS, net)
    network._known_ready = True  # it has its weights; whether it has is looked at once
    return network


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_perceptual_distances(net: str) -> None:
    assert lpips(net)(images(), images()).is_cuda
    assert all(maps.is_cuda for maps in on_gpu(vgg16, pretrained=False)(images()))


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
@pytest.mark.parametrize("conditional", [False, True])
def test_losses_of_the_game(kind: Any, conditional: bool) -> None:
    options = {"disc_conditional": conditional, "disc_in_channels": 6 if conditional else 3}
    loss = on_gpu(VQLPIPSWithDiscriminator, 0, disc_ndf=8, disc_loss=kind, **options)
    loss.perceptual_loss = lpips("vgg")
    x, outputs, condition = images(), images(), images() if conditional else None
    with torch.no_grad():  # as in validation: a backward pass takes a real GPU
        for value, terms in (
            loss.generator_loss(x, outputs, x.mean(), 5, last_layer=x, cond=condition),
            loss.discriminator_loss(x, outputs, 5, cond=condition),
        ):
            assert value.is_cuda and all(term.is_cuda for term in terms.values())


def test_losses_of_segmentations() -> None:
    maps = (images(2, LABELS, 16, 16) > 0).float()
    value, terms = BCELossWithQuant()(maps.mean(), maps, images(2, LABELS, 16, 16), "train")
    assert value.is_cuda and all(term.is_cuda for term in terms.values())
    assert BCELoss()(images(), images() * 0)[0].is_cuda


@pytest.mark.parametrize("use_actnorm", [False, True])
def test_discriminators(use_actnorm: bool) -> None:
    network = on_gpu(NLayerDiscriminator, 3, 8, 2, use_actnorm)
    for part in network.modules():
        if isinstance(part, ActNorm):
            part._known_initialized = True  # after its first batch, which is waited for
    assert network.train()(images()).is_cuda and network.eval()(images()).is_cuda


def test_averages_of_weights() -> None:
    model = on_gpu(nn.Linear, 3, 3)
    averages = on_gpu(LitEma, model)
    averages(model)
    with averages.swapped_in(model):
        assert model.weight.is_cuda


@pytest.mark.parametrize("n_unmasked", [slow(0), 4])
def test_gpts(n_unmasked: int) -> None:
    gpt = on_gpu(mingpt.GPT, 20, 24, 1, 2, 16, n_unmasked=n_unmasked)
    idx = torch.zeros(2, 6, dtype=torch.long, device=GPU)
    for training in (True, False):
        logits, loss = gpt.train(training)(idx, targets=idx)
        assert logits.is_cuda and loss.is_cuda
        assert gpt(idx, embeddings=torch.zeros(2, 3, 16, device=GPU))[0].is_cuda
    _, _, present = gpt.forward_with_past(idx)
    assert gpt.forward_with_past(idx[:, :1], past=present, past_length=6)[0].is_cuda


@pytest.mark.parametrize("options", [slow({}), {"top_k": 5, "top_p": 0.9}])
def test_samplers_of_a_gpt(options: dict[str, Any]) -> None:
    gpt = on_gpu(mingpt.GPT, 20, 24, 1, 2, 16, n_unmasked=4).eval()
    idx = torch.zeros(2, 4, dtype=torch.long, device=GPU)
    assert mingpt.sample_with_past(idx, gpt, 3, **options).shape == (2, 3)
    options.pop("top_p", None)
    assert mingpt.sample(gpt, idx, 2, sample=True, **options).shape == (2, 6)
    assert mingpt.sample(gpt, idx, 1, **options).is_cuda


FIRST = "__is_first_stage__"
WITH_MAPS = {"cond_stage_config": FIRST, "cond_stage_key": "image"}
COORDINATES = {
    "target": "taming.modules.misc.coord.CoordStage",
    "params": {"n_embed": 8, "down_factor": 2},
}
WIDE = {"block_size": 40}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "classes": transformer_config(),
    "classes, in a spiral": transformer_config(permuter_config=SPIRAL),
    "classes, dropped": transformer_config(cond_drop=0.1, pkeep=0.5),
    "classes, all at once": transformer_config(pkeep=0.0),
    "unconditional": unconditional_config(first_stage_config=None),
    "images": transformer_config(WIDE, **WITH_MAPS, downsample_cond_size=8),
    "coordinates": transformer_config(WIDE, cond_stage_config=COORDINATES, cond_stage_key="coord"),
}
TRANSFORMERS["unconditional"]["params"]["first_stage_config"] = TRANSFORMERS["classes"]["params"][
    "first_stage_config"
]


def transformer(name: str) -> Any:
    config = copy.deepcopy(TRANSFORMERS[name])
    config["params"]["transformer_config"]["params"]["n_layer"] = 1
    model = on_gpu(instantiate_from_config, config)
    model.warn_of_random_weights = lambda: None  # it looks at them, once
    model._tokens_seen = True  # as after the first batch, whose tokens are waited for
    return model


def batch_of(size: int = 8) -> dict[str, Tensor]:
    return {
        "image": images(2, size, size, 3),
        "class_label": torch.arange(2, device=GPU),
        "coord": torch.rand(2, size, size, 1, device=GPU),
    }


RARE = (
    "images",
    "classes",
    "classes, in a spiral",
    "classes, all at once",
    "coordinates",
    "unconditional",
)


@pytest.mark.parametrize("name", [slow(n) if n in RARE else n for n in TRANSFORMERS])
def test_steps_of_transformers(name: str) -> None:
    model = transformer(name)
    assert model.train().shared_step(batch_of()).is_cuda


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unconditional", "images", "coordinates"])
def test_pictures_of_transformers(name: str) -> None:
    """But for classes, which are written out: their numbers have to be known."""
    pictures = transformer(name).eval().log_images(batch_of())
    assert all(picture.is_cuda for picture in pictures.values())


def test_steps_on_cached_codes() -> None:
    model = transformer("classes").train()
    codes = torch.zeros(2, 4, 4, dtype=torch.long, device=GPU)
    labels = torch.zeros(2, 1, dtype=torch.long, device=GPU)
    assert model.shared_step({"codes": codes, "condition_codes": labels}).is_cuda


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("classes", SampleSettings(0.9, 5, 0.9)),
        slow("classes", SampleSettings()),
        slow("classes, in a spiral", SampleSettings()),
        slow("classes, all at once", SampleSettings(0.9, 5, 0.9)),
    ],
)
def test_the_engine(name: str, settings: SampleSettings) -> None:
    model = transformer(name).eval()
    requests = [Request(n, (n % 5,), n % 5) for n in range(3)]
    steps: list[int] = []
    samples = sample_images(
        model, requests, settings, batch_size=2, on_step=lambda step: steps.append(step.done)
    )
    assert [sample.image.shape for sample in samples] == [(3, 8, 8)] * 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_engine_with_guidance(dtype: torch.dtype | None) -> None:
    model, settings = transformer("classes, dropped").eval(), SampleSettings(guidance=2.0)
    samples = sample_images(model, [Request(0, (1,), 1)], settings, batch_size=2, dtype=dtype)
    assert [sample.indices.shape for sample in samples] == [(16,)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unconditional", "coordinates", "images"])
def test_the_engine_through_windows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "check_tokens", lambda gpt, tokens: None)  # in the CPU's memory
    model = transformer(name).eval()
    maps = torch.zeros(4, 5, dtype=torch.long)
    request = Request(0, (0,)) if name == "unconditional" else Request(0, condition=maps)
    [sample] = sample_images(model, [request], batch_size=2, shape=(4, 5))
    assert sample.indices.shape == (20,)


@pytest.mark.slow
def test_windows() -> None:
    gpt = on_gpu(mingpt.GPT, 20, 24, 1, 2, 16).eval()
    assert sample_sliding_window(gpt, None, (3, 3), 2, batch_size=2).is_cuda


def test_colors_as_codes() -> None:
    stage = on_gpu(KMeans, 8, 3, resolution=8)
    stage._known_initialized = True  # after its first batch, which is waited for
    _, _, (_, _, indices) = stage.encode(images(2, 3, 8, 8))
    assert indices.is_cuda and stage.decode_indices(indices).is_cuda


def test_measures_of_images() -> None:
    first, second = torch.rand(2, 3, 192, 192, device=GPU), torch.rand(2, 3, 192, 192, device=GPU)
    values = [ssim(first, second), ms_ssim(first, second), *_differences(first, second).values()]
    assert all(value.is_cuda for value in values)


def test_labels_to_sample_are_checked_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model, checked = transformer("classes"), []
    monkeypatch.setattr(model.cond_stage_model, "check", checked.append)
    assert condition_indices(model, torch.zeros(2, dtype=torch.long)).is_cpu
    assert len(checked) == 1 and checked[0].is_cpu


def test_small_classifiers() -> None:
    network = on_gpu(SmallClassifier, 3, side=16, width=8)
    features, logits = network(torch.zeros(2, 3, 20, 20, dtype=torch.uint8, device=GPU))
    assert features.is_cuda and logits.is_cuda


def test_batches() -> None:
    items = [{"image": np.zeros((4, 4, 3), np.float32), "class_label": n} for n in range(2)]
    batch = custom_collate(items)
    assert batch["image"].shape == (2, 4, 4, 3) and batch["image"].is_cpu
